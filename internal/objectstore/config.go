package objectstore

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/shiplog-dev/shiplog/internal/ticket"
)

// Secret is text that must not be printed. Every way of formatting it gives "[redacted]".
type Secret string

const redacted = "[redacted]"

// Format implements fmt.Formatter, so that no verb prints the secret.
func (Secret) Format(f fmt.State, _ rune) { fmt.Fprint(f, redacted) }

// MarshalText keeps the secret out of JSON.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

// LogValue keeps the secret out of log/slog.
func (Secret) LogValue() slog.Value { return slog.StringValue(redacted) }

// Credentials are a fixed key pair, with a session token where they are temporary.
type Credentials struct {
	AccessKeyID     string
	SecretAccessKey Secret
	SessionToken    Secret
}

// The values of Config.SSE.
const (
	SSENone   = "none"
	SSEAES256 = "AES256"
	SSEKMS    = "aws:kms"
)

// Config says where the bucket is and how objects are written to it. The zero value of a field is its default.
type Config struct {
	// Bucket must exist.
	Bucket string
	// Prefix is put before every key; "" puts nothing. A final slash is added where it lacks one.
	Prefix string
	// Endpoint is the address of a store other than AWS, such as https://minio.example.com:9000; "" means AWS. The shippers in the tenants' pods
	// must reach it under the same address.
	Endpoint string
	// Region is what signatures are made for; "" means AWS_REGION, and us-east-1 at a custom endpoint.
	Region string
	// PathStyle puts the bucket in the path of an address, not in its host name.
	PathStyle bool
	// CABundle holds PEM certificates that sign the store's certificate, and CAFile is a file of them. Both empty means the system's roots.
	CABundle string
	CAFile   string
	// SSE is how the store encrypts objects: SSENone (or ""), SSEAES256 or SSEKMS. KMSKeyID is the key for SSEKMS; "" means the bucket's.
	SSE      string
	KMSKeyID string
	// StorageClass, such as STANDARD_IA; "" means the bucket's.
	StorageClass string
	// Tags are set on every object.
	Tags map[string]string
	// Credentials nil means CredentialsDir, and then the SDK's default chain: AWS_* variables, web
	// identity, pod identity, instance role.
	Credentials *Credentials
	// CredentialsDir is a folder with the files AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, for
	// keys that are temporary, AWS_SESSION_TOKEN. They may change at any time, and they need not be
	// there. "" means none.
	CredentialsDir string
}

// The environment variables that ConfigFromEnv reads.
const (
	EnvBucket       = "SHIPLOG_S3_BUCKET"
	EnvPrefix       = "SHIPLOG_S3_PREFIX"
	EnvEndpoint     = "SHIPLOG_S3_ENDPOINT"
	EnvRegion       = "SHIPLOG_S3_REGION"
	EnvPathStyle    = "SHIPLOG_S3_PATH_STYLE"
	EnvCAFile       = "SHIPLOG_S3_CA_FILE"
	EnvSSE          = "SHIPLOG_S3_SSE"
	EnvKMSKeyID     = "SHIPLOG_S3_KMS_KEY_ID"
	EnvStorageClass = "SHIPLOG_S3_STORAGE_CLASS"
	EnvTags         = "SHIPLOG_S3_TAGS"
	EnvCredentials  = "SHIPLOG_S3_CREDENTIALS_DIR"
)

// ConfigFromEnv reads the SHIPLOG_S3_* variables and validates what they say. Tags are "key=value,key=value". The path style is the default with a
// custom endpoint, since few of them have a DNS name per bucket. Credentials are those in
// EnvCredentials, or left to the SDK's default chain.
func ConfigFromEnv() (Config, error) {
	c := Config{
		Bucket: os.Getenv(EnvBucket),
		Prefix: os.Getenv(EnvPrefix),
		// The SDK would honour its own variables, unseen by the code here that treats a custom endpoint differently.
		Endpoint:     cmp.Or(os.Getenv(EnvEndpoint), os.Getenv("AWS_ENDPOINT_URL_S3"), os.Getenv("AWS_ENDPOINT_URL")),
		Region:       os.Getenv(EnvRegion),
		CAFile:       os.Getenv(EnvCAFile),
		SSE:          os.Getenv(EnvSSE),
		KMSKeyID:     os.Getenv(EnvKMSKeyID),
		StorageClass: os.Getenv(EnvStorageClass),

		CredentialsDir: os.Getenv(EnvCredentials),
	}
	c.PathStyle = c.Endpoint != ""
	var errs []error
	if v := os.Getenv(EnvPathStyle); v != "" {
		b, err := strconv.ParseBool(v)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s=%q is neither true nor false", EnvPathStyle, v))
		}
		c.PathStyle = b
	}
	tags, err := parseTags(os.Getenv(EnvTags))
	if err != nil {
		errs = append(errs, fmt.Errorf("%s: %w", EnvTags, err))
	}
	c.Tags = tags
	return c, errors.Join(append(errs, c.Validate())...)
}

