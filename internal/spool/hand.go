//go:build linux

package spool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/shiplog-dev/shiplog/internal/criline"
)

// When all of a container is killed at once, as where it runs out of memory, tee dies with what it has not written to the spool yet: what is in the pipes of stdout and stderr, and the chunk
// that it has in hand. Both outlive it, since the shipper holds them: tee sends it the read ends of the pipes, and a memory file (memfd_create(2)) in which it works on the chunks, over a socket.
// Nothing of this is in a file system, where a full disk or a used-up quota would be in the way of the step's own writes.

const (
	// OfferSocket is the socket on which the shipper takes what outlives tee: OfferFiles files in one message of one byte.
	OfferSocket = "offer"
	// OfferFiles is how many files an offer has: the hand, and the read ends of the pipes of stdout and stderr.
	OfferFiles = 3
	// ChunkBytes is the most that tee takes from a pipe at once: what a pipe holds, and what one CRI line holds.
	ChunkBytes = 64 << 10
)

// Each stream has a part of the hand: a header, and the chunk. The header has these words of eight bytes, in the byte order of the machine:
//
//	0  state: how many bytes are handed on, shifted by lengthBits, and how many bytes the chunk has that is not
//	1  intended: how many bytes are about to be read into the chunk
//	2  mark: 16 bytes that are at the end of where these will be
//	4  1 where the container has run before
//	5  of stdout's part: how long the end is
//
// The end is end.json where nothing could be written in the spool, as under a used-up quota. It is at endOffset in the header of stdout's part.
//
// A chunk is handed on when its bytes are in the spool, or counted in a gap. state changes in one store, so that it is right at whatever moment tee is killed. When that is between the kernel's
// reading and the store behind it, the mark tells: it is gone if the chunk was read.
const (
	handHeader = 4 << 10
	handPart   = handHeader + ChunkBytes
	handSize   = int64(len(handStreams) * handPart)

	wordState, wordIntended, wordMark, wordAgain, wordEnd = 0, 8, 16, 32, 40

	endOffset = 1 << 10

	markBytes  = 16
	lengthBits = 20
)

// handStreams are in the order of the parts and of the pipes.
var handStreams = [2]criline.Stream{criline.Stdout, criline.Stderr}

// handSeals keep the file from being cut under tee, which has mapped it, and under the shipper.
const handSeals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL

// Hand is where tee works on what it takes from the pipes.
type Hand struct {
	FD      int // the file to offer; -1 where there is only memory that dies with tee
	streams [len(handStreams)]*HandStream
}

// HandStream is one stream's part of a Hand. It is not safe for concurrent use; the two streams' are independent.
type HandStream struct {
	part  []byte
	total uint64 // handed on
	n     int
	mark  [markBytes]byte
}

// NewHand makes a hand. Again says that the container has run before: what it has handed on is then not all that is in its log.
func NewHand(again bool) *Hand {
	h := &Hand{FD: -1}
	fd, mem, err := newHandFile()
	if err == nil {
		h.FD = fd
	} else {
		mem = make([]byte, handSize) // a kernel or a seccomp profile without memory files
	}
	for i := range h.streams {
		s := &HandStream{part: mem[i*handPart : (i+1)*handPart]}
		for j := range s.mark {
			s.mark[j] = byte(rand.Uint32())
		}
		copy(s.part[wordMark:], s.mark[:])
		if again {
			s.word(wordAgain).Store(1)
		}
		h.streams[i] = s
	}
	return h
}

func newHandFile() (fd int, mem []byte, err error) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	// A host may insist on the flag (vm.memfd_noexec), and kernels before 6.3 do not know it.
	if fd, err = unix.MemfdCreate("shiplog-hand", flags|unix.MFD_NOEXEC_SEAL); errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate("shiplog-hand", flags)
	}
	if err != nil {
		return -1, nil, fmt.Errorf("make a memory file: %w", err)
	}
	if err = unix.Ftruncate(fd, handSize); err == nil {
		if _, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, handSeals); err == nil {
			mem, err = unix.Mmap(fd, 0, int(handSize), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, nil, fmt.Errorf("make a memory file: %w", err)
	}
	return fd, mem, nil
}

