package spool

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/record"
)

const (
	// maxFile is the size at which a log file is full. A file is at most an eighth of the limit, so that the shipper, which deletes whole
	// files, makes room in small steps.
	maxFile = 8 << 20
	// minFile keeps a tiny limit from making a file for every line.
	minFile = 4 << 10
	// batchBytes bounds one write(2), and so the memory for it: 64 KiB that are all newlines become 2.6 MiB of lines.
	batchBytes = 256 << 10
	// retryAfter is how long nothing is tried after the spool was full or broken. Each try costs system calls that the step waits for.
	retryAfter = 100 * time.Millisecond
	// markerRoom is the room that a marker may take below the limit, and maxDetail what of it is the text of an error.
	markerRoom = 1 << 10
	maxDetail  = 256

	// fileMode lets the shipper, which runs as another user, read the files whatever the umask is, and reserveMode lets the container's user, which may be any, write what the shipper has made.
	fileMode    = 0o644
	reserveMode = 0o666
	tmpEnd      = EndFile + ".tmp"
)

// file is what the writer needs of an *os.File. Its Write goes on after EINTR and short writes, and returns the bytes written with an error.
type file interface {
	io.WriteCloser
	Truncate(size int64) error
}

// Writer is tee's side of the folder. It never fails towards its caller: what cannot be written is counted and marked with a gap as soon as
// a marker can be written. All methods may be called at the same time from several goroutines.
type Writer struct {
	dir  string
	most int64 // unshipped bytes of all containers of the pod
	open func(path string) (file, error)
	disk func(dir string) (disk, error)

	mu      sync.Mutex // guards all below
	limit   int64      // of unshipped bytes, as of measured
	low     bool       // it is so since there is little room on the disk
	free    disk       // as of measured
	maxFile int64      // size at which a file is full
	maxText int        // bytes of text behind one prefix

	f    file  // nil: the next write opens the file that begins at end()
	base int64 // offset of f's first byte
	size int64 // whole lines in f, in bytes
	torn bool  // f holds part of a line behind size, which could not be cut off yet

	unshipped int64     // sum of the sizes of the log files as of counted, and what was written since
	counted   time.Time // when the folder was last read
	measured  time.Time // when the room was last looked at

	nextAt    time.Time      // when a next file may be tried again, after there was no room for one
	reserve   *os.File       // tmpEnd, which is room for EndFile; nil if there was none
	gap       criline.Marker // bytes lost since the last line; none are if its Kind is empty
	retryAt   time.Time      // with a gap: when to try again
	abandoned bool           // nothing more is written, all is lost
	again     bool           // the container has run before
	ended     bool

	total End
	// buf and the prefixes are reused, so that a chunk costs no allocation.
	buf          []byte
	full, piece  []byte
	pendingBytes int64 // printed bytes in buf
}

