//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shiplog-dev/shiplog/internal/spool"
)

const (
	// A shipper that begins again is soon there; one that is not there has more to do than to wait for us.
	offerSoon, offerLater = 20 * time.Millisecond, time.Second
	offersSoon            = 50
)

// offer hands what outlives tee to the shipper, and to each shipper that comes after it.
type offer struct {
	dir  string
	fds  []int
	stop chan struct{}
	wg   sync.WaitGroup

	mu   sync.Mutex
	conn *os.File // nil while there is none; the shipper never writes to it, so it reads as ended when the shipper has
}

// startOffer hands over at once, if the shipper is there, so that what the process prints first is held already. Where it cannot, as without a shipper, tee does without.
func startOffer(dir string, fds []int) *offer {
	o := &offer{dir: dir, fds: fds, stop: make(chan struct{})}
	_ = o.connect() // tried again
	o.wg.Go(o.run)
	return o
}

// end ends the offering. What was handed over stays with the shipper.
func (o *offer) end() {
	close(o.stop)
	o.mu.Lock()
	if o.conn != nil {
		_ = o.conn.Close() // nothing is written to it
	}
	o.mu.Unlock()
	o.wg.Wait()
}

// taken says whether a shipper has what was handed over, as far as is known.
func (o *offer) taken() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.conn != nil
}

func (o *offer) run() {
	for tries := 0; ; tries++ {
		o.mu.Lock()
		conn := o.conn
		o.mu.Unlock()
		if conn != nil {
			_, _ = conn.Read(make([]byte, 1)) // returns when the shipper has ended
			_ = conn.Close()                  // it may be already
			tries = 0
		}
		wait := offerSoon
		if tries >= offersSoon {
			wait = offerLater
		}
		timer := time.NewTimer(wait)
		select {
		case <-o.stop:
			timer.Stop()
			return
		case <-timer.C:
		}
		_ = o.connect() // tried again
	}
}

// connect hands over what outlives tee.
func (o *offer) connect() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.conn = nil
	select {
	case <-o.stop:
		return nil
	default:
	}
	// A socket's name is short, and the folder's path may be long.
	folder, err := unix.Open(filepath.Join(o.dir, spool.OfferFolder), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(folder)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", folder, spool.OfferSocket)})
	if err == nil {
		// The kernel keeps them from now on, also while the shipper has not looked yet.
		err = unix.Sendmsg(fd, []byte{0}, unix.UnixRights(o.fds...), nil, unix.MSG_NOSIGNAL)
	}
	if err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	o.conn = os.NewFile(uintptr(fd), spool.OfferSocket)
	return nil
}
