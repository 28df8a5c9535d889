package objectstore

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// clearEnv hides the settings of whoever runs the test.
func clearEnv(t *testing.T) {
	t.Helper()
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "SHIPLOG_S3_") || strings.HasPrefix(name, "AWS_") {
			t.Setenv(name, "")
		}
	}
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("AWS_CONFIG_FILE", filepath.Join(t.TempDir(), "none"))
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(t.TempDir(), "none"))
}

func TestConfigFromEnv(t *testing.T) {
	for _, c := range []struct {
		name   string
		env    map[string]string
		want   Config
		faults []string // what the error says; none: no error
	}{
		{name: "least", env: map[string]string{EnvBucket: "logs"}, want: Config{Bucket: "logs"}},
		{
			name: "all",
			env: map[string]string{
				EnvBucket: "logs", EnvPrefix: "a/b", EnvEndpoint: "https://s3.example.com:9000", EnvRegion: "eu-1", EnvPathStyle: "false",
				EnvSSE: "aws:kms", EnvKMSKeyID: "key", EnvStorageClass: "STANDARD_IA", EnvTags: "a=1, b=2=3",
				EnvCredentials: "/s3",
			},
			want: Config{
				CredentialsDir: "/s3",
				Bucket:         "logs", Prefix: "a/b", Endpoint: "https://s3.example.com:9000", Region: "eu-1", SSE: SSEKMS, KMSKeyID: "key",
				StorageClass: "STANDARD_IA", Tags: map[string]string{"a": "1", "b": "2=3"},
			},
		},
		{name: "path style is the default of an endpoint", env: map[string]string{EnvBucket: "logs", EnvEndpoint: "http://s3"}, want: Config{Bucket: "logs", Endpoint: "http://s3", PathStyle: true}},
		{name: "path style on AWS", env: map[string]string{EnvBucket: "logs", EnvPathStyle: "1"}, want: Config{Bucket: "logs", PathStyle: true}},
		{name: "the SDK's endpoint", env: map[string]string{EnvBucket: "logs", "AWS_ENDPOINT_URL_S3": "http://s3"}, want: Config{Bucket: "logs", Endpoint: "http://s3", PathStyle: true}},
		{
			name: "our endpoint before the SDK's", env: map[string]string{EnvBucket: "logs", EnvEndpoint: "http://ours", "AWS_ENDPOINT_URL": "http://theirs"},
			want: Config{Bucket: "logs", Endpoint: "http://ours", PathStyle: true},
		},
		{name: "nothing", faults: []string{EnvBucket}},
		{
			name: "every fault at once",
			env: map[string]string{
				EnvBucket: "No Bucket", EnvPrefix: "../x", EnvEndpoint: "s3.example.com", EnvPathStyle: "perhaps", EnvCAFile: "/does/not/exist",
				EnvSSE: "rot13", EnvKMSKeyID: "key", EnvStorageClass: "warm", EnvTags: "novalue",
			},
			faults: []string{EnvBucket, EnvPrefix, EnvEndpoint, EnvPathStyle, EnvCAFile, EnvSSE, "KMS key", EnvStorageClass, EnvTags},
		},
		{name: "tag twice", env: map[string]string{EnvBucket: "logs", EnvTags: "a=1,a=2"}, faults: []string{EnvTags}},
	} {
		t.Run(c.name, func(t *testing.T) {
			clearEnv(t)
			for k, v := range c.env {
				t.Setenv(k, v)
			}
			got, err := ConfigFromEnv()
			if len(c.faults) == 0 {
				if err != nil || !reflect.DeepEqual(got, c.want) {
					t.Fatalf("got %+v and %v, want %+v", got, err, c.want)
				}
				return
			}
			if err == nil {
				t.Fatal("no error")
			}
			for _, fault := range c.faults {
				if !strings.Contains(err.Error(), fault) {
					t.Errorf("error does not speak of %s: %v", fault, err)
				}
			}
		})
	}
}