// NewWriter prepares the folder of one container, which must exist, and opens the first log file. Limit is the most bytes of log files that it
// leaves there; it is less where the pod's other containers (ShareFile) or the disk leave less.
//
// A container that is restarted, as a native sidecar may be, finds the files of the run before. Then the log goes on behind them, and the notes
// of that run's end are removed.
func NewWriter(dir string, limit int64) (*Writer, error) {
	w := &Writer{
		dir:   dir,
		most:  limit,
		open:  create,
		disk:  diskOf,
		buf:   make([]byte, 0, batchBytes),
		full:  make([]byte, 0, criline.PrefixLen),
		piece: make([]byte, 0, criline.PrefixLen),
	}
	w.measure(time.Now())
	if err := w.resume(); err != nil {
		return nil, fmt.Errorf("open the spool %s: %w", dir, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.f == nil {
		// The file says that the process was started, even if it never prints. If it cannot be made, the first write tries again.
		_ = w.next()
	}
	w.takeReserve()
	return w, nil
}

// Again says whether the container has run before, and the log goes on.
func (w *Writer) Again() bool { return w.again }

// create opens a new log file.
func create(path string) (file, error) {
	return openMode(path, os.O_WRONLY|os.O_APPEND, fileMode)
}

// openMode creates a file with exactly this mode. The process's umask cannot be changed for it: the child would inherit that.
func openMode(path string, flags int, mode os.FileMode) (*os.File, error) {
	f, err := os.OpenFile(path, flags|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, mode)
	if err != nil {
		return nil, err
	}
	if err := f.Chmod(mode); err != nil {
		return nil, errors.Join(err, f.Close(), os.Remove(path))
	}
	return f, nil
}

// resume finds where the log goes on.
func (w *Writer) resume() error {
	files, err := logFiles(w.dir)
	if err != nil {
		return err
	}
	before, ended := w.takeEnd()
	last := int64(-1)
	for _, f := range files {
		w.unshipped += f.size
		last = max(last, f.base)
	}
	w.counted = time.Now()
	w.again = last >= 0 || ended
	if last >= 0 && !ended {
		w.openGap(criline.ReasonKilled,
			"the container was killed and began again; what it had printed last may be missing")
		w.gap.Unknown = true
	}
	switch {
	case last >= 0:
		w.reopen(last)
	case ended:
		w.base = before.Bytes // everything was shipped and deleted
	}
	// Without the end of the run before, nobody knows how much of it was printed: its files may be deleted.
	if ended && before.Bytes == w.end() {
		w.total = before
		w.total.Gap = nil
	}
	// The shipper may have marked it already. Twice is better than never.
	if g := before.Gap; g != nil && g.Stdout >= 0 && g.Stderr >= 0 {
		w.openGap(g.Reason, g.Detail)
		w.gap.Unknown = w.gap.Unknown || g.Unknown
		w.lose(criline.Stdout, g.Stdout)
		w.lose(criline.Stderr, g.Stderr)
	}
	return nil
}

// takeEnd reads and removes what the run before left behind at its end.
func (w *Writer) takeEnd() (e End, ok bool) {
	path := filepath.Join(w.dir, EndFile)
	if info, err := os.Lstat(path); err == nil && info.Mode().IsRegular() && info.Size() <= MaxEnd {
		if b, err := os.ReadFile(path); err == nil {
			e, err = ParseEnd(b)
			ok = err == nil && e.Bytes >= 0
		}
	}
	for _, name := range []string{EndFile, TermFile} {
		_ = os.Remove(filepath.Join(w.dir, name)) // what cannot be removed is overwritten at the end
	}
	return e, ok
}

// reopen goes on in an existing file. A torn last line is cut off, not completed with a newline: its missing rest is unknown, so a completed line
// would say that its text was printed like that; and cutting needs no room on a full disk. What is cut is marked as a gap.
func (w *Writer) reopen(base int64) {
	path := filepath.Join(w.dir, LogName(base))
	w.f, w.base, w.size, w.torn = nil, base, 0, false
	f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		// It cannot be written any more, so the next file begins behind it.
		if info, err := os.Lstat(path); err == nil {
			w.base += info.Size()
		}
		return
	}
	info, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return
	}
	whole, last := lastLine(f, info.Size())
	w.f, w.size = f, whole
	if line, err := criline.Parse(last); err == nil && w.total.Last.Before(line.Time) {
		w.total.Last = line.Time
	}
	if whole == info.Size() {
		return
	}
	w.torn = true
	w.openGap(criline.ReasonSpoolError, "tee ended within a write, and the torn line was cut off")
	w.gap.Unknown = true
	torn := make([]byte, min(info.Size()-whole, int64(criline.MaxLen)-1))
	if _, err := f.ReadAt(torn, whole); err != nil {
		return
	}
	if line, err := criline.Parse(torn); err == nil {
		w.lose(line.Stream, int64(len(line.Text))) // at least these
	}
}

// lastLine returns the number of bytes up to the last newline of a file, and the line before it, if that is not longer than a line may be.
func lastLine(r io.ReaderAt, size int64) (whole int64, line []byte) {
	buf := make([]byte, 2*criline.MaxLen)
	for end := size; end > 0; {
		from := max(0, end-int64(len(buf)))
		b := buf[:end-from]
		if _, err := r.ReadAt(b, from); err != nil {
			return size, nil // an unreadable disk; what is there stays as it is
		}
		if i := bytes.LastIndexByte(b, '\n'); i >= 0 {
			b = b[:i]
			return from + int64(i) + 1, b[bytes.LastIndexByte(b, '\n')+1:]
		}
		end = from
	}
	return 0, nil
}

