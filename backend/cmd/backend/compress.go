package main

import (
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/klauspost/compress/gzhttp/writer/gzkp"
	"github.com/klauspost/compress/gzhttp/writer/zstdkp"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// compressedAtOnce is how many answers are compressed at the same time, as each takes memory for it.
// Others are sent as they are.
const compressedAtOnce = 64

// compressed compresses the answers of a handler for clients who ask for it. A range stays as it is,
// and so does what is to be saved as a file: a download has a length, and goes on where it was cut.
//
// It is not gzhttp's own handler, of which the encoders are: that one ends the stream of an answer
// that is broken off, so that it looks whole.
func compressed(next http.Handler) http.Handler {
	room := make(chan struct{}, compressedAtOnce)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Add("Vary", "Accept-Encoding")
		coding := codingOf(r)
		if coding == "" || r.Method == http.MethodHead {
			next.ServeHTTP(w, r)
			return
		}
		select {
		case room <- struct{}{}:
			defer func() { <-room }()
		default:
			next.ServeHTTP(w, r)
			return
		}
		if seen := r.Header.Get("If-None-Match"); seen != "" {
			r = r.Clone(r.Context())
			r.Header.Set("If-None-Match", strings.ReplaceAll(seen, "-"+coding+`"`, `"`))
		}
		c := &compressing{ResponseWriter: w, coding: coding}
		next.ServeHTTP(c, r)
		if c.encoder != nil { // of one that is broken off there is no end
			_ = c.encoder.Close() // who asked may be gone
		}
	})
}

// codingOf is the coding that a client prefers of those that we have, or "".
func codingOf(r *http.Request) (best string) {
	most := 0.0
	for item := range strings.SplitSeq(strings.Join(r.Header.Values("Accept-Encoding"), ","), ",") {
		name, parameters, _ := strings.Cut(item, ";")
		name = strings.ToLower(strings.TrimSpace(name))
		quality := 1.0
		if q, ok := strings.CutPrefix(strings.ReplaceAll(parameters, " ", ""), "q="); ok {
			var err error
			if quality, err = strconv.ParseFloat(q, 64); err != nil {
				quality = 0
			}
		}
		// Of what is as welcome, zstd takes less time.
		if (name == "zstd" || name == "gzip") && (quality > most || quality == most && quality > 0 && name == "zstd") {
			best, most = name, quality
		}
	}
	return best
}

// encoder is what gzip and zstd have in common. Its Close gives its memory to the next.
type encoder interface {
	io.WriteCloser
	Flush() error
}

// compressing compresses an answer, if it is one that may be.
type compressing struct {
	http.ResponseWriter
	coding  string
	begun   bool
	encoder encoder // nil: the answer is sent as it is
}

func (c *compressing) WriteHeader(status int) {
	if status >= 200 && !c.begun {
		c.begin(status)
	}
	c.ResponseWriter.WriteHeader(status)
}

func (c *compressing) begin(status int) {
	c.begun = true
	h := c.Header()
	if h.Get("Content-Type") == "" && status != http.StatusNotModified || h.Get("Content-Disposition") != "" || h.Get("Content-Encoding") != "" {
		return
	}
	if status != http.StatusOK && status != http.StatusNotModified {
		return
	}
	// What is compressed is another thing with another name, of which there are no ranges.
	if tag, ok := strings.CutSuffix(h.Get("ETag"), `"`); ok {
		h.Set("ETag", tag+"-"+c.coding+`"`)
	}
	if status == http.StatusNotModified {
		return
	}
	h.Del("Content-Length")
	h.Del("Accept-Ranges")
	h.Set("Content-Encoding", c.coding)
	if c.coding == "zstd" {
		c.encoder = zstdkp.NewWriter(c.ResponseWriter, int(zstd.SpeedFastest))
	} else {
		c.encoder = gzkp.NewWriter(c.ResponseWriter, gzip.BestSpeed)
	}
}

func (c *compressing) Write(b []byte) (int, error) {
	if !c.begun {
		c.WriteHeader(http.StatusOK)
	}
	if c.encoder != nil {
		return c.encoder.Write(b)
	}
	return c.ResponseWriter.Write(b)
}

// FlushError is for http.ResponseController.
func (c *compressing) FlushError() error {
	if !c.begun {
		c.WriteHeader(http.StatusOK)
	}
	if c.encoder != nil {
		if err := c.encoder.Flush(); err != nil {
			return err
		}
	}
	return http.NewResponseController(c.ResponseWriter).Flush()
}

// Unwrap is for http.ResponseController.
func (c *compressing) Unwrap() http.ResponseWriter { return c.ResponseWriter }
