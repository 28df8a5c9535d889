// Package objectstore owns the traffic with the bucket: put, get and list objects, and sign upload tickets. It is the only package that imports the
// AWS SDK. Keys are relative to the prefix that the operator chose; the package adds and strips it, so no other package knows it.
//
// Retries are the SDK's, here and nowhere else: a caller that gets an error gives up, or lets a person or another process try again later.
package objectstore

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go"
)

const (
	maxAttempts = 4
	maxBackoff  = 3 * time.Second
	// maxPage is the most entries that S3 lists at once.
	maxPage = 1000
	// headerTimeout bounds the wait for an answer after a request is sent; see stallTimeout for its body.
	headerTimeout = 30 * time.Second
)

// ErrRange is wrapped by GetRange's error where the range begins at or behind the object's end.
var ErrRange = errors.New("range is outside of the object")

// Store is one bucket. Its methods may be called at the same time. Every error names the key and the bucket.
type Store struct {
	cfg         Config
	prefix      string // "" or with a final slash
	caBundle    string
	client      *s3.Client
	credentials aws.CredentialsProvider // the client's: *keyFiles, or the chain; nil without any
	transport   *http.Transport
	clock       *clock   // over transport
	answers     *answers // over clock
}

// New makes a Store. It sends nothing yet, apart from what the credential chain needs.
func New(ctx context.Context, cfg Config) (*Store, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	caBundle, err := cfg.caBundle()
	if err != nil {
		return nil, err
	}
	var opts []func(*config.LoadOptions) error
	if cfg.Region != "" {
		opts = append(opts, config.WithRegion(cfg.Region))
	}
	if cr := cfg.Credentials; cr != nil {
		opts = append(opts, config.WithCredentialsProvider(
			credentials.NewStaticCredentialsProvider(cr.AccessKeyID, string(cr.SecretAccessKey), string(cr.SessionToken))))
	}
	base, err := config.LoadDefaultConfig(ctx, opts...)
	if err != nil {
		return nil, fmt.Errorf("load the AWS settings: check the AWS_* variables: %w", err)
	}
	if cfg.Credentials == nil && cfg.CredentialsDir != "" {
		// Not one of the SDK's options: what is given there is cached for as long as the process lives.
		base.Credentials = &keyFiles{dir: cfg.CredentialsDir, chain: base.Credentials}
	}
	if base.Region == "" && cfg.Endpoint != "" {
		base.Region = "us-east-1" // what stores other than AWS take where nobody says otherwise
	}
	if base.Region == "" {
		return nil, fmt.Errorf("no region for bucket %q: set %s or AWS_REGION", cfg.Bucket, EnvRegion)
	}

	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 64 // the default of 2 means a handshake for nearly every request of a busy service
	transport.ResponseHeaderTimeout = headerTimeout
	transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	if caBundle != "" {
		transport.TLSClientConfig.RootCAs = x509.NewCertPool()
		transport.TLSClientConfig.RootCAs.AppendCertsFromPEM([]byte(caBundle))
	}

	clocked := &clock{RoundTripper: transport}
	bounded := &answers{clocked, stallTimeout}
	client := s3.NewFromConfig(base, func(o *s3.Options) {
		// For this client only: the credential chain talks to AWS, whatever signs the store's certificate.
		o.HTTPClient = &http.Client{
			Transport: bounded,
			// A redirected request carries a signature for the wrong host. The SDK makes a clear error of the 3xx answer.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
		o.Retryer = retry.NewStandard(func(r *retry.StandardOptions) {
			r.MaxAttempts = maxAttempts
			r.MaxBackoff = maxBackoff
		})
		o.UsePathStyle = cfg.PathStyle
		if cfg.Endpoint != "" {
			o.BaseEndpoint = aws.String(cfg.Endpoint)
			// The SDK's default since s3 v1.73.0 adds a checksum trailer in aws-chunked framing, which several stores refuse, or store as content.
			o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
			o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
		}
	})
	return &Store{
		cfg: cfg, prefix: cfg.keyPrefix(), caBundle: caBundle, client: client,
		credentials: base.Credentials, transport: transport, clock: clocked, answers: bounded,
	}, nil
}

// Close closes idle connections. The Store can still be used.
func (s *Store) Close() { s.transport.CloseIdleConnections() }

// EnsureBucket creates the bucket where it is missing. It is for trials and tests: an operator makes the bucket with its own rules.
func (s *Store) EnsureBucket(ctx context.Context) error {
	in := &s3.CreateBucketInput{Bucket: &s.cfg.Bucket}
	// AWS takes no location for us-east-1 and wants one for every other region.
	if region := s.client.Options().Region; s.cfg.Endpoint == "" && region != "us-east-1" {
		in.CreateBucketConfiguration = &types.CreateBucketConfiguration{LocationConstraint: types.BucketLocationConstraint(region)}
	}
	_, err := s.client.CreateBucket(ctx, in)
	if code := errorCode(err); code == "BucketAlreadyOwnedByYou" || code == "BucketAlreadyExists" {
		_, err = s.client.HeadBucket(ctx, &s3.HeadBucketInput{Bucket: &s.cfg.Bucket}) // it may be someone else's
	}
	if err != nil {
		return s.fail("create the bucket for", "", err)
	}
	return nil
}

// Put writes an object, or overwrites it. When it returns nil the object is durable.
func (s *Store) Put(ctx context.Context, key string, body []byte) error {
	in := &s3.PutObjectInput{
		Bucket:        &s.cfg.Bucket,
		Key:           aws.String(s.prefix + key),
		Body:          bytes.NewReader(body),
		ContentLength: aws.Int64(int64(len(body))),
		StorageClass:  types.StorageClass(s.cfg.StorageClass),
	}
	if s.cfg.SSE != SSENone {
		in.ServerSideEncryption = types.ServerSideEncryption(s.cfg.SSE)
	}
	if s.cfg.KMSKeyID != "" {
		in.SSEKMSKeyId = &s.cfg.KMSKeyID
	}
	if len(s.cfg.Tags) > 0 {
		q := url.Values{}
		for k, v := range s.cfg.Tags {
			q.Set(k, v)
		}
		in.Tagging = aws.String(q.Encode())
	}
	if _, err := s.client.PutObject(ctx, in); err != nil {
		return s.fail("put", key, err)
	}
	return nil
}

// Get opens the object. The caller closes the reader. The error wraps fs.ErrNotExist where there is no such object.
func (s *Store) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	return s.get(ctx, key, "")
}

