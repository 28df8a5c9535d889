package objectstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
	"unicode/utf8"
)

// stallTimeout bounds the wait for more of an answer's body. As long as some comes, a body may flow
// for as long as the caller's context allows.
const stallTimeout = 30 * time.Second

// errStalled is the cause of a read's error where a store has sent headers and then nothing.
var errStalled = errors.New("the store has sent nothing more")

// answers has every answer of the store come to an end, and makes listings that XML can hold.
type answers struct {
	http.RoundTripper
	stall time.Duration
}

// RoundTrip implements http.RoundTripper.
func (a *answers) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	resp, err := a.RoundTripper.RoundTrip(req.WithContext(ctx))
	if err != nil {
		cancel(nil)
		return nil, err
	}
	timer := time.AfterFunc(a.stall, func() { cancel(errStalled) })
	timer.Stop() // until somebody reads
	resp.Body = &progress{resp.Body, ctx, cancel, timer, a.stall}
	if req.Method == http.MethodGet && req.URL.Query().Get("list-type") != "" {
		resp.Body = &plainXML{ReadCloser: resp.Body}
	}
	return resp, nil
}

// progress is a body that fails where nothing of it comes. Who reads may take any time between two
// reads.
type progress struct {
	io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	stall  time.Duration
}

func (p *progress) Read(b []byte) (int, error) {
	p.timer.Reset(p.stall)
	n, err := p.ReadCloser.Read(b)
	p.timer.Stop()
	if err != nil && err != io.EOF && context.Cause(p.ctx) == errStalled {
		err = fmt.Errorf("%w for %v: %w", errStalled, p.stall, err)
	}
	return n, err
}

// Close implements io.Closer.
func (p *progress) Close() error {
	p.timer.Stop()
	defer p.cancel(nil)
	return p.ReadCloser.Close()
}

// plainXML is a listing of a store that writes keys as they are, though it was asked to encode
// them. What XML cannot hold, as a control character in a key, would make the whole listing
// unreadable; here U+FFFD stands for it. No name of shiplog's has that, so such a key is no
// object's of ours.
type plainXML struct {
	io.ReadCloser
	in, out []byte // what was read and not looked at, and what is ready
	err     error
}

func (x *plainXML) Read(p []byte) (int, error) {
	for len(x.out) == 0 {
		if x.err != nil {
			return 0, x.err
		}
		buf := make([]byte, 4<<10)
		var n int
		n, x.err = x.ReadCloser.Read(buf)
		x.in = append(x.in, buf[:n]...)
		x.look(x.err != nil)
	}
	n := copy(p, x.out)
	x.out = x.out[n:]
	return n, nil
}

// maxReference is the longest reference to a character that is looked at: &#x10FFFF; and zeros.
const maxReference = 16

// look moves what is whole from in to out. Nothing comes behind the last.
func (x *plainXML) look(last bool) {
	in := x.in
	for len(in) > 0 {
		if in[0] == '&' {
			end := bytes.IndexByte(in[:min(len(in), maxReference)], ';')
			if end < 0 && len(in) < maxReference && !last {
				break
			}
			if end > 0 && !bytes.ContainsFunc(in[1:end], notInReference) {
				x.out = append(x.out, reference(in[:end+1])...)
				in = in[end+1:]
				continue
			}
		}
		if !utf8.FullRune(in) && !last {
			break
		}
		r, n := utf8.DecodeRune(in)
		if r == utf8.RuneError || !inXML(r) {
			x.out = utf8.AppendRune(x.out, utf8.RuneError)
		} else {
			x.out = append(x.out, in[:n]...)
		}
		in = in[n:]
	}
	x.in = append(x.in[:0], in...)
}

// notInReference says that a character is in no reference to another, so that "&" is none's begin.
func notInReference(r rune) bool {
	return r != '#' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
}

// reference is an entity as it is, or U+FFFD for one of a character that XML does not have.
func reference(s []byte) []byte {
	number, ok := bytes.CutPrefix(s[:len(s)-1], []byte("&#"))
	if !ok {
		return s
	}
	base := 10
	if hex, ok := bytes.CutPrefix(number, []byte("x")); ok {
		number, base = hex, 16
	}
	if r, err := strconv.ParseUint(string(number), base, 32); err == nil && inXML(rune(r)) {
		return s
	}
	return []byte(string(utf8.RuneError))
}

// inXML says whether XML 1.0 has a character (section 2.2).
func inXML(r rune) bool {
	return r == '\t' || r == '\n' || r == '\r' || r >= 0x20 && r <= 0xd7ff ||
		r >= 0xe000 && r <= 0xfffd || r >= 0x10000 && r <= 0x10ffff
}
