package spool

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shiplog-dev/shiplog/internal/criline"
)

// Position is a place in a container's spool: a byte within the file of a base offset.
type Position struct {
	Base   int64 `json:"base"`
	Offset int64 `json:"offset"` // within the file
}

// Since is how many bytes the position is behind an earlier one, as far as the bases tell. A step can name a file by the largest number there is: the sum stops at that. It can also shorten a
// file that was read: then it is 0.
func (p Position) Since(before Position) int64 {
	d := p.Base - before.Base
	if d > math.MaxInt64-p.Offset {
		return math.MaxInt64
	}
	return max(0, d+p.Offset-before.Offset)
}

// Status is what a look into the folder says.
type Status struct {
	Available int64 // bytes behind the position, as far as the present file and whether there is a next one tell
	More      bool  // a later file exists: the present one is complete
	Started   bool  // there is or was a log file
	Ended     bool  // EndFile exists
	Term      bool  // TermFile exists
}

// Reader reads one container's folder. The folder belongs to a step, which may put anything there: the reader follows no link, opens only regular files
// with one name, never blocks, and takes nothing for a line that is not one. It is not safe for concurrent use.
type Reader struct {
	dir  *os.File
	path string
	file *os.File // the file of base, or nil
	base int64
	next int64 // base of the following file, or -1
	// ahead are the bases behind next, as far as the last look kept them. They save a look for each file: a step can make a hundred thousand.
	ahead  []int64
	mem    *Buffers
	parser criline.Parser
}

// Buffers is the memory that Next works in. Readers that are used one after the other can share it, so that memory does not grow with their number.
type Buffers struct {
	in, out []byte
}

// readSize is how much is read at once. A whole line always fits.
const readSize = 2 * (criline.MaxLen + 1)

// mostSkipped is about how many bytes that are no lines Next passes over at once.
const mostSkipped = 4 << 20

// maxAhead is the most bases that a look keeps, and the most files that Next goes through at once.
const maxAhead = 1024

// OpenReader opens a container's folder, which must exist.
func OpenReader(path string, mem *Buffers) (*Reader, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open spool", Path: path, Err: err}
	}
	r := &Reader{dir: os.NewFile(uintptr(fd), path), path: path, next: -1, mem: mem}
	return r, nil
}

// Close closes the folder.
func (r *Reader) Close() error {
	r.closeFile()
	return r.dir.Close()
}

func (r *Reader) closeFile() {
	if r.file != nil {
		r.file.Close() // opened for reading: there is nothing to lose
		r.file = nil
	}
}

