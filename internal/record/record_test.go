package record

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/shiplog-dev/shiplog/internal/criline"
	"github.com/shiplog-dev/shiplog/internal/layout"
)

var update = flag.Bool("update", false, "write the golden files anew")

// One full example of each record. The files under testdata are the wire format.
var (
	created = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	run     = Run{
		Kind: layout.PipelineRun, Namespace: "team", Name: "build-7", UID: "uid-1", Created: created,
		NamespaceUID: "uid-0",
		Pipeline:     "build", Tasks: []string{"clone", "compile", "report"}, Labels: map[string]string{"b": "2", "a": "1"},
	}
	endedRun = Run{
		Kind: layout.TaskRun, Namespace: "team", Name: "lint", UID: "uid-4", Created: created,
		State: Failed, Reason: "TaskRunTimeout", Started: created.Add(time.Second), Completed: created.Add(time.Hour),
	}
	pod = Pod{
		Namespace: "team", PodName: "build-7-compile-pod", PodUID: "uid-2", TaskRun: "build-7-compile", TaskRunUID: "uid-3", PipelineTask: "compile", Created: created,
		Containers: []Container{
			{Name: "prepare", Kind: Init, Captured: true}, {Name: "step-build", Kind: Step, Captured: true}, {Name: "sidecar-db", Kind: Sidecar, Skipped: "no-command"},
		},
		Labels: map[string]string{"app": "demo"},
	}
	missedPod = Pod{
		Namespace: "team", PodName: "build-7-test-pod", PodUID: "gone-0", TaskRun: "build-7-test",
		TaskRunUID: "uid-5", PipelineTask: "test", Created: created,
		Containers: []Container{{Name: "step-unit", Kind: Step, Skipped: SkippedPodGone}},
	}
	alive   = Alive{Time: created.Add(time.Nanosecond)}
	waiting = Waiting{Reason: "ImagePullBackOff", Message: "Back-off pulling image \"registry.example/x\": <not found>"}
	pointer = Pointer{Run: layout.Run{Namespace: "team", Name: "build-7", UID: "uid-1"}, TaskRun: "build-7-compile", PodUID: "uid-2"}
	seal    = Seal{
		Bytes: 5000, Printed: Printed{Stdout: 3000, Stderr: 700}, Lines: 49, Segments: 2, SHA256: strings.Repeat("ab", 32), End: EndExited, Exit: &Exit{Code: 137, Signal: "killed"},
		Gaps: []criline.Marker{{Kind: criline.Gap, Reason: criline.ReasonSpoolLimit, Stdout: 10}}, GapCount: 1, Lost: Printed{Stdout: 10}, First: created, Last: created.Add(time.Second), Sealed: created.Add(2 * time.Second),
	}
	emptySeal = Seal{End: EndNeverStarted, Sealed: created}
)

func TestGolden(t *testing.T) {
	t.Run("run", func(t *testing.T) { golden(t, run) })
	t.Run("run-ended", func(t *testing.T) { golden(t, endedRun) })
	t.Run("pod", func(t *testing.T) { golden(t, pod) })
	t.Run("pod-missed", func(t *testing.T) { golden(t, missedPod) })
	t.Run("alive", func(t *testing.T) { golden(t, alive) })
	t.Run("waiting", func(t *testing.T) { golden(t, waiting) })
	t.Run("pointer", func(t *testing.T) { golden(t, pointer) })
	t.Run("seal", func(t *testing.T) { golden(t, seal) })
	t.Run("seal-empty", func(t *testing.T) { golden(t, emptySeal) })
}

// golden checks both ways: what is written is the file, and what is read from the file is the record.
func golden[T Any](t *testing.T, v T) {
	b, err := Encode(v)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join("testdata", filepath.Base(t.Name())+".json")
	if *update {
		if err := os.WriteFile(file, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v (go test ./internal/record -update makes it)", err)
	}
	if !bytes.Equal(b, want) {
		t.Errorf("got  %swant %s", b, want)
	}
	if b[len(b)-1] != '\n' || bytes.Count(b, []byte{'\n'}) != 1 {
		t.Errorf("%q is not one line", b)
	}
	got, err := Decode[T](want)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, v) {
		t.Errorf("decoded %+v, want %+v", got, v)
	}
}