// GetRange opens length bytes of the object from offset on, or fewer where the object ends before; length -1 means to the end. The error wraps
// fs.ErrNotExist where there is no such object, and ErrRange where offset is not within it.
func (s *Store) GetRange(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if offset < 0 || length == 0 || length < -1 {
		return nil, s.fail("get", key, fmt.Errorf("%w: %d bytes from %d", ErrRange, length, offset))
	}
	if length < 0 {
		return s.get(ctx, key, fmt.Sprintf("bytes=%d-", offset))
	}
	return s.get(ctx, key, fmt.Sprintf("bytes=%d-%d", offset, offset+length-1))
}

func (s *Store) get(ctx context.Context, key, byteRange string) (io.ReadCloser, error) {
	in := &s3.GetObjectInput{Bucket: &s.cfg.Bucket, Key: aws.String(s.prefix + key)}
	if byteRange != "" {
		in.Range = &byteRange
	}
	out, err := s.client.GetObject(ctx, in)
	if err != nil {
		return nil, s.fail("get", key, err)
	}
	if byteRange != "" && out.ContentRange == nil {
		out.Body.Close()
		return nil, s.fail("get", key, fmt.Errorf("the store ignored the range %s and sent the whole object", byteRange))
	}
	return &body{ReadCloser: out.Body, store: s, key: key}, nil
}

// Delete removes the object. That there is none is no error: S3 does not say.
func (s *Store) Delete(ctx context.Context, key string) error {
	if _, err := s.client.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &s.cfg.Bucket, Key: aws.String(s.prefix + key)}); err != nil && errorCode(err) != "NoSuchKey" {
		return s.fail("delete", key, err)
	}
	return nil
}

// body adds the key to the errors of a stream that breaks off.
type body struct {
	io.ReadCloser
	store *Store
	key   string
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		err = b.store.fail("read", b.key, err)
	}
	return n, err
}

// Entry is one line of a listing.
type Entry struct {
	Key          string    // with IsPrefix: the common prefix, which ends with the delimiter
	Size         int64     // bytes; 0 with IsPrefix
	LastModified time.Time // by the store's clock, in whole seconds; zero with IsPrefix
	ETag         string    // of what is in it, with its quotes; "" with IsPrefix, and of some stores
	IsPrefix     bool      // stands for all keys that begin with Key
}

