package model

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/backend/api"
	"github.com/shiplog-dev/shiplog/backend/client"
	"github.com/shiplog-dev/shiplog/backend/live"
	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/segment"
)

// oneAsked is of how many histories one is asked for in all ways.
const oneAsked = 50

// TestAgreement asks the same of a bucket, of a server that reads it, and of the pods that printed
// it: all must answer the same.
func TestAgreement(t *testing.T) {
	n, seeds := asked(t)
	each(t, n/oneAsked, seeds, func(t *testing.T, seed uint64, writer *segment.Writer) error {
		return agrees(t.Context(), seed, writer)
	})
}

// handled are requests that a handler answers here, without a network.
type handled struct{ http.Handler }

func (h handled) RoundTrip(r *http.Request) (*http.Response, error) {
	rec := httptest.NewRecorder()
	broken := false
	func() {
		defer func() {
			//nolint:errorlint // as net/http has it
			if said := recover(); said == http.ErrAbortHandler {
				broken = true
			} else if said != nil {
				panic(said)
			}
		}()
		h.ServeHTTP(rec, r)
	}()
	res := rec.Result()
	res.Request = r
	if length := res.ContentLength; length >= 0 && int64(rec.Body.Len()) != length &&
		r.Method != http.MethodHead {
		broken = true
	}
	if broken {
		res.Body = io.NopCloser(io.MultiReader(res.Body, brokenOff{}))
	}
	return res, nil
}

type brokenOff struct{}

func (brokenOff) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// everybody may read.
type everybody struct{}

func (everybody) Allow(*http.Request, string) (backend.Reach, error) {
	return backend.Reach{All: true}, nil
}
func (everybody) Allowed(_ *http.Request, namespaces []string) ([]string, error) {
	return namespaces, nil
}

func agrees(ctx context.Context, seed uint64, writer *segment.Writer) error {
	w := newWorld(seed, true, writer)
	rnd := rand.New(rand.NewPCG(seed, 4))
	now := w.begin.Add(time.Duration(rnd.Int64N(int64(w.end.Sub(w.begin) + 10*time.Minute))))
	s := newStore(w.events, func() time.Time { return now })
	bucket := live.Bucket{Archive: backend.New(s)}
	handler := api.New(api.Options{Archive: bucket.Archive, Gate: everybody{},
		Log: slog.New(slog.DiscardHandler)})
	server, err := client.New("http://shiplog.test", &http.Client{Transport: handled{handler}})
	if err != nil {
		return err
	}
	p := w.pods[rnd.IntN(len(w.pods))]
	for _, ref := range []string{p.name, p.key.TaskRun, p.taskRunUID, p.key.Run.UID,
		p.key.Run.Name, "none"} {
		for _, kind := range []layout.RunKind{"", layout.PipelineRun, layout.TaskRun} {
			if err := agree(ctx, rnd, bucket, server, kind, ref); err != nil {
				return fmt.Errorf("%q %s at %s: %w", ref, kind, now.Sub(epoch), err)
			}
		}
	}
	return nil
}

