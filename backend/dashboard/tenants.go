package dashboard

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/shiplog-dev/shiplog/internal/layout"
)

// MinSecret is the least length of a password or path secret, in bytes. A shorter one is never accepted, whatever the file says: what stands there is a plain SHA-256, from which a secret that a person has thought up can be found.
// "openssl rand -hex 32" makes one of 64.
const MinSecret = 32

// tenant is one Dashboard, or all that have the same rights.
type tenant struct {
	name             string
	namespaces       []string // "*" stands for all
	password, secret *[sha256.Size]byte
}

// Tenants are those who may read, and what.
type Tenants struct{ tenants []tenant }

// tenantsFile is the form of the file: YAML or JSON.
type tenantsFile struct {
	Tenants []struct {
		Name             string   `json:"name"`
		Namespaces       []string `json:"namespaces"`
		PasswordSHA256   string   `json:"passwordSHA256"`
		PathSecretSHA256 string   `json:"pathSecretSHA256"`
	} `json:"tenants"`
}

// ReadTenants reads the file that names the tenants:
//
//	tenants:
//	- name: team-a                          # the user of Basic authentication
//	  namespaces: [team-a-ci, team-a-prod]  # or ["*"]: every namespace
//	  passwordSHA256: 9f86d0…               # of the password, in hex; with it http://team-a:PASSWORD@HOST/external-logs
//	  pathSecretSHA256: 1b4f0e…             # of the secret, in hex; with it http://HOST/external-logs/SECRET
//
// A tenant has one of the last two or both. The file holds no secret, but see MinSecret.
func ReadTenants(file string) (*Tenants, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the Dashboard's tenants: %w", err)
	}
	t, err := parseTenants(b)
	if err != nil {
		return nil, fmt.Errorf("read the Dashboard's tenants in %s: %w", file, err)
	}
	return t, nil
}

func parseTenants(b []byte) (*Tenants, error) {
	var f tenantsFile
	if err := yaml.UnmarshalStrict(b, &f); err != nil {
		return nil, err
	}
	if len(f.Tenants) == 0 {
		return nil, errors.New("there are none: nobody could read")
	}
	out := &Tenants{}
	for i, given := range f.Tenants {
		t := tenant{name: given.Name, namespaces: given.Namespaces}
		bad := func(err error) (*Tenants, error) {
			return nil, fmt.Errorf("tenant %d, %q: %w", i+1, t.name, err)
		}
		if t.name == "" || strings.Contains(t.name, ":") { // which ends the user's name in Basic authentication
			return bad(errors.New("the name must be there, and have no colon"))
		}
		if len(t.namespaces) == 0 {
			return bad(errors.New(`has no namespaces: name them, or "*" for all`))
		}
		for _, n := range t.namespaces {
			if err := layout.CheckName("namespace", n); err != nil && n != "*" {
				return bad(err)
			}
		}
		var err error
		if t.password, err = parseHash("passwordSHA256", given.PasswordSHA256); err != nil {
			return bad(err)
		}
		if t.secret, err = parseHash("pathSecretSHA256", given.PathSecretSHA256); err != nil {
			return bad(err)
		}
		if t.password == nil && t.secret == nil {
			return bad(errors.New("has neither passwordSHA256 nor pathSecretSHA256"))
		}
		for _, other := range out.tenants {
			if other.name == t.name {
				return bad(errors.New("the name is there twice"))
			}
			if t.secret != nil && other.secret != nil && *t.secret == *other.secret {
				return bad(fmt.Errorf("has the path secret of tenant %q: which of them is meant?", other.name))
			}
		}
		out.tenants = append(out.tenants, t)
	}
	return out, nil
}

// empty is what a command prints that was given no secret.
var empty = sha256.Sum256(nil)

func parseHash(field, text string) (*[sha256.Size]byte, error) {
	if text == "" {
		return nil, nil
	}
	b, err := hex.DecodeString(text)
	if err != nil || len(b) != sha256.Size { // not %w: it would show a part of what may be a secret
		return nil, fmt.Errorf("%s is not a SHA-256 in 64 hexadecimal digits, as sha256sum prints it", field)
	}
	hash := [sha256.Size]byte(b)
	if hash == empty {
		return nil, fmt.Errorf("%s is that of an empty text", field)
	}
	return &hash, nil
}

// byPassword finds the tenant of a name and password, or nil. It takes the same time whichever of them is wrong.
func (t *Tenants) byPassword(name, password string) *tenant {
	return t.match(password, func(o *tenant) *[sha256.Size]byte {
		if o.name != name { // names are no secrets
			return nil
		}
		return o.password
	})
}

// byPathSecret finds the tenant of a path secret, or nil.
func (t *Tenants) byPathSecret(secret string) *tenant {
	return t.match(secret, func(o *tenant) *[sha256.Size]byte { return o.secret })
}

// match compares what somebody has sent with what each tenant has, for all of them, whoever it fits.
func (t *Tenants) match(sent string, has func(*tenant) *[sha256.Size]byte) *tenant {
	hash := sha256.Sum256([]byte(sent))
	var found *tenant
	for i := range t.tenants {
		o := &t.tenants[i]
		want := has(o)
		if want == nil {
			want = &empty // no secret can be empty, see MinSecret
		}
		if subtle.ConstantTimeCompare(hash[:], want[:]) == 1 && len(sent) >= MinSecret {
			found = o
		}
	}
	return found
}

// mayRead says whether the tenant may read a namespace.
func (t *tenant) mayRead(namespace string) bool {
	return slices.Contains(t.namespaces, "*") || slices.Contains(t.namespaces, namespace)
}
