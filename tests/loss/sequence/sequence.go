// Package sequence makes output in which every lost, doubled, reordered or changed byte is found: numbered records, each with a hash of its own, whose text follows from the seed and
// the number alone. Stream.Print prints them at a rate, and a Checker reads a log and says what of it is right. It knows each byte that should be there, so it also knows how many bytes a
// missing record had, and whether a gap that shiplog has marked is as long as the marker says.
package sequence

import (
	"bytes"
	"encoding/hex"
	"hash/fnv"
	"math/rand/v2"
	"strconv"
)

// Stream is one sequence of records. Streams of different seeds share no record.
type Stream struct{ Seed uint64 }

// A record is
//
//	000000000042 9f86d081884c7d65 text of any length\n
//
// with its number, and the FNV-1a hash of the seed, the number and the text.
const (
	digits    = 12
	hashChars = 16
	headLen   = digits + 1 + hashChars + 1
)

// words is what the text is made of: it compresses about as a build's log does. Among them is what is hard on a log: carriage returns, NULs, cut UTF-8, and words of a CRI line.
var words = [64]string{
	"compile", "link", "ok", "warning:", "error:", "[INFO]", "downloading", "package", "module", "test", "PASS", "FAIL", "---", "=== RUN", "main.go:42:7:", "go build",
	"0.01s", "100%", "\r 50%", "cache", "layer", "sha256:", "pushed", "pulled", "https://registry.example.com/v2/", "GET", "POST", "200", "404", "in", "of", "the",
	"stdout F", "stderr P", "marker F {}", "\x00", "\xe2\x82", "ü", "漢字", "\t", "    ", "{\"level\":\"info\"", "\"msg\":", "}", "npm", "mvn", "gcc -O2", "-Wall",
	"undefined reference", "deprecated", "function", "returned", "value", "expected", "but got", "nil", "true", "false", "retry", "attempt", "timeout", "after", "seconds", "done",
}

// Append adds record n to dst.
func (s Stream) Append(dst []byte, n int64) []byte {
	r := rand.New(rand.NewPCG(s.Seed, uint64(n)))
	from := len(dst)
	dst = appendNumber(dst, n)
	dst = append(dst, ' ')
	dst = append(dst, "0123456789abcdef "...) // the hash's place
	textAt := len(dst)
	size := textLen(r)
	for bits, left := uint64(0), 0; len(dst)-textAt < size; left-- {
		if left == 0 {
			bits, left = r.Uint64(), 10
		}
		dst = append(dst, words[bits&63]...)
		dst = append(dst, ' ')
		bits >>= 6
	}
	dst = dst[:textAt+size]
	putHash(dst[from+digits+1:textAt-1], s.hash(dst[from:from+digits], dst[textAt:]))
	return append(dst, '\n')
}

// textLen varies: mostly a line of a build, at times nothing, a page, or more than shiplog puts into one line.
func textLen(r *rand.Rand) int {
	switch k := r.IntN(5000); {
	case k == 0:
		return 60_000 + r.IntN(100_000)
	case k < 20:
		return 1_000 + r.IntN(7_000)
	case k < 100:
		return 0
	default:
		return 1 + r.IntN(160)
	}
}

func appendNumber(dst []byte, n int64) []byte {
	var b [20]byte
	d := strconv.AppendInt(b[:0], n, 10)
	for i := len(d); i < digits; i++ {
		dst = append(dst, '0')
	}
	return append(dst, d...)
}

func (s Stream) hash(number, text []byte) uint64 {
	h := fnv.New64a()
	var seed [8]byte
	for i := range seed {
		seed[i] = byte(s.Seed >> (8 * i))
	}
	_, _ = h.Write(seed[:]) // a hash takes everything
	_, _ = h.Write(number)
	_, _ = h.Write(text)
	return h.Sum64()
}

func putHash(dst []byte, sum uint64) {
	var b [8]byte
	for i := range b {
		b[i] = byte(sum >> (56 - 8*i))
	}
	hex.Encode(dst, b[:])
}

// Parse returns the number of a whole record of this stream, given with its newline. A line whose hash is not right is none.
func (s Stream) Parse(line []byte) (n int64, ok bool) {
	line, ok = bytes.CutSuffix(line, []byte{'\n'})
	if !ok || len(line) < headLen || line[digits] != ' ' || line[headLen-1] != ' ' {
		return 0, false
	}
	for _, c := range line[:digits] {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	var want [hashChars]byte
	putHash(want[:], s.hash(line[:digits], line[headLen:]))
	return n, bytes.Equal(line[digits+1:headLen-1], want[:])
}
