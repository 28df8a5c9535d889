package objectstore

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/shiplog-dev/shiplog/internal/ticket"
)

// ErrCredentialsExpire is wrapped by SignUpload's error where the store's own credentials are about to expire.
var ErrCredentialsExpire = errors.New("credentials are about to expire")

var errNoCredentials = errors.New(
	"no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the pod an identity")

// maxDownload is the longest life of a signed address that S3 allows.
const maxDownload = 7 * 24 * time.Hour

// credentialsReserve is the rest of their life at which credentials are asked for anew before they sign.
const credentialsReserve = 10 * time.Minute

// SignUpload makes a ticket: an S3 POST policy that lets its holder write objects of up to maxBytes under prefix, for the lifetime or until the
// store's own credentials expire, whichever is first. prefix ends with a slash. Signing needs no request to the store.
//
// Encryption, storage class and tags are conditions of the policy, so a holder can neither change them nor leave them out. The rules are in
// https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-HTTPPOSTConstructPolicy.html
func (s *Store) SignUpload(ctx context.Context, prefix string, maxBytes int64, lifetime time.Duration) (ticket.Ticket, error) {
	if !strings.HasSuffix(prefix, "/") || prefix == "/" || maxBytes <= 0 || lifetime < time.Second {
		return ticket.Ticket{}, s.fail("sign uploads under", prefix, fmt.Errorf(
			"need a prefix with a final slash, a positive size (%d) and at least a second (%s)", maxBytes, lifetime))
	}
	creds, err := s.signingCredentials(ctx)
	if err != nil {
		return ticket.Ticket{}, s.fail("sign uploads under", prefix, err)
	}
	// Whole seconds, since that is all that the policy's time has. What the ticket says must not be later than what the store believes.
	issued := time.Now().UTC().Truncate(time.Second)
	expires := issued.Add(lifetime)
	if creds.CanExpire && creds.Expires.Before(expires) {
		expires = creds.Expires.UTC().Truncate(time.Second)
		if !expires.After(issued) {
			return ticket.Ticket{}, s.fail("sign uploads under", prefix, fmt.Errorf("%w, at %s", ErrCredentialsExpire, creds.Expires.UTC()))
		}
	}

	full := s.prefix + prefix
	fixed := s.fixedFields()
	conditions := []any{
		[]any{"starts-with", "$key", full},
		[]any{"content-length-range", 0, maxBytes},
	}
	for _, k := range slices.Sorted(maps.Keys(fixed)) {
		conditions = append(conditions, map[string]string{k: fixed[k]})
	}
	// The very credentials whose end bounds the ticket: the chain may hand out others a moment later. The options of PresignPostObject itself have a
	// field for this too, which the SDK ignores.
	signer := s3.NewPresignClient(s.client, s3.WithPresignClientFromClientOptions(func(o *s3.Options) {
		o.Credentials = credentials.StaticCredentialsProvider{Value: creds}
	}))
	signed, err := signer.PresignPostObject(ctx, &s3.PutObjectInput{Bucket: &s.cfg.Bucket, Key: aws.String(full)}, func(o *s3.PresignPostOptions) {
		o.Expires = time.Until(expires)
		o.Conditions = conditions
	})
	if err != nil {
		return ticket.Ticket{}, s.fail("sign uploads under", prefix, err)
	}
	fields := signed.Values
	maps.Copy(fields, fixed)
	delete(fields, "key") // every upload has its own
	t := ticket.Ticket{
		URL: signed.URL, Fields: fields, Prefix: full, MaxBytes: maxBytes, Issued: issued, Expires: expires, CABundle: s.caBundle,
		Proxy: s.proxyTo(signed.URL),
	}
	return t, t.Validate()
}

// proxyTo is the proxy through which this process reaches an address of the store, by HTTPS_PROXY,
// HTTP_PROXY and NO_PROXY of its environment: shippers take the same way. One that wants a password
// is kept from them, and they know no other kind than HTTP proxies.
func (s *Store) proxyTo(address string) string {
	if s.transport.Proxy == nil {
		return ""
	}
	to, err := url.Parse(address)
	if err != nil {
		return ""
	}
	proxy, err := s.transport.Proxy(&http.Request{URL: to})
	if err != nil || proxy == nil || !ticket.IsProxy(proxy.String()) {
		return ""
	}
	return proxy.String()
}

// SignDownload makes an address at which one object can be had with a GET, for the lifetime or
// until the store's own credentials expire, whichever is first. Signing needs no request to the
// store.
func (s *Store) SignDownload(
	ctx context.Context, key string, lifetime time.Duration,
) (address string, err error) {
	creds, err := s.signingCredentials(ctx)
	if err != nil {
		return "", s.fail("sign a download of", key, err)
	}
	options := func(o *s3.Options) {
		o.Credentials = credentials.StaticCredentialsProvider{Value: creds}
		// Else a header for it would be signed, which whoever has the address would have to send.
		o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
	}
	client := s3.NewPresignClient(s.client, s3.WithPresignClientFromClientOptions(options))
	in := &s3.GetObjectInput{Bucket: &s.cfg.Bucket, Key: aws.String(s.prefix + key)}
	signed, err := client.PresignGetObject(ctx, in, s3.WithPresignExpires(min(lifetime, maxDownload)))
	if err != nil {
		return "", s.fail("sign a download of", key, err)
	}
	return signed.URL, nil
}

// signingCredentials returns credentials that last, if they can be had: a ticket dies with the credentials that signed it, and the SDK hands out
// the same ones up to their end.
func (s *Store) signingCredentials(ctx context.Context) (aws.Credentials, error) {
	provider := s.credentials
	if files, ok := provider.(*keyFiles); ok {
		var err error
		if provider, err = files.provider(); err != nil {
			return aws.Credentials{}, err
		}
	}
	if provider == nil {
		return aws.Credentials{}, errNoCredentials
	}
	creds, err := provider.Retrieve(ctx)
	cache, ok := provider.(*aws.CredentialsCache)
	if ok && err == nil && creds.CanExpire && time.Until(creds.Expires) < credentialsReserve {
		cache.Invalidate()
		creds, err = cache.Retrieve(ctx)
	}
	if err != nil {
		return creds, fmt.Errorf("get credentials: %w", err)
	}
	return creds, nil
}

// fixedFields are the form fields that say how objects are stored.
func (s *Store) fixedFields() map[string]string {
	f := map[string]string{}
	if s.cfg.SSE != "" && s.cfg.SSE != SSENone {
		f["x-amz-server-side-encryption"] = s.cfg.SSE
	}
	if s.cfg.KMSKeyID != "" {
		f["x-amz-server-side-encryption-aws-kms-key-id"] = s.cfg.KMSKeyID
	}
	if s.cfg.StorageClass != "" {
		f["x-amz-storage-class"] = s.cfg.StorageClass
	}
	if len(s.cfg.Tags) > 0 {
		f["tagging"] = taggingXML(s.cfg.Tags)
	}
	return f
}

// taggingXML is the form's way to write tags, see https://docs.aws.amazon.com/AmazonS3/latest/API/RESTObjectPOST.html
func taggingXML(tags map[string]string) string {
	type tag struct{ Key, Value string }
	var t struct {
		XMLName xml.Name `xml:"Tagging"`
		Tags    []tag    `xml:"TagSet>Tag"`
	}
	for _, k := range slices.Sorted(maps.Keys(tags)) {
		t.Tags = append(t.Tags, tag{k, tags[k]})
	}
	b, err := xml.Marshal(t)
	if err != nil { // two strings per tag: there is nothing in it that could fail
		panic(err)
	}
	return string(b)
}