func agree(ctx context.Context, rnd *rand.Rand, bucket live.Bucket, server *client.Client,
	kind layout.RunKind, ref string) error {
	here, target, err := bucket.Tree(ctx, "ns", kind, ref)
	there, said, saidErr := server.Tree(ctx, "ns", kind, ref)
	var a, b *backend.NotFoundError
	if err != nil || saidErr != nil {
		if errors.As(err, &a) != errors.As(saidErr, &b) || a == nil && (err == nil ||
			saidErr == nil) {
			return fmt.Errorf("the bucket says %w, and the server %w", err, saidErr)
		}
		return nil
	}
	if fmt.Sprint(target) != fmt.Sprint(said) || !here.At.Equal(there.At) ||
		here.Over(here.At) != there.Over(there.At) {
		return fmt.Errorf("the bucket finds %v (%s), and the server %v (%s)", target, here.At,
			said, there.At)
	}
	places, others := slices.Collect(here.Containers()), slices.Collect(there.Containers())
	if len(places) != len(others) {
		return fmt.Errorf("the bucket has %d containers, and the server %d", len(places),
			len(others))
	}
	for i, p := range places {
		o := others[i]
		if a, b := summary(p, target.Run), summary(o, target.Run); a != b {
			return fmt.Errorf("the bucket has %s, and the server %s", a, b)
		}
		options := backend.LogOptions{Tail: rnd.Int64N(2) * rnd.Int64N(5),
			FromLine: rnd.Int64N(2) * rnd.Int64N(5)}
		if rnd.IntN(2) == 0 {
			options.ToLine = options.FromLine + rnd.Int64N(5)
		}
		got, want := &collected{}, &collected{}
		for l, err := range bucket.Lines(ctx, &p.Container, options, false) {
			want.add(l, err)
		}
		for l, err := range server.Lines(ctx, &o.Container, options, false) {
			got.add(l, err)
		}
		if fmt.Sprint(want.err) != fmt.Sprint(got.err) ||
			fmt.Sprint(want.lines) != fmt.Sprint(got.lines) {
			return fmt.Errorf("%s of %+v: the bucket has %v (%w), and the server %v (%w)",
				p.Container.Key.Prefix(), options, want.lines, want.err, got.lines, got.err)
		}
		if a, b := summary(p, target.Run), summary(o, target.Run); a != b {
			return fmt.Errorf("behind its lines the bucket has %s, and the server %s", a, b)
		}
		if err := agreeContent(ctx, bucket, server, p.Container); err != nil {
			return fmt.Errorf("%s: %w", p.Container.Key.Prefix(), err)
		}
	}
	return agreeSearch(ctx, bucket, server, kind, ref, places)
}

func summary(p backend.Place, run layout.Run) string {
	c := p.Container
	return fmt.Sprintln(c.Key, c.Kind, p.Label(run), c.Status, c.Why, c.Describe(), c.Bytes,
		c.Lines, c.Archive, c.Stored, c.Estimated, p.Retry, p.Pod.LastSeen.UnixNano())
}

// agreeContent compares what was printed.
func agreeContent(ctx context.Context, bucket live.Bucket, server *client.Client,
	c backend.Container) error {
	var want bytes.Buffer
	damaged := c.Status == backend.Missed
	for l, err := range bucket.Archive.Lines(ctx, c, backend.LogOptions{}) {
		if err != nil {
			return err
		}
		if l.Stream == criline.Markers {
			damaged = damaged || bytes.Contains(l.Text, []byte(`"missing"`)) &&
				c.Status != backend.Damaged
			continue
		}
		want.Write(l.Text)
		if l.Full {
			want.WriteByte('\n')
		}
	}
	r, length, err := server.Content(ctx, c.Key)
	var got []byte
	if err == nil {
		defer r.Close()
		got, err = io.ReadAll(r)
	}
	if damaged != (err != nil) {
		return fmt.Errorf("is damaged: %v, and the server's text ends with %w", damaged, err)
	}
	if err == nil && (!bytes.Equal(got, want.Bytes()) || length >= 0 &&
		length != int64(want.Len())) {
		return fmt.Errorf("the server's text is %q (%d bytes are promised), and the bucket's %q",
			got, length, want.Bytes())
	}
	return nil
}

// agreeSearch compares what a search finds.
func agreeSearch(ctx context.Context, bucket live.Bucket, server *client.Client,
	kind layout.RunKind, ref string, places []backend.Place) error {
	search := must(backend.NewSearch(backend.Query{Pattern: "a"}))
	var want, got []string
	for _, p := range places {
		if !(backend.Choice{}).Includes(p.TaskRun, p.Container) {
			continue
		}
		for m, err := range search.In(ctx, bucket.Archive, p.Container, backend.LogOptions{}) {
			var lacks *backend.MissingError
			if errors.As(err, &lacks) {
				continue
			}
			if err != nil {
				return err
			}
			want = append(want, fmt.Sprint(p.TaskRun.Name, p.Retry, p.Container.Name, m.Number,
				string(m.Text)))
		}
	}
	var found client.Found
	for m, err := range server.Search(ctx, "ns", kind, ref, url.Values{"q": {"a"},
		"limit": {"10000"}}, &found) {
		if err != nil {
			return err
		}
		got = append(got, fmt.Sprint(m.TaskRun, m.Retry, m.Container, m.Line, m.Text))
	}
	if !slices.Equal(want, got) {
		return fmt.Errorf("a search of the bucket finds\n%s\nand one of the server\n%s",
			strings.Join(want, "\n"), strings.Join(got, "\n"))
	}
	return nil
}