// Write appends what one read of a stream gave. It returns when the bytes are with the kernel, or counted as lost.
func (w *Writer) Write(s criline.Stream, chunk []byte) {
	if len(chunk) == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended {
		return
	}
	now := time.Now()
	t := w.stamp(now)
	if w.total.First.IsZero() {
		w.total.First = t
	}
	add(&w.total.Printed.Stdout, &w.total.Printed.Stderr, s, int64(len(chunk)))
	w.total.Lines += int64(bytes.Count(chunk, newline))
	if w.abandoned {
		w.lose(s, int64(len(chunk)))
		return
	}

	w.full = criline.AppendPrefix(w.full[:0], t, s, true)
	w.piece = criline.AppendPrefix(w.piece[:0], t, s, false)
	for len(chunk) > 0 {
		chunk = w.fill(chunk)
		w.flush(s, now, t)
	}
}

var newline = []byte{'\n'}

// stamp is the time of a chunk, which never goes back within a log, whatever the node's clock does.
func (w *Writer) stamp(now time.Time) time.Time {
	t := now.Round(0).UTC() // without the monotonic reading, which is not what is printed
	if t.Before(w.total.Last) {
		t = w.total.Last
	}
	w.total.Last = t
	return t
}

// fill encodes as many lines as one write may take, and returns the rest of the chunk. No state goes from chunk to chunk: a newline that comes
// alone ends the pieces before it with a full line without text.
func (w *Writer) fill(chunk []byte) (rest []byte) {
	w.buf, w.pendingBytes = w.buf[:0], 0
	most := int(min(batchBytes, w.maxFile))
	for len(chunk) > 0 {
		text, prefix, printed := chunk, w.piece, len(chunk)
		if i := bytes.IndexByte(chunk[:min(len(chunk), w.maxText+1)], '\n'); i >= 0 {
			text, prefix, printed = chunk[:i], w.full, i+1
		} else if len(chunk) > w.maxText {
			text, printed = chunk[:w.maxText], w.maxText
		}
		if len(w.buf) > 0 && len(w.buf)+len(prefix)+len(text)+1 > most {
			break
		}
		w.buf = append(w.buf, prefix...)
		w.buf = append(w.buf, text...)
		w.buf = append(w.buf, '\n')
		w.pendingBytes += int64(printed)
		chunk = chunk[printed:]
	}
	return chunk
}

// flush writes buf, behind the marker of an open gap, or counts its bytes as lost.
func (w *Writer) flush(s criline.Stream, now, t time.Time) {
	lost := func(reason criline.Reason, detail string, bytes int64) {
		w.openGap(reason, detail)
		w.retryAt = now.Add(retryAfter)
		w.lose(s, bytes)
	}
	need := int64(len(w.buf))
	if w.gap.Kind != "" {
		if now.Before(w.retryAt) {
			w.lose(s, w.pendingBytes)
			return
		}
		need += markerRoom
	}
	if !w.room(need, now) {
		reason, detail := w.refusal()
		lost(reason, detail, w.pendingBytes)
		w.leaveLarge()
		return
	}
	if err := w.closeGap(t); err != nil {
		lost(criline.ReasonSpoolError, err.Error(), w.pendingBytes)
		return
	}
	if kept, err := w.put(w.buf); err != nil {
		lost(criline.ReasonSpoolError, err.Error(), printedBytes(w.buf[kept:]))
	}
}

// room says whether the limit allows so many bytes more. The shipper deletes what it has shipped, so the folder is counted again where the last
// count says no, and before a gap is closed; but not for every chunk.
func (w *Writer) room(bytes int64, now time.Time) bool {
	if now.Sub(w.measured) >= retryAfter {
		w.measure(now)
	}
	if (w.unshipped+bytes > w.limit || w.gap.Kind != "") && now.Sub(w.counted) >= retryAfter {
		w.count(now)
	}
	return w.unshipped+bytes <= w.limit
}

// count reads the folder. A folder that cannot be read keeps the count that it had. A file that was deleted while it is written, which the shipper does not
// do, is left: what is written to it would be lost silently.
func (w *Writer) count(now time.Time) {
	w.counted = now
	files, err := logFiles(w.dir)
	if err != nil {
		return
	}
	w.unshipped = 0
	present := false
	for _, f := range files {
		w.unshipped += f.size
		present = present || f.base == w.base
	}
	if w.f != nil && !present {
		_ = w.f.Close()
		w.f, w.base, w.size, w.torn = nil, w.end(), 0, false
	}
}