// parseTags reads "key=value,key=value".
func parseTags(s string) (map[string]string, error) {
	if s == "" {
		return nil, nil
	}
	tags := map[string]string{}
	for pair := range strings.SplitSeq(s, ",") {
		k, v, ok := strings.Cut(strings.TrimSpace(pair), "=")
		if !ok || k == "" {
			return nil, fmt.Errorf("%q is not like key=value", pair)
		}
		if _, twice := tags[k]; twice {
			return nil, fmt.Errorf("key %q is there twice", k)
		}
		tags[k] = v
	}
	return tags, nil
}

var (
	// S3 allows nearly all of Unicode in a key. The prefix keeps to what every store, proxy and file system takes.
	prefixPart = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._=+@-]*$`)
	// https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html, less the rules that only matter to AWS.
	bucketName = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)
	// https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-tagging.html
	tagText = regexp.MustCompile(`^[A-Za-z0-9 +=._:/@-]*$`)
	upper   = regexp.MustCompile(`^[A-Z0-9_]+$`)
)

// maxTags is S3's limit for one object.
const maxTags = 10

// Validate returns every fault at once. It reads CAFile, and reaches no network.
func (c Config) Validate() error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !bucketName.MatchString(c.Bucket) {
		fault("bucket %q is not a bucket's name: set %s", c.Bucket, EnvBucket)
	}
	if p := strings.TrimSuffix(c.Prefix, "/"); p != "" {
		for part := range strings.SplitSeq(p, "/") {
			if !prefixPart.MatchString(part) {
				fault("prefix %q: part %q is not letters, digits and ._=+@- with a letter or digit first: set %s", c.Prefix, part, EnvPrefix)
			}
		}
	}
	if c.Endpoint != "" {
		u, err := url.Parse(c.Endpoint)
		switch {
		// The address is not printed where it may hold a password.
		case err != nil:
			fault("endpoint is not an address like https://s3.example.com: set %s", EnvEndpoint)
		case u.User != nil:
			fault("endpoint holds a user name: set %s without it, and AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY", EnvEndpoint)
		case (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || u.RawQuery != "" || u.Fragment != "":
			fault("endpoint %q is not an address like https://s3.example.com: set %s", c.Endpoint, EnvEndpoint)
		}
	}
	if c.CABundle != "" && c.CAFile != "" {
		fault("CABundle and CAFile are both set: set one")
	}
	if _, err := c.caBundle(); err != nil {
		errs = append(errs, err)
	}
	switch c.SSE {
	case "", SSENone, SSEAES256, SSEKMS:
	default:
		fault("server-side encryption %q is not %s, %s or %s: set %s", c.SSE, SSENone, SSEAES256, SSEKMS, EnvSSE)
	}
	if c.KMSKeyID != "" && c.SSE != SSEKMS {
		fault("a KMS key needs server-side encryption %s: set %s", SSEKMS, EnvSSE)
	}
	if c.StorageClass != "" && !upper.MatchString(c.StorageClass) {
		fault("storage class %q is not like STANDARD_IA: set %s", c.StorageClass, EnvStorageClass)
	}
	if len(c.Tags) > maxTags {
		fault("%d tags, S3 allows %d: set %s", len(c.Tags), maxTags, EnvTags)
	}
	for _, k := range slices.Sorted(maps.Keys(c.Tags)) {
		if v := c.Tags[k]; k == "" || len(k) > 128 || len(v) > 256 || !tagText.MatchString(k) || !tagText.MatchString(v) {
			fault("tag %q=%q is not within S3's limits (128 and 256 letters, digits, spaces and +-=._:/@): set %s", k, v, EnvTags)
		}
	}
	if cr := c.Credentials; cr != nil && (cr.AccessKeyID == "" || cr.SecretAccessKey == "") {
		fault("credentials need both an access key id and a secret")
	}
	if len(errs) > 0 {
		return fmt.Errorf("S3 configuration: %w", errors.Join(errs...))
	}
	return nil
}

// caBundle returns the PEM certificates, checked, or "".
func (c Config) caBundle() (string, error) {
	bundle, from := c.CABundle, "the CA bundle"
	if c.CAFile != "" {
		b, err := os.ReadFile(c.CAFile)
		if err != nil {
			return "", fmt.Errorf("read the certificates that sign the store's: set %s: %w", EnvCAFile, err)
		}
		bundle, from = string(b), c.CAFile
	}
	if len(bundle) > ticket.MaxCABundle {
		return "", fmt.Errorf("%s has %d bytes, and each upload ticket carries it, "+
			"with no more than %d: name a file of only the CA that signs the store's certificate in %s",
			from, len(bundle), ticket.MaxCABundle, EnvCAFile)
	}
	if (bundle != "" || c.CAFile != "") && !x509.NewCertPool().AppendCertsFromPEM([]byte(bundle)) {
		return "", fmt.Errorf("%s holds no PEM certificate: set %s", from, EnvCAFile)
	}
	return bundle, nil
}

// keyPrefix is what is put before every key: empty, or with a final slash.
func (c Config) keyPrefix() string {
	if p := strings.TrimSuffix(c.Prefix, "/"); p != "" {
		return p + "/"
	}
	return ""
}
