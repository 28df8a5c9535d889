package objectstore

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"
	"golang.org/x/sys/unix"
)

// TestKeysWhileTheyAreChanged: the kubelet changes the files, and removes the old ones, while they
// are read. A FIFO holds the reader up until that is done.
func TestKeysWhileTheyAreChanged(t *testing.T) {
	names := []string{keyIDFile, secretFile, sessionFile}
	for name, c := range map[string]struct {
		changes int
		ok      bool
	}{
		"once":       {1, true},
		"twice":      {2, true},
		"all along":  {keyReads, false},
		"not at all": {0, true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			check := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			version := func(i int) string { return filepath.Join(dir, ".."+strconv.Itoa(i)) }
			show := func(i int) {
				t.Helper()
				check(os.Symlink(filepath.Base(version(i)), filepath.Join(dir, "..data_tmp")))
				check(os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
			}
			for i := range c.changes + 1 {
				check(os.Mkdir(version(i), 0o700))
				for _, name := range names {
					at := filepath.Join(version(i), name)
					if i < c.changes {
						check(unix.Mkfifo(at, 0o600))
					} else {
						check(os.WriteFile(at, []byte(name), 0o600))
					}
				}
			}
			show(0)
			chain := credentials.NewStaticCredentialsProvider("CHAIN", "secret", "")
			done := make(chan struct{})
			go func() {
				defer close(done)
				creds, err := (&keyFiles{dir: dir, chain: chain}).Retrieve(t.Context())
				if c.ok && (err != nil || creds.AccessKeyID != keyIDFile ||
					creds.SecretAccessKey != secretFile || creds.SessionToken != sessionFile) {
					t.Errorf("keys %q, %v", creds.AccessKeyID, err)
				}
				if !c.ok && err == nil {
					t.Errorf("keys %q, though no two reads saw the same files", creds.AccessKeyID)
				}
			}()
			for i := range c.changes {
				held := openRead(t, version(i), names, done)
				show(i + 1)
				check(os.RemoveAll(version(i)))
				check(unix.Close(held))
			}
			<-done
		})
	}
}

// openRead opens the one of the FIFOs that somebody reads. It blocks until somebody does.
func openRead(t *testing.T, dir string, fifos []string, done <-chan struct{}) (fd int) {
	t.Helper()
	for {
		for _, name := range fifos {
			fd, err := unix.Open(filepath.Join(dir, name), unix.O_WRONLY|unix.O_NONBLOCK, 0)
			if err == nil {
				return fd
			}
			if !errors.Is(err, unix.ENXIO) {
				t.Fatal(err)
			}
		}
		select {
		case <-done:
			t.Fatal("the keys are not read any more")
		case <-time.After(time.Millisecond):
		}
	}
}
