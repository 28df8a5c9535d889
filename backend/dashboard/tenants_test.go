package dashboard

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func sha(s string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(s))) }

func TestParseTenants(t *testing.T) {
	hash := sha(strings.Repeat("x", MinSecret))
	for _, c := range []struct {
		name, file string
		want       string // of the error; empty: it is taken
	}{
		{"YAML", "tenants:\n- name: a\n  namespaces: [ns]\n  passwordSHA256: " + hash + "\n", ""},
		{"JSON", `{"tenants":[{"name":"a","namespaces":["*"],"pathSecretSHA256":"` + hash + `"}]}`, ""},
		{"both ways in", `{"tenants":[{"name":"a","namespaces":["ns","*"],"passwordSHA256":"` + hash + `","pathSecretSHA256":"` + hash + `"}]}`, ""},
		{"the same password for two", `{"tenants":[{"name":"a","namespaces":["ns"],"passwordSHA256":"` + hash + `"},{"name":"b","namespaces":["ns"],"passwordSHA256":"` + hash + `"}]}`, ""},
		{"no YAML", "tenants: [", "yaml"},
		{"nothing", "", "there are none"},
		{"no tenants", "tenants: []", "there are none"},
		{"an unknown field", `{"tenants":[{"name":"a","namespaces":["ns"],"password":"` + hash + `"}]}`, "unknown field"},
		{"a field twice", "tenants:\n- name: a\n  name: b\n", "already set"},
		{"no name", `{"tenants":[{"namespaces":["ns"],"passwordSHA256":"` + hash + `"}]}`, `tenant 1, ""`},
		{"a name that Basic authentication cannot carry", `{"tenants":[{"name":"a:b","namespaces":["ns"],"passwordSHA256":"` + hash + `"}]}`, "no colon"},
		{"a name twice", `{"tenants":[{"name":"a","namespaces":["ns"],"passwordSHA256":"` + hash + `"},{"name":"a","namespaces":["other"],"passwordSHA256":"` + hash + `"}]}`, "twice"},
		{"no namespaces", `{"tenants":[{"name":"a","passwordSHA256":"` + hash + `"}]}`, "has no namespaces"},
		{"a pattern", `{"tenants":[{"name":"a","namespaces":["team-*"],"passwordSHA256":"` + hash + `"}]}`, "not a Kubernetes name"},
		{"an empty namespace", `{"tenants":[{"name":"a","namespaces":[""],"passwordSHA256":"` + hash + `"}]}`, "namespace"},
		{"no secret", `{"tenants":[{"name":"a","namespaces":["ns"]}]}`, "neither passwordSHA256 nor pathSecretSHA256"},
		{"a password in the place of its hash", `{"tenants":[{"name":"a","namespaces":["ns"],"passwordSHA256":"hunter2"}]}`, "not a SHA-256"},
		{"a hash of another kind", `{"tenants":[{"name":"a","namespaces":["ns"],"passwordSHA256":"` + hash[:32] + `"}]}`, "not a SHA-256"},
		{"the hash of nothing", `{"tenants":[{"name":"a","namespaces":["ns"],"pathSecretSHA256":"` + sha("") + `"}]}`, "empty text"},
		{"a path secret twice", `{"tenants":[{"name":"a","namespaces":["ns"],"pathSecretSHA256":"` + hash + `"},{"name":"b","namespaces":["ns"],"pathSecretSHA256":"` + hash + `"}]}`, `of tenant "a"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := parseTenants([]byte(c.file))
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error %v, want %q", err, c.want)
			}
			if (err == nil) == (got == nil) {
				t.Errorf("tenants %v and error %v", got, err)
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error shows a password: %v", err)
			}
		})
	}
}

func TestReadTenants(t *testing.T) {
	file := filepath.Join(t.TempDir(), "tenants.yaml")
	if _, err := ReadTenants(file); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("no file: %v", err)
	}
	if err := os.WriteFile(file, []byte("tenants: []"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadTenants(file); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("no tenants: %v", err)
	}
	secret := strings.Repeat("s", MinSecret)
	if err := os.WriteFile(file, []byte("tenants: [{name: a, namespaces: [ns], passwordSHA256: "+sha(secret)+"}]"), 0o600); err != nil {
		t.Fatal(err)
	}
	tenants, err := ReadTenants(file)
	if err != nil {
		t.Fatal(err)
	}
	who := tenants.byPassword("a", secret)
	if who == nil || !who.mayRead("ns") || who.mayRead("other") || who.mayRead("*") || who.mayRead("") {
		t.Errorf("tenant %+v", who)
	}
}

func TestMatch(t *testing.T) {
	password, secret, short := strings.Repeat("p", MinSecret), strings.Repeat("s", MinSecret), strings.Repeat("q", MinSecret-1)
	tenants, err := parseTenants(fmt.Appendf(nil, `{"tenants":[
{"name":"both","namespaces":["ns"],"passwordSHA256":"%s","pathSecretSHA256":"%s"},
{"name":"password","namespaces":["ns"],"passwordSHA256":"%[1]s"},
{"name":"secret","namespaces":["ns"],"pathSecretSHA256":"%[3]s"},
{"name":"short","namespaces":["ns"],"passwordSHA256":"%[4]s","pathSecretSHA256":"%[4]s"}]}`, sha(password), sha(secret), sha(secret+"2"), sha(short)))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, password, want string }{
		{"both", password, "both"},
		{"password", password, "password"},
		{"both", secret, ""}, // which is for the path
		{"secret", secret + "2", ""},
		{"secret", "", ""},
		{"password", "", ""},
		{"", password, ""},
		{"nobody", password, ""},
		{"password", password + "p", ""},
		{"password", password[1:], ""},
		{"short", short, ""}, // a secret that can be guessed is never good
	} {
		if got := tenants.byPassword(c.name, c.password); (got == nil) != (c.want == "") || got != nil && got.name != c.want {
			t.Errorf("%q with password %q is %+v, want %q", c.name, c.password, got, c.want)
		}
	}
	for sent, want := range map[string]string{secret: "both", secret + "2": "secret", password: "", "": "", short: "", strings.ToUpper(secret): ""} {
		if got := tenants.byPathSecret(sent); (got == nil) != (want == "") || got != nil && got.name != want {
			t.Errorf("path secret %q is of %+v, want %q", sent, got, want)
		}
	}
}