func TestNamespaceHolds(t *testing.T) {
	namespace := Namespace{UID: "new", Created: created}
	after, before := created.Add(time.Second), created.Add(-time.Second)
	for _, c := range []struct {
		name      string
		namespace Namespace
		run       Run
		want      bool
	}{
		{"its UID", namespace, Run{NamespaceUID: "new", Created: after}, true},
		{"another's", namespace, Run{NamespaceUID: "old", Created: before}, false},
		{"another's, by a fast clock", namespace, Run{NamespaceUID: "old", Created: after}, false},
		{"its UID, by a slow clock", namespace, Run{NamespaceUID: "new", Created: before}, true},
		{"no UID, and later", namespace, Run{Created: after}, true},
		{"no UID, in the same second", namespace, Run{Created: created}, true},
		{"no UID, and before", namespace, Run{Created: before}, false},
		{"a record that says nothing", namespace, Run{}, false},
		{"no namespace", Namespace{}, Run{Created: created}, false},
		{"no namespace, and no UID", Namespace{Created: created}, Run{Created: created}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := c.namespace.Holds(c.run); got != c.want {
				t.Errorf("holds: %t, want %t", got, c.want)
			}
			if c.want && c.run.Created.Before(c.namespace.Since()) {
				t.Errorf("it is older than %s", c.namespace.Since())
			}
		})
	}
}

func TestMissed(t *testing.T) {
	for _, c := range []struct {
		name string
		in   Container
		want bool
	}{
		{"captured", Container{Kind: Step, Captured: true}, false},
		{"a step", Container{Kind: Step, Skipped: "limit-range"}, true},
		{"a step, and nobody says why", Container{Kind: Step}, true},
		{"a step that opted out", Container{Kind: Step, Skipped: SkippedOptedOut}, false},
		{"a sidecar", Container{Kind: Sidecar, Skipped: "no-command"}, false},
		{"an init container", Container{Kind: Init, Skipped: "memory-limit"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := c.in.Missed(); got != c.want {
				t.Errorf("missed: %t, want %t", got, c.want)
			}
		})
	}
}

// Idempotence rests on it: a record made twice has the same bytes.
func TestEncodeIsStable(t *testing.T) {
	first, err := Encode(run)
	if err != nil {
		t.Fatal(err)
	}
	for range 20 { // map order differs from call to call
		if b, err := Encode(run); err != nil || !bytes.Equal(b, first) {
			t.Fatalf("%s and %v, was %s", b, err, first)
		}
	}
}

func TestDecodeIgnoresUnknownFields(t *testing.T) {
	got, err := Decode[Pointer]([]byte(`{"run":{"namespace":"n","name":"r","uid":"u","new":{}},"later":[1,2]}`))
	if want := (Pointer{Run: layout.Run{Namespace: "n", Name: "r", UID: "u"}}); err != nil || got != want {
		t.Errorf("got %+v and %v, want %+v", got, err, want)
	}
}

func TestDecodeRefuses(t *testing.T) {
	for name, s := range map[string]string{"empty": "", "cut off": `{"bytes":1`, "another type": `{"bytes":"1"}`, "list": `[]`, "fraction": `{"bytes":1.5}`, "two": "{}{}", "too large": `{"bytes":9223372036854775808}`} {
		t.Run(name, func(t *testing.T) {
			if got, err := Decode[Seal]([]byte(s)); err == nil || !strings.Contains(err.Error(), "record.Seal") {
				t.Errorf("decoded %+v, error %v, want one that names the record", got, err)
			}
		})
	}
}