// open opens a regular file of the folder that has no other name. Without O_NONBLOCK a FIFO would block.
func (r *Reader) open(name string) (*os.File, int64, error) {
	fd, err := unix.Openat(int(r.dir.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, 0, &fs.PathError{Op: "open", Path: r.path + "/" + name, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, 0, &fs.PathError{Op: "stat", Path: r.path + "/" + name, Err: err}
	}
	// A hard link may be to a file of another container's, of another user's, that only the shipper can read.
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Nlink != 1 {
		unix.Close(fd)
		return nil, 0, &fs.PathError{Op: "open", Path: r.path + "/" + name, Err: errors.New("not a regular file with one name")}
	}
	return os.NewFile(uintptr(fd), name), st.Size, nil
}

// Look says what is behind the position.
func (r *Reader) Look(at Position) (Status, error) {
	var s Status
	present := int64(-1)
	r.ahead = r.ahead[:0]
	err := r.names(func(name string) {
		switch name {
		case EndFile:
			s.Ended = true
		case TermFile:
			s.Term = true
		default:
			base, ok := ParseLogName(name)
			switch {
			case !ok || base < at.Base:
			case base == at.Base:
				present = base
			default:
				r.keepAhead(base)
			}
		}
	})
	if err != nil {
		return s, err
	}
	r.takeNext()
	s.More = r.next >= 0
	s.Started = present >= 0 || s.More || at != Position{}
	if r.file == nil || r.base != at.Base {
		r.closeFile()
		if present >= 0 {
			r.openBase(at.Base)
		}
	}
	if r.file != nil {
		info, err := r.file.Stat()
		if err != nil {
			return s, fmt.Errorf("read spool %s: %w", r.path, err)
		}
		s.Available = info.Size() - at.Offset
		if s.Available < 0 {
			s.Available = 1 // truncated: there is a gap to be marked
		}
	}
	if s.More && s.Available == 0 {
		s.Available = 1
	}
	return s, nil
}

// keepAhead puts a base among the smallest ones.
func (r *Reader) keepAhead(base int64) {
	if len(r.ahead) == maxAhead && base >= r.ahead[maxAhead-1] {
		return
	}
	i, known := slices.BinarySearch(r.ahead, base)
	if known { // a folder that changes may show a name twice
		return
	}
	r.ahead = slices.Insert(r.ahead[:min(len(r.ahead), maxAhead-1)], i, base)
}

// takeNext makes the first base ahead the next one.
func (r *Reader) takeNext() {
	r.next = -1
	if len(r.ahead) > 0 {
		r.next = r.ahead[0]
		r.ahead = slices.Delete(r.ahead, 0, 1)
	}
}

// openBase opens a log file. If what stands there is none, the reader goes on with the next, and Next marks the gap.
func (r *Reader) openBase(base int64) {
	if f, _, err := r.open(LogName(base)); err == nil {
		r.file, r.base = f, base
	}
}

// First returns the base offset of the first log file. ok is false if there is none.
func (r *Reader) First() (base int64, ok bool, err error) {
	err = r.names(func(name string) {
		if b, isLog := ParseLogName(name); isLog && (!ok || b < base) {
			base, ok = b, true
		}
	})
	return base, ok, err
}

// Backlog is how many bytes of the log are behind the position, as the names and the last file's size tell.
func (r *Reader) Backlog(at Position) (int64, error) {
	last := int64(-1)
	err := r.names(func(name string) {
		if base, ok := ParseLogName(name); ok {
			last = max(last, base)
		}
	})
	if err != nil || last < at.Base {
		return 0, err
	}
	f, size, err := r.open(LogName(last))
	if err != nil {
		size = 0 // not a log file
	} else {
		f.Close() // opened for reading: there is nothing to lose
	}
	return Position{last, size}.Since(at), nil
}

// Trim deletes the log files before the position's: what is in them is shipped, or the step made them up. One that cannot be deleted only costs space.
func (r *Reader) Trim(at Position) error {
	return r.names(func(name string) {
		if base, ok := ParseLogName(name); ok && base < at.Base {
			_ = unix.Unlinkat(int(r.dir.Fd()), name, 0)
		}
	})
}

// names calls visit with every name in the folder, however many there are, in constant memory.
func (r *Reader) names(visit func(string)) error {
	if _, err := r.dir.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("read spool %s: %w", r.path, err)
	}
	for {
		names, err := r.dir.Readdirnames(512)
		for _, name := range names {
			visit(name)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read spool %s: %w", r.path, err)
		}
	}
}

// Next returns whole lines behind the position, about limit bytes of them at most, and the position behind them. Nothing read and the same position means that there is nothing
// yet. The lines are good until the next call of any reader with the same Buffers. Bytes that are no lines, and bytes that are missing, become a gap marker with the time now. With final, a
// last line that was cut off (its writer was killed in the middle of writing it) is taken as a piece; without, it is left for later. Look comes first.
func (r *Reader) Next(at Position, limit int, final bool, now time.Time) (lines []byte, tally criline.Tally, behind Position, err error) {
	if r.mem.in == nil {
		r.mem.in = make([]byte, readSize)
	}
	r.mem.out = r.mem.out[:0]
	var lost gap
	mark := func() error {
		if lost.bytes == 0 && !lost.unknown {
			return nil
		}
		from := len(r.mem.out)
		// What is malformed cannot be told to be of one stream or the other.
		out, err := criline.AppendMarker(r.mem.out, now, criline.Marker{Kind: criline.Gap, Reason: lost.reason, Stdout: lost.bytes, Unknown: lost.unknown})
		if err != nil {
			return err
		}
		r.mem.out = out
		line, err := criline.Parse(r.mem.out[from : len(r.mem.out)-1])
		if err != nil {
			return err
		}
		tally.Add(line)
		lost = gap{}
		return nil
	}
	for files := 0; len(r.mem.out) < limit && files < maxAhead && lost.bytes < mostSkipped; {
		if r.file == nil || r.base != at.Base {
			if r.next < 0 {
				break
			}
			// The present file is not there. Bytes between the position and the next file's base are gone.
			if !r.follows(at) {
				lost.add(criline.ReasonTruncated, 0, true)
			}
			if at, err = r.advance(); err != nil {
				return nil, tally, at, err
			}
			files++
			continue
		}
		n, readErr := r.file.ReadAt(r.mem.in, at.Offset)
		if readErr != nil && !errors.Is(readErr, io.EOF) {
			return nil, tally, at, fmt.Errorf("read spool %s/%s: %w", r.path, LogName(r.base), readErr)
		}
		chunk := r.mem.in[:n]
		end := bytes.LastIndexByte(chunk, '\n') + 1
		switch {
		case end > 0:
			chunk = chunk[:end]
		case n >= criline.MaxLen:
			skip := int64(n) + r.hole(at.Offset+int64(n))
			lost.add(criline.ReasonMalformed, skip, false)
			at.Offset += skip
			continue
		case r.next >= 0 || final:
			// The file is complete, so this is all of its last line.
			if n > 0 {
				at.Offset += int64(n)
				line, err := criline.Parse(chunk)
				if r.next < 0 && lost.bytes == 0 && (n < criline.PrefixLen || err == nil && line.Stream == criline.Markers) {
					continue // tee was killed before it had written any printed byte of the line
				}
				if err == nil && line.Stream != criline.Markers {
					if err := mark(); err != nil {
						return nil, tally, at, err
					}
					line.Full = false
					from := len(r.mem.out)
					r.mem.out = criline.Append(r.mem.out, line.Time, line.Stream, false, line.Text)
					if line, err := criline.Parse(r.mem.out[from : len(r.mem.out)-1]); err == nil {
						tally.Add(line)
					}
				} else {
					lost.add(criline.ReasonMalformed, int64(n), false)
				}
				continue
			}
			size, err := r.size()
			if err != nil {
				return nil, tally, at, err
			}
			if size < at.Offset {
				lost.add(criline.ReasonTruncated, 0, true)
				at.Offset = size
			}
			if r.next < 0 {
				return r.mem.out, tally, at, mark()
			}
			if !r.follows(at) {
				lost.add(criline.ReasonTruncated, 0, true)
			}
			if at, err = r.advance(); err != nil {
				return nil, tally, at, err
			}
			files++
			continue
		default:
			if n == 0 {
				size, err := r.size()
				if err != nil {
					return nil, tally, at, err
				}
				if size < at.Offset {
					lost.add(criline.ReasonTruncated, 0, true)
					at.Offset = size
				}
			}
			return r.mem.out, tally, at, mark()
		}
		good, seen := 0, 0 // chunk[good:seen] are lines that are not in out yet
		for seen < len(chunk) && len(r.mem.out)+seen-good < limit {
			from, to := seen, seen+bytes.IndexByte(chunk[seen:], '\n')
			seen = to + 1
			line, err := r.parser.Parse(chunk[from:to])
			if err != nil {
				r.mem.out = append(r.mem.out, chunk[good:from]...)
				lost.add(criline.ReasonMalformed, int64(seen-from), false)
				good = seen
				continue
			}
			if err := mark(); err != nil {
				return nil, tally, at, err
			}
			tally.Add(line)
			if line.Stream != criline.Markers {
				most := min(len(chunk)-seen, limit-len(r.mem.out)-(seen-good)) // a run ends before the limit, and one more line with it
				lines, length := r.parser.Run(chunk[seen:][:max(0, most)])
				tally.AddRun(line, lines, length)
				seen += length
			}
		}
		r.mem.out = append(r.mem.out, chunk[good:seen]...)
		at.Offset += int64(seen)
	}
	return r.mem.out, tally, at, mark()
}

// hole returns the length of the hole at an offset, 0 if there is data. A step can make a file of terabytes that takes no space; reading its zeros would take for ever.
func (r *Reader) hole(offset int64) int64 {
	data, err := unix.Seek(int(r.file.Fd()), offset, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) { // no data up to the end
		data, err = r.size()
	}
	if err != nil || data <= offset { // a file system that knows no holes
		return 0
	}
	return data - offset
}

// gap collects what is lost until the next line that is good. How many printed bytes a missing piece of the spool had cannot be told: a gap of missing pieces alone has
// no bytes and is unknown.
type gap struct {
	reason  criline.Reason
	bytes   int64
	unknown bool
}

func (g *gap) add(reason criline.Reason, n int64, unknown bool) {
	g.reason = reason
	g.bytes += n
	g.unknown = g.unknown || unknown
}

func (r *Reader) size() (int64, error) {
	info, err := r.file.Stat()
	if err != nil {
		return 0, fmt.Errorf("read spool %s: %w", r.path, err)
	}
	return info.Size(), nil
}

// follows says whether the next file begins at the position, or before it. A folder is not read at one moment: a look can miss a file that is made while it lasts, and see one that is made
// after that. tee names a file by where it begins, so the one that follows is asked for by its name.
func (r *Reader) follows(at Position) bool {
	if r.next-at.Base <= at.Offset {
		return true
	}
	var st unix.Stat_t
	if at.Offset == 0 || unix.Fstatat(int(r.dir.Fd()), LogName(at.Base+at.Offset), &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return false
	}
	r.ahead = slices.Insert(r.ahead, 0, r.next)
	r.next = at.Base + at.Offset
	return true
}

// advance goes to the next file. One that cannot be opened as a log file is skipped; the file after it then shows the gap.
func (r *Reader) advance() (Position, error) {
	r.closeFile()
	at := Position{Base: r.next}
	if len(r.ahead) > 0 {
		r.openBase(at.Base)
		r.takeNext()
		return at, nil
	}
	status, err := r.Look(at)
	if err != nil {
		return at, err
	}
	if r.file == nil && !status.More {
		// A later look may find something to open.
		r.next = -1
	}
	return at, nil
}

// End reads EndFile. ok is false where there is none, or none that can be read.
func (r *Reader) End() (end End, ok bool) {
	f, _, err := r.open(EndFile)
	if err != nil {
		return End{}, false
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, MaxEnd+1))
	if err != nil {
		return End{}, false
	}
	end, err = ParseEnd(b)
	return end, err == nil
}