func TestValidate(t *testing.T) {
	notPEM := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(notPEM, []byte("not PEM"), 0o600); err != nil {
		t.Fatal(err)
	}
	elevenTags := map[string]string{}
	for i := range 11 {
		elevenTags[fmt.Sprint(i)] = "x"
	}
	for _, c := range []struct {
		name   string
		change func(*Config)
		ok     bool
	}{
		{"least", func(*Config) {}, true},
		{"dotted bucket", func(c *Config) { c.Bucket = "a.b-c9" }, true},
		{"bucket with a slash", func(c *Config) { c.Bucket = "a/b/c" }, false},
		{"short bucket", func(c *Config) { c.Bucket = "ab" }, false},
		{"prefix", func(c *Config) { c.Prefix = "Team-1/logs_x/a=b" }, true},
		{"prefix with a final slash", func(c *Config) { c.Prefix = "logs/" }, true},
		{"prefix with a leading slash", func(c *Config) { c.Prefix = "/logs" }, false},
		{"prefix that is a slash", func(c *Config) { c.Prefix = "/" }, true},
		{"prefix with an empty part", func(c *Config) { c.Prefix = "a//b" }, false},
		{"prefix with dots", func(c *Config) { c.Prefix = "a/../b" }, false},
		{"prefix with a space", func(c *Config) { c.Prefix = "a b" }, false},
		{"prefix with a percent sign", func(c *Config) { c.Prefix = "a%2fb" }, false},
		{"endpoint", func(c *Config) { c.Endpoint = "http://127.0.0.1:9000" }, true},
		{"endpoint without a scheme", func(c *Config) { c.Endpoint = "127.0.0.1:9000" }, false},
		{"endpoint of another scheme", func(c *Config) { c.Endpoint = "ftp://s3" }, false},
		{"endpoint with a query", func(c *Config) { c.Endpoint = "http://s3?x=y" }, false},
		{"CA file that is not there", func(c *Config) { c.CAFile = "/does/not/exist" }, false},
		{"CA file that is no PEM", func(c *Config) { c.CAFile = notPEM }, false},
		{"CA bundle that is no PEM", func(c *Config) { c.CABundle = "x" }, false},
		{"no encryption", func(c *Config) { c.SSE = SSENone }, true},
		{"AES256", func(c *Config) { c.SSE = SSEAES256 }, true},
		{"KMS with the bucket's key", func(c *Config) { c.SSE = SSEKMS }, true},
		{"KMS key for AES256", func(c *Config) { c.SSE, c.KMSKeyID = SSEAES256, "key" }, false},
		{"ten tags", func(c *Config) { c.Tags = map[string]string{"a b": "c/d:e@f"} }, true},
		{"eleven tags", func(c *Config) { c.Tags = elevenTags }, false},
		{"tag with a comma", func(c *Config) { c.Tags = map[string]string{"a": "b,c"} }, false},
		{"tag without a key", func(c *Config) { c.Tags = map[string]string{"": "b"} }, false},
		{"long tag", func(c *Config) { c.Tags = map[string]string{"a": strings.Repeat("b", 257)} }, false},
		{"credentials", func(c *Config) { c.Credentials = &Credentials{AccessKeyID: "a", SecretAccessKey: "b"} }, true},
		{"half of the credentials", func(c *Config) { c.Credentials = &Credentials{AccessKeyID: "a"} }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := Config{Bucket: "logs"}
			c.change(&cfg)
			if err := cfg.Validate(); (err == nil) != c.ok {
				t.Errorf("error %v, want one: %v", err, !c.ok)
			}
		})
	}
}

func TestSecretsAreNotPrinted(t *testing.T) {
	const secret = "wJalrXUtnFEMI"
	cfg := Config{
		Bucket: "no bucket", Endpoint: "http://user:" + secret + "@host",
		Credentials: &Credentials{AccessKeyID: "AKIA", SecretAccessKey: secret, SessionToken: secret},
	}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "secret", cfg.Credentials.SecretAccessKey, "credentials", *cfg.Credentials)
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "secret", cfg.Credentials.SecretAccessKey, "credentials", *cfg.Credentials)
	b, err := json.Marshal(cfg.Credentials)
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]string{
		"error": cfg.Validate().Error(), "log": log.String(), "JSON": string(b),
		"%v": fmt.Sprintf("%v", *cfg.Credentials), "%+v": fmt.Sprintf("%+v", *cfg.Credentials), "%#v": fmt.Sprintf("%#v", *cfg.Credentials),
		"%s": fmt.Sprintf("%s", cfg.Credentials.SecretAccessKey), "%q": fmt.Sprintf("%q", cfg.Credentials.SecretAccessKey), "%x": fmt.Sprintf("%x", cfg.Credentials.SecretAccessKey),
		"%d": fmt.Sprintf("%d", cfg.Credentials.SessionToken),
	} {
		if strings.Contains(s, secret) || strings.Contains(s, fmt.Sprintf("%x", secret)) {
			t.Errorf("%s holds the secret: %s", name, s)
		}
	}
}