// TestLimits: what a tenant can write takes no more memory than a record may have.
func TestLimits(t *testing.T) {
	list := func(field string, n int) string { return `{"` + field + `":[{}` + strings.Repeat(`,{}`, n-1) + `]}` }
	for _, c := range []struct {
		name   string
		decode func() (int, error)
		want   int // -1: it is refused
	}{
		{"gaps at the limit", func() (int, error) { s, err := Decode[Seal]([]byte(list("gaps", MaxGaps))); return len(s.Gaps), err }, MaxGaps},
		{"a gap more", func() (int, error) { s, err := Decode[Seal]([]byte(list("gaps", MaxGaps+1))); return len(s.Gaps), err }, -1},
		{"as many gaps as fit", func() (int, error) { s, err := Decode[Seal]([]byte(list("gaps", 80_000))); return len(s.Gaps), err }, -1},
		{"containers at the limit", func() (int, error) {
			p, err := Decode[Pod]([]byte(list("containers", MaxContainers)))
			return len(p.Containers), err
		}, MaxContainers},
		{"a container more", func() (int, error) {
			p, err := Decode[Pod]([]byte(list("containers", MaxContainers+1)))
			return len(p.Containers), err
		}, -1},
		{"no list of containers", func() (int, error) {
			p, err := Decode[Pod]([]byte(`{"containers":null}`))
			return len(p.Containers), err
		}, 0},
		{"containers that are no list", func() (int, error) { p, err := Decode[Pod]([]byte(`{"containers":{}}`)); return len(p.Containers), err }, -1},
		{"a seal that is too large", func() (int, error) {
			_, err := Decode[Seal]([]byte(`{"bytes":0}` + strings.Repeat(" ", 256<<10)))
			return 0, err
		}, -1},
		{"a pod that is too large", func() (int, error) { _, err := Decode[Pod]([]byte(`{}` + strings.Repeat(" ", 1<<20))); return 0, err }, -1},
		{"a run that is too large", func() (int, error) { _, err := Decode[Run]([]byte(`{}` + strings.Repeat(" ", 2<<20))); return 0, err }, -1},
		{"a pointer that is too large", func() (int, error) {
			_, err := Decode[Pointer]([]byte(`{}` + strings.Repeat(" ", 64<<10)))
			return 0, err
		}, -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			n, err := c.decode()
			if c.want < 0 && (err == nil || n > 0) || c.want >= 0 && (err != nil || n != c.want) {
				t.Errorf("%d entries, error %v, want %d", n, err, c.want)
			}
		})
	}
}

func TestEncodeRefusesImpossibleTime(t *testing.T) {
	if b, err := Encode(Alive{Time: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)}); err == nil {
		t.Errorf("encoded %s", b)
	}
}

func TestWaitingForAnImage(t *testing.T) {
	for reason, want := range map[string]bool{"ImagePullBackOff": true, "ErrImagePull": true, "InvalidImageName": true, "ErrImageNeverPull": true, "CreateContainerError": false, "": false} {
		if got := (Waiting{Reason: reason}).IsImage(); got != want {
			t.Errorf("%q: %t, want %t", reason, got, want)
		}
	}
}

func TestPrintedTotal(t *testing.T) {
	for _, c := range []struct {
		name    string
		printed Printed
		want    int64
	}{
		{"nothing", Printed{}, 0},
		{"both streams", Printed{Stdout: 3, Stderr: 4}, 7},
		{"the largest number", Printed{Stdout: math.MaxInt64 - 1, Stderr: 1}, math.MaxInt64},
		{"more than the largest number", Printed{Stdout: math.MaxInt64, Stderr: math.MaxInt64}, math.MaxInt64},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := c.printed.Total(); got != c.want {
				t.Errorf("total %d, want %d", got, c.want)
			}
		})
	}
}

// A record that was read and is written again keeps what it says.
func FuzzSeal(f *testing.F) {
	for _, s := range []Seal{seal, emptySeal} {
		b, err := json.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"exit":null,"gaps":[],"first":"0001-01-01T00:00:00Z"}`))
	f.Fuzz(roundTrip[Seal])
}

func FuzzPod(f *testing.F) {
	for _, p := range []Pod{pod, missedPod} {
		b, err := json.Marshal(p)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"containers":[{"name":"step-a","kind":"step","skipped":"later"}],"labels":null}`))
	f.Fuzz(roundTrip[Pod])
}

func roundTrip[T Pod | Seal](t *testing.T, b []byte) {
	first, err := Decode[T](b)
	if err != nil {
		return
	}
	again, err := Encode(first)
	if err != nil {
		t.Fatalf("encode what was decoded: %v", err)
	}
	if int64(len(again)) > Limit[T]() { // what was written with fewer escapes
		return
	}
	second, err := Decode[T](again)
	if err != nil {
		t.Fatal(err)
	}
	final, err := Encode(second)
	if err != nil || !bytes.Equal(again, final) {
		t.Errorf("%s became %s, %v", again, final, err)
	}
}