// leaveLarge begins the next file where the present one is too large for a limit that has become
// less: only what is left can be deleted.
func (w *Writer) leaveLarge() {
	if w.f != nil && !w.torn && w.size > w.maxFile && w.mayBegin() {
		_ = w.next() // tried again with the next try to write
	}
}

// openGap begins a gap, unless one is open: its first reason stays.
func (w *Writer) openGap(reason criline.Reason, detail string) {
	if w.gap.Kind == "" {
		w.gap = criline.Marker{Kind: criline.Gap, Reason: reason}
	}
	if detail != "" {
		w.gap.Detail = detail[:min(len(detail), maxDetail)]
	}
}

// lose counts bytes into the open gap.
func (w *Writer) lose(s criline.Stream, bytes int64) {
	add(&w.gap.Stdout, &w.gap.Stderr, s, bytes)
}

// closeGap writes the marker of an open gap.
func (w *Writer) closeGap(t time.Time) error {
	if w.gap.Kind == "" {
		return nil
	}
	line, err := criline.AppendMarker(nil, t, w.gap)
	if err != nil {
		return err
	}
	// A marker of which only a part was written is cut off, and the gap stays open.
	if _, err := w.put(line); err != nil {
		return err
	}
	w.gap = criline.Marker{}
	return nil
}

// put appends whole lines with one write(2), and begins the next file before where the present one is full. With an error it returns how many bytes of
// whole lines are in the file; a part of a line behind them is cut off, so that the file consists of whole lines. The whole lines stay, because the
// shipper may have read them already.
func (w *Writer) put(lines []byte) (kept int, err error) {
	if w.torn {
		if err := w.f.Truncate(w.size); err != nil {
			return 0, err
		}
		w.torn = false
	}
	if w.f == nil || w.size > 0 && w.size+int64(len(lines)) > w.maxFile && !time.Now().Before(w.nextAt) {
		if w.f != nil && !w.mayBegin() {
			w.nextAt = time.Now().Add(retryAfter)
		} else if err := w.next(); errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
			if w.f == nil {
				return 0, err
			}
			// There may be no inode, and room all the same: the present file takes more than it should.
			w.nextAt = time.Now().Add(retryAfter)
		} else if err != nil {
			return 0, err
		}
	}
	n, err := w.f.Write(lines)
	kept = n
	if n < len(lines) {
		kept = bytes.LastIndexByte(lines[:n], '\n') + 1
		w.torn = n > kept
	}
	w.size += int64(kept)
	w.unshipped += int64(kept)
	if w.torn && w.f.Truncate(w.size) == nil {
		w.torn = false
	}
	return kept, err
}

// next opens the next file, and closes the present one after that.
func (w *Writer) next() error {
	f, err := w.open(filepath.Join(w.dir, LogName(w.end())))
	if err != nil {
		return err
	}
	if w.f != nil {
		_ = w.f.Close() // each write has said its own errors
	}
	w.f, w.base, w.size = f, w.end(), 0
	if w.unshipped > w.limit/2 { // before, it does not matter what the shipper has deleted, and to look costs time and memory
		w.count(time.Now())
	}
	w.takeReserve()
	return nil
}

// end is the offset behind the last line.
func (w *Writer) end() int64 { return w.base + w.size }

// Abandon is for a caller that has caught a panic of this writer: it counts bytes of a stream as lost, and from now on nothing is written but the
// marker of that gap at the end. The writer no longer knows what it has written, so it looks at the file.
func (w *Writer) Abandon(s criline.Stream, bytes int64, why string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.abandoned && w.f != nil {
		_ = w.f.Close()
		w.reopen(w.base)
	}
	w.abandoned = true
	w.openGap(criline.ReasonSpoolError, why)
	w.gap.Unknown = true
	w.lose(s, bytes)
}

// Term leaves the mark that the container got SIGTERM. It waits for no write.
func (w *Writer) Term() error {
	f, err := openMode(filepath.Join(w.dir, TermFile), os.O_WRONLY, fileMode)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("mark SIGTERM in the spool: %w", err)
	}
	return f.Close()
}