// End leaves the end, as EncodeEnd made it, for who holds the hand.
func (h *Hand) End(end []byte) error {
	if h.FD < 0 {
		return errors.New("nobody else has this memory")
	}
	part := h.streams[0].part
	if room := handHeader - endOffset; len(end) > room {
		return fmt.Errorf("the end has %d bytes, there is room for %d", len(end), room)
	}
	copy(part[endOffset:handHeader], end)
	h.streams[0].word(wordEnd).Store(uint64(len(end)))
	return nil
}

// Stream returns the part of stdout or stderr.
func (h *Hand) Stream(s criline.Stream) *HandStream {
	if s == handStreams[1] {
		return h.streams[1]
	}
	return h.streams[0]
}

// word is a word of the header. The parts begin at pages, or in an allocation of Go's of that size.
func (s *HandStream) word(offset int) *atomic.Uint64 {
	return (*atomic.Uint64)(unsafe.Pointer(&s.part[offset]))
}

// Take takes what is in a pipe whose read end does not block, up to limit bytes and ChunkBytes. The error is EAGAIN if there is nothing. The chunk is good until the next Take.
func (s *HandStream) Take(pipe, limit int) (chunk []byte, err error) {
	n, err := unix.IoctlGetInt(pipe, unix.TIOCINQ) // FIONREAD: nobody else reads, so they can be read in one go
	if err != nil {
		return nil, err
	}
	if n = min(n, limit, ChunkBytes); n == 0 {
		return nil, unix.EAGAIN
	}
	buf := s.part[handHeader:][:n]
	copy(buf[max(0, n-markBytes):], s.mark[:])
	s.word(wordIntended).Store(uint64(n))
	for {
		n, err = unix.Read(pipe, buf)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil || n <= 0 {
		s.word(wordIntended).Store(0)
		if err == nil {
			err = unix.EAGAIN // somebody else has read
		}
		return nil, err
	}
	s.n = n
	s.word(wordState).Store(s.total<<lengthBits | uint64(n))
	s.word(wordIntended).Store(0)
	return buf[:n], nil
}

// Done says that the chunk is handed on.
func (s *HandStream) Done() {
	s.total += uint64(s.n)
	s.n = 0
	s.word(wordState).Store(s.total << lengthBits)
}

// Held is what the shipper holds of one container: what outlives tee. The step may have made it all up.
type Held struct {
	hand  int
	pipes [len(handStreams)]int
	// What follows is of Begin.
	from, to [len(handStreams)]int64 // what is left of the chunk, as offsets in the hand
}

// NewHeld takes the files of an offer. They are the Held's then, or closed if there is an error.
func NewHeld(fds []int) (*Held, error) {
	err := checkOffer(fds)
	if err != nil {
		for _, fd := range fds {
			_ = unix.Close(fd) // not ours
		}
		return nil, err
	}
	return &Held{hand: fds[0], pipes: [len(handStreams)]int(fds[1:])}, nil
}

func checkOffer(fds []int) error {
	if len(fds) != OfferFiles {
		return fmt.Errorf("an offer of %d files, not %d", len(fds), OfferFiles)
	}
	// Only memory has seals, so that reading it never waits.
	seals, err := unix.FcntlInt(uintptr(fds[0]), unix.F_GET_SEALS, 0)
	if err != nil {
		return fmt.Errorf("the hand is no memory file: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fds[0], &st); err != nil {
		return fmt.Errorf("stat the hand: %w", err)
	}
	if seals&handSeals != handSeals || st.Size != handSize {
		return errors.New("the hand is of another kind")
	}
	for _, fd := range fds[1:] {
		if err := unix.Fstat(fd, &st); err != nil {
			return fmt.Errorf("stat a pipe: %w", err)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFIFO {
			return errors.New("what is offered as a pipe is none")
		}
	}
	return nil
}

// Close lets go of what is held.
func (h *Held) Close() {
	for _, fd := range append(h.pipes[:], h.hand) {
		_ = unix.Close(fd) // opened for reading: there is nothing to lose
	}
}

// Over says whether nobody can write to the pipes any more, so that what is in them is all there
// will be.
func (h *Held) Over() bool {
	for _, pipe := range h.pipes {
		poll := []unix.PollFd{{Fd: int32(pipe), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, 0); err != nil || poll[0].Revents&unix.POLLHUP == 0 {
			return false
		}
	}
	return true
}

// Begin is for a container whose tee was killed. Kept is how many bytes of each stream are in the
// log or counted in its gaps, where all of the spool is. It returns how many more tee had counted
// as lost without marking them. ok is false if it cannot be said what tee had in hand, as where the
// container has run before: then only what is in the pipes is left.
func (h *Held) Begin(keptStdout, keptStderr int64) (lostStdout, lostStderr int64, ok bool) {
	kept, lost := [...]int64{keptStdout, keptStderr}, [len(handStreams)]int64{}
	ok = true
	for i, pipe := range h.pipes {
		// The step can have made it block.
		if err := unix.SetNonblock(pipe, true); err != nil {
			return 0, 0, false
		}
		part := int64(i) * int64(handPart)
		total, n, known := h.state(part)
		ok = ok && known
		// The chunk's first bytes may be in the log already.
		h.from[i] = part + handHeader + min(n, max(0, kept[i]-total))
		h.to[i] = part + handHeader + n
		lost[i] = max(0, total-kept[i])
	}
	if !ok {
		h.from, h.to = [len(handStreams)]int64{}, [len(handStreams)]int64{}
		return 0, 0, false
	}
	return lost[0], lost[1], true
}

// End reads the end that tee has left in the hand. ok is false where there is none, or none that can be read.
func (h *Held) End() (end End, ok bool) {
	var header [handHeader]byte
	if got, err := unix.Pread(h.hand, header[:], 0); err != nil || got != len(header) {
		return End{}, false
	}
	n := binary.NativeEndian.Uint64(header[wordEnd:])
	if n == 0 || n > handHeader-endOffset {
		return End{}, false
	}
	end, err := ParseEnd(header[endOffset:][:n])
	return end, err == nil
}

// state reads a part's header.
func (h *Held) state(part int64) (total, n int64, ok bool) {
	var header [wordAgain + 8]byte
	if got, err := unix.Pread(h.hand, header[:], part); err != nil || got != len(header) {
		return 0, 0, false
	}
	state, intended := binary.NativeEndian.Uint64(header[wordState:]), binary.NativeEndian.Uint64(header[wordIntended:])
	total, n = int64(state>>lengthBits), int64(state&(1<<lengthBits-1))
	if n > ChunkBytes || intended > ChunkBytes || binary.NativeEndian.Uint64(header[wordAgain:]) != 0 {
		return 0, 0, false
	}
	if n > 0 || intended == 0 {
		return total, n, true
	}
	mark := min(int64(intended), markBytes)
	var end [markBytes]byte
	if got, err := unix.Pread(h.hand, end[:mark], part+handHeader+int64(intended)-mark); err != nil || int64(got) != mark {
		return 0, 0, false
	}
	if string(end[:mark]) == string(header[wordMark:wordMark+mark]) {
		return total, 0, true
	}
	return total, int64(intended), true
}

// Next reads what is left, stdout first, and returns how many bytes of which stream it has put into b: 0 when there is nothing more. Begin comes first. What it has returned is gone.
func (h *Held) Next(b []byte) (s criline.Stream, n int, err error) {
	for i, s := range handStreams {
		if h.from[i] < h.to[i] {
			n, err := unix.Pread(h.hand, b[:min(int64(len(b)), h.to[i]-h.from[i])], h.from[i])
			if err == nil && n == 0 {
				err = errors.New("it ends too early")
			}
			if err != nil {
				return s, 0, fmt.Errorf("read what a killed container had in hand of %s: %w", s, err)
			}
			h.from[i] += int64(n)
			return s, n, nil
		}
		for {
			n, err := unix.Read(h.pipes[i], b)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil && !errors.Is(err, unix.EAGAIN) {
				return s, 0, fmt.Errorf("read what a killed container has left in the pipe of %s: %w", s, err)
			}
			if n > 0 {
				return s, n, nil
			}
			break
		}
	}
	return "", 0, nil
}