// TestHostileText: a field holds no more than its object has bytes, and no more than its limit; what
// is told a person is one line, which a terminal does not obey.
func TestHostileText(t *testing.T) {
	decodeSeal := func(s string) error { _, err := Decode[Seal]([]byte(s)); return err }
	decodePod := func(s string) error { _, err := Decode[Pod]([]byte(s)); return err }
	long := strings.Repeat("a", maxName+1)
	for _, c := range []struct {
		name    string
		err     error
		refused bool
	}{
		{"bytes that are no UTF-8", decodeSeal(`{"end":"` + strings.Repeat("\xff", 1000) + `"}`), true},
		{"no digest", decodeSeal(`{}`), false},
		{"a digest", decodeSeal(`{"sha256":"` + strings.Repeat("0f", 32) + `"}`), false},
		{"a digest that is too short", decodeSeal(`{"sha256":"0f"}`), true},
		{"a digest that is too long", decodeSeal(`{"sha256":"` + strings.Repeat("0f", 33) + `"}`), true},
		{"a digest of other letters", decodeSeal(`{"sha256":"` + strings.Repeat("0g", 32) + `"}`), true},
		{"a digest of capitals", decodeSeal(`{"sha256":"` + strings.Repeat("0F", 32) + `"}`), true},
		{"a long TaskRun", decodePod(`{"taskRun":"` + long + `"}`), true},
		{"a long container", decodePod(`{"containers":[{"name":"` + long + `"}]}`), true},
		{"a long kind", decodePod(`{"containers":[{"kind":"` + long + `"}]}`), true},
		{"labels that are none", decodePod(`{"labels":[]}`), true},
		{"no labels", decodePod(`{"labels":null}`), false},
	} {
		if (c.err != nil) != c.refused {
			t.Errorf("%s: error %v, want one: %t", c.name, c.err, c.refused)
		}
	}

	var many strings.Builder
	for i := range 50_000 {
		fmt.Fprintf(&many, `,"%d":""`, i)
	}
	p, err := Decode[Pod]([]byte(`{"labels":{` + many.String()[1:] + `},"podName":"behind"}`))
	if err != nil || len(p.Labels) != MaxLabels || p.PodName != "behind" {
		t.Errorf("of many labels: %d, pod %q, %v, want %d", len(p.Labels), p.PodName, err, MaxLabels)
	}
	wide := `{"labels":{"a":"` + strings.Repeat("b", maxLabelBytes) + `"}}`
	if p, err = Decode[Pod]([]byte(wide)); err != nil || len(p.Labels) != 0 {
		t.Errorf("of one large label: %d labels, %v", len(p.Labels), err)
	}

	// 𝟘 has four bytes and is cut within none of them.
	forged := `one\ntwo\u001b[31m` + strings.Repeat("𝟘", 5000)
	p, err = Decode[Pod]([]byte(`{"containers":[{"name":"a","skipped":"` + forged + `"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	s, err := Decode[Seal]([]byte(`{"end":"` + forged + `","exit":{"signal":"` + forged +
		`"},"gaps":[{"kind":"` + forged + `","reason":"` + forged + `","detail":"` + forged + `"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	w, err := Decode[Waiting]([]byte(`{"reason":"` + forged + `","message":"` + forged + `"}`))
	if err != nil {
		t.Fatal(err)
	}
	r, err := Decode[Run]([]byte(`{"reason":"` + forged + `"}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		p.Containers[0].Skipped, string(s.End), s.Exit.Signal, s.Gaps[0].Kind,
		string(s.Gaps[0].Reason), s.Gaps[0].Detail, w.Reason, w.Message, r.Reason,
	} {
		if !strings.HasPrefix(text, `one two\x1b[31m𝟘`) || !strings.HasSuffix(text, "𝟘…") || len(text) > maxText+10 {
			t.Errorf("%q, of %d bytes", text, len(text))
		}
	}
}

// TestHostileNumber: a message does not repeat what it complains of.
func TestHostileNumber(t *testing.T) {
	_, err := Decode[Seal]([]byte(`{"bytes":` + strings.Repeat("9", 200_000) + `}`))
	if err == nil || len(err.Error()) > 2*maxText {
		t.Errorf("an error of %d bytes: %.200v", len(err.Error()), err)
	}
}
