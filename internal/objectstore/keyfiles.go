package objectstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
)

// The files of a credentials folder, named as the variables that hold the same.
const (
	keyIDFile   = "AWS_ACCESS_KEY_ID"
	secretFile  = "AWS_SECRET_ACCESS_KEY"
	sessionFile = "AWS_SESSION_TOKEN"
)

// keyFiles are keys in a folder, such as a Secret that is mounted. They are read for each request,
// so that keys that are rotated are used from then on. Where there are none, the chain has them.
type keyFiles struct {
	dir   string
	chain aws.CredentialsProvider
}

// Retrieve implements aws.CredentialsProvider.
func (k *keyFiles) Retrieve(ctx context.Context) (aws.Credentials, error) {
	provider, err := k.provider()
	if err != nil {
		return aws.Credentials{}, err
	}
	return provider.Retrieve(ctx)
}

// provider returns who has the keys now: the files, or the chain where there are none.
func (k *keyFiles) provider() (aws.CredentialsProvider, error) {
	creds, ok, err := k.read()
	switch {
	case err != nil:
		return nil, err
	case ok:
		return credentials.StaticCredentialsProvider{Value: creds}, nil
	case k.chain == nil:
		return nil, errNoCredentials
	}
	return k.chain, nil
}

// keyReads is how often the keys are read at most where they change meanwhile.
const keyReads = 3

// read returns the keys in the folder, if there are any.
func (k *keyFiles) read() (creds aws.Credentials, ok bool, err error) {
	dir := k.present()
	for range keyReads {
		creds, ok, err = k.readFrom(dir)
		before := dir
		if dir = k.present(); dir == before {
			return creds, ok, err
		}
	}
	return aws.Credentials{}, false,
		fmt.Errorf("read the store's keys: %s changes all the time", k.dir)
}

// present returns the folder that the files are in now. The kubelet changes all files of a Secret
// at once: it lets ..data point to another folder, and removes the one before. Read by their own
// names, one file might be of before and the next of after. Read from a folder that is removed
// meanwhile, there seem to be none.
func (k *keyFiles) present() string {
	dir, err := filepath.EvalSymlinks(filepath.Join(k.dir, "..data"))
	if err != nil {
		return k.dir
	}
	return dir
}

// readFrom returns the keys in one folder, if there are any.
func (k *keyFiles) readFrom(dir string) (creds aws.Credentials, ok bool, err error) {
	creds = aws.Credentials{Source: "files in " + k.dir}
	for name, to := range map[string]*string{
		keyIDFile:   &creds.AccessKeyID,
		secretFile:  &creds.SecretAccessKey,
		sessionFile: &creds.SessionToken,
	} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return creds, false, fmt.Errorf("read the store's keys: %w", err)
		}
		*to = strings.TrimSpace(string(text))
	}
	if creds.AccessKeyID == "" && creds.SecretAccessKey == "" {
		return creds, false, nil
	}
	if !creds.HasKeys() {
		return creds, false, fmt.Errorf("read the store's keys: %s must have both %s and %s, or neither",
			k.dir, keyIDFile, secretFile)
	}
	return creds, true, nil
}