// List yields the objects whose key begins with prefix, in the order of their keys' bytes. With a delimiter, keys that hold it behind the prefix are
// rolled up into one entry with IsPrefix. Only entries that sort behind startAfter are yielded, and at most limit of them; limit 0 means all. An error
// is the last thing yielded.
func (s *Store) List(ctx context.Context, prefix, delimiter, startAfter string, limit int) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		in := &s3.ListObjectsV2Input{
			Bucket: &s.cfg.Bucket, Prefix: aws.String(s.prefix + prefix),
			EncodingType: types.EncodingTypeUrl, // a key may hold what XML cannot
		}
		if delimiter != "" {
			in.Delimiter = &delimiter
		}
		if startAfter != "" {
			in.StartAfter = aws.String(s.prefix + startAfter)
		}
		if limit > 0 {
			in.MaxKeys = aws.Int32(int32(min(limit, maxPage)))
		}
		n := 0
		for {
			page, err := s.client.ListObjectsV2(ctx, in)
			if err != nil {
				yield(Entry{}, s.fail("list", prefix, err))
				return
			}
			s.decodeKeys(page)
			for e := range s.merge(page) {
				// Stores disagree on whether a common prefix that begins before startAfter is listed.
				if e.Key <= startAfter {
					continue
				}
				if !yield(e, nil) {
					return
				}
				if n++; n == limit {
					return
				}
			}
			if !aws.ToBool(page.IsTruncated) {
				return
			}
			if aws.ToString(page.NextContinuationToken) == "" {
				yield(Entry{}, s.fail("list", prefix, errors.New("the store says that there is more, but not from where")))
				return
			}
			in.ContinuationToken = page.NextContinuationToken
		}
	}
}

// decodeKeys undoes the encoding of a page's keys, where the store has encoded them. A key that
// cannot have been encoded stays as it is.
func (s *Store) decodeKeys(page *s3.ListObjectsV2Output) {
	if page.EncodingType != types.EncodingTypeUrl {
		return
	}
	decode := func(key *string) *string {
		decoded, err := url.QueryUnescape(aws.ToString(key))
		if err != nil || !strings.HasPrefix(decoded, s.prefix) {
			return key
		}
		return &decoded
	}
	for i := range page.Contents {
		page.Contents[i].Key = decode(page.Contents[i].Key)
	}
	for i := range page.CommonPrefixes {
		page.CommonPrefixes[i].Prefix = decode(page.CommonPrefixes[i].Prefix)
	}
}

// merge puts the two sorted lists of a page into one.
func (s *Store) merge(page *s3.ListObjectsV2Output) iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		objects, prefixes := page.Contents, page.CommonPrefixes
		for len(objects) > 0 || len(prefixes) > 0 {
			var e Entry
			if len(prefixes) == 0 || len(objects) > 0 && aws.ToString(objects[0].Key) < aws.ToString(prefixes[0].Prefix) {
				o := objects[0]
				e = Entry{Key: aws.ToString(o.Key), Size: aws.ToInt64(o.Size),
					LastModified: aws.ToTime(o.LastModified), ETag: aws.ToString(o.ETag)}
				objects = objects[1:]
			} else {
				e = Entry{Key: aws.ToString(prefixes[0].Prefix), IsPrefix: true}
				prefixes = prefixes[1:]
			}
			e.Key = strings.TrimPrefix(e.Key, s.prefix)
			if !yield(e) {
				return
			}
		}
	}
}

// fail makes the error of an operation on a key.
func (s *Store) fail(op, key string, err error) error {
	code := errorCode(err)
	switch code {
	case "NoSuchKey":
		err = fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	case "InvalidRange":
		err = fmt.Errorf("%w: %w", ErrRange, err)
	}
	if hint := hints[code]; hint != "" {
		err = fmt.Errorf("%s: %w", hint, err)
	}
	return fmt.Errorf("S3 %s %q in bucket %q at %s: %w", op, s.prefix+key, s.cfg.Bucket, cmp.Or(s.cfg.Endpoint, "AWS"), err)
}

// hints say what to do about the errors that an operator can mend.
var hints = map[string]string{
	"NoSuchBucket":          "create the bucket, or set " + EnvBucket,
	"AccessDenied":          "allow the service's identity s3:PutObject, s3:GetObject and s3:ListBucket, and for compaction s3:DeleteObject",
	"InvalidAccessKeyId":    "check AWS_ACCESS_KEY_ID",
	"SignatureDoesNotMatch": "check AWS_SECRET_ACCESS_KEY and " + EnvRegion,
	"RequestTimeTooSkewed":  "set this machine's clock",
	"PermanentRedirect":     "the bucket is elsewhere: set " + EnvRegion + " or " + EnvEndpoint,
}

// errorCode is S3's name of the error, or "".
func errorCode(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}