// EndError says that EndFile could not be written. Unless the end gets to the shipper in another way, that takes the container for killed.
type EndError struct {
	End []byte // what was to be in EndFile
	Err error
}

func (e *EndError) Error() string { return fmt.Sprintf("write the end of the log: %v", e.Err) }
func (e *EndError) Unwrap() error { return e.Err }

// End closes the log: it writes the marker of an open gap, beyond the limit if need be, and EndFile. An error is an *EndError.
func (w *Writer) End(exit record.Exit) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	if w.gap.Kind != "" && w.closeGap(w.stamp(time.Now())) != nil {
		gap := w.gap
		w.total.Gap = &gap
	}
	if w.f != nil {
		_ = w.f.Close()
	}
	w.total.Exit, w.total.Bytes = exit, w.end()
	b, err := EncodeEnd(w.total)
	if err == nil {
		err = w.writeEnd(b)
	}
	if err != nil {
		return &EndError{b, err}
	}
	return nil
}

// Reserve takes room for EndFile in a container's folder, as much as it may need, if that is not done yet. The sooner it is done, the less can be in the way: the shipper does it before
// the container begins, and the writer where that failed.
func Reserve(dir string) error {
	path := filepath.Join(dir, tmpEnd)
	f, err := openMode(path, os.O_WRONLY, reserveMode)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reserve room for the end of the log: %w", err)
	}
	_, err = f.Write(make([]byte, MaxEnd))
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("reserve room for the end of the log: %w", errors.Join(err, os.Remove(path)))
	}
	return nil
}

// takeReserve opens what Reserve has made. Where that fails, the next log file's beginning is the next try.
func (w *Writer) takeReserve() {
	if w.reserve != nil || w.ended || Reserve(w.dir) != nil {
		return
	}
	f, err := os.OpenFile(filepath.Join(w.dir, tmpEnd), os.O_WRONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return
	}
	w.reserve = f
}

func (w *Writer) writeEnd(b []byte) error {
	if w.writeReserve(b) == nil {
		return nil
	}
	tmp := filepath.Join(w.dir, tmpEnd)
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := openMode(tmp, os.O_WRONLY, fileMode)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return os.Rename(tmp, filepath.Join(w.dir, EndFile))
}

// writeReserve writes EndFile where the room for it is: that needs no more, on most file systems.
func (w *Writer) writeReserve(b []byte) error {
	f := w.reserve
	if f == nil {
		return fs.ErrNotExist
	}
	w.reserve = nil
	_, err := f.WriteAt(b, 0)
	err = errors.Join(err, f.Truncate(int64(len(b))))
	_ = f.Chmod(fileMode) // what the shipper has made stays as it is
	mine, statErr := f.Stat()
	if err := errors.Join(err, statErr, f.Close()); err != nil {
		return err
	}
	// The step may have put something else there.
	tmp := filepath.Join(w.dir, tmpEnd)
	if there, err := os.Lstat(tmp); err != nil || !os.SameFile(mine, there) {
		return fs.ErrNotExist
	}
	return os.Rename(tmp, filepath.Join(w.dir, EndFile))
}

type logFile struct{ base, size int64 }

// logFiles lists the log files of a folder.
func logFiles(dir string) ([]logFile, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var files []logFile
	for _, e := range entries {
		base, ok := ParseLogName(e.Name())
		if !ok || !e.Type().IsRegular() {
			continue
		}
		info, err := e.Info()
		if err != nil {
			continue // shipped and deleted in between
		}
		files = append(files, logFile{base, info.Size()})
	}
	return files, nil
}

// printedBytes counts what was printed for encoded lines.
func printedBytes(lines []byte) (n int64) {
	for len(lines) > 0 {
		i := bytes.IndexByte(lines, '\n')
		n += int64(i - criline.PrefixLen)
		if lines[criline.PrefixLen-2] == 'F' {
			n++
		}
		lines = lines[i+1:]
	}
	return n
}

// add counts bytes for a stream.
func add(stdout, stderr *int64, s criline.Stream, bytes int64) {
	if s == criline.Stderr {
		*stderr += bytes
	} else {
		*stdout += bytes
	}
}
