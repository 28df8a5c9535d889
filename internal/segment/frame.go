package segment

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// frame passes on the bytes of a segment as long as they are one zstd frame of the form that
// docs/format.md asks for (RFC 8878, section 3.1.1). A decoder takes more: frames that it is to
// skip, one frame behind another, blocks without end that hold nothing.
type frame struct {
	from io.Reader
	most int64 // bytes that the frame may have

	state state
	buf   []byte // of a header that has not all come
	skip  int64  // bytes to pass over
	rest  int    // of the frame's header behind its first bytes
	check bool   // a checksum follows the last block
}

type state int

const (
	inHead   state = iota // magic number and descriptor
	inHeader              // the rest of the frame's header
	inBlocks
	behind
)

const (
	magic        = 0xfd2fb528
	magicAndDesc = 5
	blockHeader  = 3
	// frameRoom is more than a frame of ours has beside what it holds, together with a 128th of
	// that, however badly it compresses.
	frameRoom = 1 << 10
)

// MaxStored is the most bytes that a segment of so many archive bytes has in the store.
func MaxStored(length int64) int64 { return length + length>>7 + frameRoom }

func newFrame(from io.Reader, length int64) *frame {
	return &frame{from: from, most: MaxStored(length)}
}

// Read implements io.Reader.
func (f *frame) Read(p []byte) (int, error) {
	n, err := f.from.Read(p)
	if n > 0 {
		if f.most -= int64(n); f.most < 0 {
			return 0, errors.New("the object is larger than what it is to hold")
		}
		if err := f.pass(p[:n]); err != nil {
			return 0, err
		}
	}
	return n, err
}

// pass looks at the bytes that come next.
func (f *frame) pass(p []byte) error {
	for len(p) > 0 {
		if n := min(f.skip, int64(len(p))); n > 0 {
			f.skip -= n
			p = p[n:]
			continue
		}
		if f.state == behind {
			return errors.New("there is something behind the frame")
		}
		f.buf = append(f.buf, p[0])
		p = p[1:]
		if err := f.header(); err != nil {
			return err
		}
	}
	return nil
}

// header acts on a header once it is whole.
func (f *frame) header() error {
	switch {
	case f.state == inHead && len(f.buf) == magicAndDesc:
		if binary.LittleEndian.Uint32(f.buf) != magic {
			return errors.New("is no zstd frame")
		}
		desc := f.buf[4]
		f.check = desc&4 != 0
		f.rest = [4]int{0, 1, 2, 4}[desc&3] + contentSize(desc)
		if desc&singleSegment == 0 {
			f.rest++
		}
		f.state = inHeader
	case f.state == inHeader && len(f.buf) == magicAndDesc+f.rest:
		if w := f.window(); w > window {
			return fmt.Errorf("asks for a window of %d bytes, %d are allowed", w, window)
		}
		f.state, f.buf = inBlocks, f.buf[:0]
	case f.state == inBlocks && len(f.buf) == blockHeader:
		h := uint32(f.buf[0]) | uint32(f.buf[1])<<8 | uint32(f.buf[2])<<16
		f.buf = f.buf[:0]
		f.skip = int64(h >> 3)
		if h>>1&3 == 1 { // one byte, so many times
			f.skip = 1
		}
		if h&1 != 0 { // the last
			f.state = behind
			if f.check {
				f.skip += 4
			}
		}
	}
	return nil
}

const singleSegment = 1 << 5

// contentSize is how many bytes of a frame's header say what it holds.
func contentSize(desc byte) int {
	if desc>>6 == 0 && desc&singleSegment != 0 {
		return 1
	}
	return [4]int{0, 2, 4, 8}[desc>>6]
}

// window is what the header in buf asks for.
func (f *frame) window() uint64 {
	desc := f.buf[4]
	if desc&singleSegment == 0 {
		base := uint64(1) << (10 + f.buf[magicAndDesc]>>3)
		return base + base/8*uint64(f.buf[magicAndDesc]&7)
	}
	size := f.buf[len(f.buf)-contentSize(desc):]
	switch len(size) {
	case 1:
		return uint64(size[0])
	case 2:
		return uint64(binary.LittleEndian.Uint16(size)) + 256
	case 4:
		return uint64(binary.LittleEndian.Uint32(size))
	default:
		return binary.LittleEndian.Uint64(size)
	}
}
