package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shiplog-dev/shiplog/internal/spool"
)

const (
	// offerTime is how long an offer may take, once it has begun. It is one message.
	offerTime = time.Second
	// offerPause is the least time between two offers of one container: a step can make them, too.
	offerPause = 100 * time.Millisecond
)

// holder holds what outlives tee in one container, so that it can be shipped if all of the container is killed (internal/spool/hand.go).
type holder struct {
	listener *net.UnixListener
	stop     chan struct{}
	group    sync.WaitGroup
	taking   atomic.Bool // an offer has come, and is not held yet

	mu   sync.Mutex // guards what follows
	held *spool.Held
	conn *net.UnixConn // kept open, as tee offers again when it is closed
}

// makeOfferFolder makes the folder of the socket in a container's folder. Where that fails, the holder says so.
func makeOfferFolder(folder string) {
	path := filepath.Join(folder, spool.OfferFolder)
	// One that is there may be the step's, and a link.
	if os.Mkdir(path, 0o755) == nil {
		_ = os.Chmod(path, 0o755) // whatever the umask is
	}
}

// openOfferFolder opens the folder of the socket in a container's folder, which can be hostile. It
// follows no link. To name the container's folder is the caller's.
func openOfferFolder(folder string) (fd int, err error) {
	const dir = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	parent, err := unix.Open(folder, dir, 0)
	if err != nil {
		return -1, fmt.Errorf("open it: %w", err)
	}
	defer unix.Close(parent)
	fd, err = unix.Openat(parent, spool.OfferFolder, dir, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s in it: %w", spool.OfferFolder, err)
	}
	return fd, nil
}

// startHolder listens in a container's folder, which can be hostile. The caller ends it with close.
func startHolder(folder string) (*holder, error) {
	listener, err := listen(folder)
	if err != nil {
		return nil, fmt.Errorf("listen in the spool folder %s: %w", folder, err)
	}
	h := &holder{listener: listener, stop: make(chan struct{})}
	h.group.Go(h.run)
	return h, nil
}

// newSocket is the socket's name until it can be connected to.
const newSocket = spool.OfferSocket + ".new"

// listen makes the socket anew, in the place of an earlier shipper's. It follows no link.
func listen(folder string) (*net.UnixListener, error) {
	fd, err := openOfferFolder(folder)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if err := unix.Unlinkat(fd, newSocket, 0); err != nil && !errors.Is(err, unix.ENOENT) { // of a shipper that was killed here
		return nil, err
	}
	path := filepath.Join("/proc/self/fd", fmt.Sprint(fd), newSocket)
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	listener.SetUnlinkOnClose(false) // by then, the path's number stands for something else
	err = openToAll(fd, newSocket)
	if err == nil {
		// At once, so that nobody finds a socket that is closed to them.
		err = unix.Renameat(fd, newSocket, fd, spool.OfferSocket)
	}
	if err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	return listener, nil
}

// openToAll lets the container's user, which may be any, connect.
func openToAll(dir int, name string) error {
	// chmod(2) would follow a link that the step has put there meanwhile.
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return errors.New("somebody else has put something in the socket's place")
	}
	return unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), 0o666)
}

// run takes offers. The last one is held.
func (h *holder) run() {
	for {
		conn, err := h.listener.AcceptUnix()
		if err == nil {
			h.taking.Store(true)
			h.take(conn)
			h.taking.Store(false)
		}
		timer := time.NewTimer(offerPause)
		select {
		case <-h.stop:
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// take takes an offer, in the place of the one before.
func (h *holder) take(conn *net.UnixConn) {
	held, err := receive(conn)
	if err != nil {
		_ = conn.Close() // what it sent was no offer
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.drop()
	h.held, h.conn = held, conn
}

// receive receives an offer.
func receive(conn *net.UnixConn) (*spool.Held, error) {
	if err := conn.SetReadDeadline(time.Now().Add(offerTime)); err != nil {
		return nil, err
	}
	// The kernel closes what does not fit.
	rights := make([]byte, unix.CmsgSpace(4*spool.OfferFiles))
	_, n, _, _, err := conn.ReadMsgUnix(make([]byte, 1), rights)
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(rights[:n])
	if err != nil {
		return nil, err
	}
	var fds []int
	for _, m := range messages {
		if got, err := unix.ParseUnixRights(&m); err == nil {
			fds = append(fds, got...)
		}
	}
	return spool.NewHeld(fds)
}

// drop lets go of what is held. The caller has the lock.
func (h *holder) drop() {
	if held := h.letGo(); held != nil {
		held.Close()
	}
}

// close ends the listening, and lets go of what is held.
func (h *holder) close() error {
	close(h.stop)
	err := h.listener.Close()
	h.group.Wait()
	h.release()
	return err
}

// release lets go of what is held, as where a container has ended and said so.
func (h *holder) release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.drop()
}

// end is the end of the log, where tee could not write it to the spool.
func (h *holder) end() (end spool.End, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.held == nil {
		return spool.End{}, false
	}
	return h.held.End()
}

// claim hands over what is held, nil if nothing is. The caller closes it.
func (h *holder) claim() *spool.Held {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.letGo()
}

// letGo hands over what is held. The caller has the lock.
func (h *holder) letGo() *spool.Held {
	held := h.held
	if held != nil {
		_ = h.conn.Close() // nothing was written to it
	}
	h.held, h.conn = nil, nil
	return held
}

// claimDead claims what is held if tee is dead: it closes the connection only then, and when it has
// said how the container ended.
func (h *holder) claimDead() *spool.Held {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.held == nil || polled(h.conn)&unix.POLLHUP == 0 || h.coming() {
		return nil
	}
	if _, ended := h.held.End(); ended {
		return nil
	}
	return h.letGo()
}

// coming says whether there is an offer that is not held yet.
func (h *holder) coming() bool {
	return polled(h.listener)&unix.POLLIN != 0 || h.taking.Load()
}

// renewed says whether there is an offer, or one is coming. A container that begins again makes one
// before it prints anything.
func (h *holder) renewed() bool { return h.coming() || h.last() != nil }

// polled asks what has happened to a socket. It does not wait.
func polled(socket syscall.Conn) (events int16) {
	raw, err := socket.SyscallConn()
	if err != nil {
		return 0
	}
	_ = raw.Control(func(fd uintptr) { // fails where it is closed
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, 0); err == nil {
			events = poll[0].Revents
		}
	})
	return events
}

// last is what is held, nil if nothing is. It is good until the next offer, close or release.
func (h *holder) last() *spool.Held {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.held
}
