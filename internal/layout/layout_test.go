package layout

import (
	"cmp"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	uidA = "11111111-1111-4111-8111-111111111111"
	uidB = "22222222-2222-4222-8222-222222222222"
)

var (
	testRun       = Run{Namespace: "team", Name: "build-7", UID: uidA}
	testPod       = Pod{Run: testRun, TaskRun: "build-7-compile", PodUID: uidB}
	testContainer = Container{Pod: testPod, Container: "step-build"}
	testSegment   = Segment{
		Offset: 4096, Length: 1024, PrintedOffset: 3000, Printed: 700, Line: 40, Lines: 9,
		First: time.Date(2026, 3, 4, 5, 6, 7, 8, time.UTC), Last: time.Date(2026, 3, 4, 5, 6, 9, 999999999, time.UTC),
	}
)

const testSegmentName = "00000000000000004096-0000001024-00000000000000003000-0000000700-000000000040-0000000009-" +
	"20260304T050607.000000008Z-20260304T050609.999999999Z.log.zst"

// The names as they are on the wire. They must not change: archives are read for years.
func TestNames(t *testing.T) {
	const runPrefix = "v1/team/build-7/" + uidA + "/"
	const podPrefix = runPrefix + "build-7-compile/" + uidB + "/"
	created := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	for _, c := range []struct{ name, got, want string }{
		{"namespace", NamespacePrefix("team"), "v1/team/"},
		{"name", NamePrefix("team", "build-7"), "v1/team/build-7/"},
		{"run", testRun.Prefix(), runPrefix},
		{"run.json", testRun.RunKey(), runPrefix + "run.json"},
		{"TaskRun alone", Run{Namespace: "team", Name: NoPipelineRun, UID: uidB}.Prefix(), "v1/team/_/" + uidB + "/"},
		{"pod", testPod.Prefix(), podPrefix},
		{"pod.json", testPod.PodKey(), podPrefix + "pod.json"},
		{"alive.json", testPod.AliveKey(), podPrefix + "alive.json"},
		{
			"pod that was gone", Pod{Run: testRun, TaskRun: "t", PodUID: GonePodUID(2)}.PodKey(),
			runPrefix + "t/gone-2/pod.json",
		},
		{"container", testContainer.Prefix(), podPrefix + "step-build/"},
		{"seal.json", testContainer.SealKey(), podPrefix + "step-build/seal.json"},
		{"waiting.json", testContainer.WaitingKey(), podPrefix + "step-build/waiting.json"},
		{"segment", testContainer.SegmentKey(testSegment), podPrefix + "step-build/" + testSegmentName},
		{"run index of a PipelineRun", RunIndex{"team", created, PipelineRun, "build-7", uidA}.Key(), "v1-index/team/runs/8227399/232_pipelinerun_build-7_" + uidA + ".json"},
		{"run index of a TaskRun", RunIndex{"team", created, TaskRun, "lint", uidA}.Key(), "v1-index/team/runs/8227399/232_taskrun_lint_" + uidA + ".json"},
		{"pod index", PodIndexKey("team", "build-7-compile-pod", uidB), "v1-index/team/pods/build-7-compile-pod/" + uidB + ".json"},
		{"UID index", UIDIndexKey("team", uidA), "v1-index/team/uids/" + uidA + ".json"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.got != c.want {
				t.Errorf("got  %s\nwant %s", c.got, c.want)
			}
		})
	}
}

func TestParseKey(t *testing.T) {
	alone := Pod{Run: Run{Namespace: "team", Name: NoPipelineRun, UID: uidA}, TaskRun: "lint", PodUID: uidB}
	for _, c := range []struct {
		name string
		key  string
		want Key
	}{
		{"run", testRun.RunKey(), Key{Kind: KindRun, Container: Container{Pod: Pod{Run: testRun}}}},
		{"pod", testPod.PodKey(), Key{Kind: KindPod, Container: Container{Pod: testPod}}},
		{"alive", testPod.AliveKey(), Key{Kind: KindAlive, Container: Container{Pod: testPod}}},
		{"seal", testContainer.SealKey(), Key{Kind: KindSeal, Container: testContainer}},
		{"waiting", testContainer.WaitingKey(), Key{Kind: KindWaiting, Container: testContainer}},
		{"segment", testContainer.SegmentKey(testSegment), Key{Kind: KindSegment, Container: testContainer, Segment: testSegment}},
		{"TaskRun without PipelineRun", alone.PodKey(), Key{Kind: KindPod, Container: Container{Pod: alone}}},
		{
			"pod that was gone",
			Pod{Run: testRun, TaskRun: "t", PodUID: GonePodUID(0)}.PodKey(),
			Key{
				Kind:      KindPod,
				Container: Container{Pod: Pod{Run: testRun, TaskRun: "t", PodUID: "gone-0"}},
			},
		},
		{"dotted names", "v1/a.b/c.d/u/e.f/u/g.h/seal.json", Key{Kind: KindSeal, Container: Container{Pod: Pod{Run: Run{"a.b", "c.d", "u"}, TaskRun: "e.f", PodUID: "u"}, Container: "g.h"}}},
		{"names that are file names", "v1/run.json/pod.json/u/seal.json/u/run.json/seal.json", Key{Kind: KindSeal, Container: Container{Pod: Pod{Run: Run{"run.json", "pod.json", "u"}, TaskRun: "seal.json", PodUID: "u"}, Container: "run.json"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := ParseKey(c.key)
			if err != nil {
				t.Fatal(err)
			}
			if got != c.want {
				t.Errorf("got  %+v\nwant %+v", got, c.want)
			}
			if again := format(got); again != c.key {
				t.Errorf("formats as %s, was %s", again, c.key)
			}
		})
	}
}

// format is the name of a parsed key.
func format(k Key) string {
	switch k.Kind {
	case KindRun:
		return k.Container.RunKey()
	case KindPod:
		return k.Container.PodKey()
	case KindAlive:
		return k.Container.AliveKey()
	case KindSeal:
		return k.Container.SealKey()
	case KindWaiting:
		return k.Container.WaitingKey()
	case KindSegment:
		return k.Container.SegmentKey(k.Segment)
	}
	return ""
}

// hostile are texts that no part of a name may be.
var hostile = map[string]string{
	"empty": "", "dot": ".", "dots": "..", "dots inside": "a..b", "leading dot": ".a", "trailing dot": "a.", "leading dash": "-a", "trailing dash": "a-",
	"upper case": "Team", "encoded slash": "a%2fb", "encoded dots": "%2e%2e", "backslash": `a\b`, "space": "a b", "newline": "a\n", "NUL": "a\x00b",
	"underscore": "a_b", "double underscore": "__", "wildcard": "*", "colon": "a:b", "tilde": "~", "not UTF-8": "\xff", "umlaut": "ü", "fullwidth dots": "．．", "too long": strings.Repeat("a", 254),
}

func TestHostileNames(t *testing.T) {
	for name, bad := range hostile {
		t.Run(name, func(t *testing.T) {
			for what, c := range map[string]Container{
				"namespace": {Pod: Pod{Run: Run{bad, "r", uidA}, TaskRun: "t", PodUID: uidB}, Container: "c"},
				"run":       {Pod: Pod{Run: Run{"n", bad, uidA}, TaskRun: "t", PodUID: uidB}, Container: "c"},
				"TaskRun":   {Pod: Pod{Run: Run{"n", "r", uidA}, TaskRun: bad, PodUID: uidB}, Container: "c"},
				"container": {Pod: Pod{Run: Run{"n", "r", uidA}, TaskRun: "t", PodUID: uidB}, Container: bad},
			} {
				if err := c.Validate(); err == nil {
					t.Errorf("%s %q is valid", what, bad)
				}
				if k, err := ParseKey(c.SealKey()); !errors.Is(err, ErrName) {
					t.Errorf("%s %q: parsed as %+v, %v", what, bad, k, err)
				}
			}
			for what, key := range map[string]string{
				"run index namespace": RunIndex{bad, time.Unix(0, 0), TaskRun, "n", uidA}.Key(),
				"run index name":      RunIndex{"n", time.Unix(0, 0), TaskRun, bad, uidA}.Key(),
			} {
				if x, err := ParseRunIndexKey(key); !errors.Is(err, ErrName) {
					t.Errorf("%s %q: parsed as %+v, %v", what, bad, x, err)
				}
			}
			for what, key := range map[string]string{"namespace": PodIndexKey(bad, "p", uidA), "pod": PodIndexKey("n", bad, uidA)} {
				if _, _, _, err := ParsePodIndexKey(key); !errors.Is(err, ErrName) {
					t.Errorf("pod index %s %q is parsed: %v", what, bad, err)
				}
			}
			if _, _, err := ParseUIDIndexKey(UIDIndexKey(bad, uidA)); !errors.Is(err, ErrName) {
				t.Errorf("UID index namespace %q is parsed: %v", bad, err)
			}
		})
	}
}

func TestHostileUIDs(t *testing.T) {
	for name, bad := range map[string]string{
		"empty": "", "dots": "..", "dot": "a.b", "slash": "a/b", "encoded slash": "a%2fb", "underscore": "a_b", "space": "a b", "NUL": "a\x00", "umlaut": "ü", "too long": strings.Repeat("a", 65),
	} {
		t.Run(name, func(t *testing.T) {
			if err := (Run{"n", "r", bad}).Validate(); err == nil {
				t.Errorf("run UID %q is valid", bad)
			}
			if err := (Pod{Run: Run{"n", "r", uidA}, TaskRun: "t", PodUID: bad}).Validate(); err == nil {
				t.Errorf("pod UID %q is valid", bad)
			}
			if k, err := ParseKey(Run{"n", "r", bad}.RunKey()); !errors.Is(err, ErrName) {
				t.Errorf("run UID %q: parsed as %+v, %v", bad, k, err)
			}
			if x, err := ParseRunIndexKey(RunIndex{"n", time.Unix(0, 0), TaskRun, "t", bad}.Key()); !errors.Is(err, ErrName) {
				t.Errorf("run index UID %q: parsed as %+v, %v", bad, x, err)
			}
			if _, _, _, err := ParsePodIndexKey(PodIndexKey("n", "p", bad)); !errors.Is(err, ErrName) {
				t.Errorf("pod index UID %q is parsed: %v", bad, err)
			}
			if _, _, err := ParseUIDIndexKey(UIDIndexKey("n", bad)); !errors.Is(err, ErrName) {
				t.Errorf("UID index UID %q is parsed: %v", bad, err)
			}
		})
	}
}

func TestLongestNames(t *testing.T) {
	name, uid := strings.Repeat("a", 253), strings.Repeat("F", 64)
	c := Container{Pod: Pod{Run: Run{name, name, uid}, TaskRun: name, PodUID: uid}, Container: name}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	got, err := ParseKey(c.SegmentKey(testSegment))
	if err != nil {
		t.Fatal(err)
	}
	if got.Container != c {
		t.Errorf("got %+v", got.Container)
	}
}

func TestParseKeyRefuses(t *testing.T) {
	for name, key := range map[string]string{
		"empty":                     "",
		"another version":           strings.Replace(testRun.RunKey(), "v1/", "v2/", 1),
		"index object":              UIDIndexKey("team", uidA),
		"leading slash":             "/" + testRun.RunKey(),
		"trailing slash":            testRun.RunKey() + "/",
		"run prefix":                testRun.Prefix(),
		"container prefix":          testContainer.Prefix(),
		"unknown file of a run":     testRun.Prefix() + "other.json",
		"unknown file of a pod":     testPod.Prefix() + "seal.json",
		"unknown file of a log":     testContainer.Prefix() + "pod.json",
		"run.json of a container":   testContainer.Prefix() + "run.json",
		"part too many":             testContainer.Prefix() + "x/seal.json",
		"empty part":                strings.Replace(testContainer.SealKey(), "/team/", "//", 1),
		"dots":                      strings.Replace(testContainer.SealKey(), "step-build", "..", 1),
		"no PipelineRun as TaskRun": strings.Replace(testContainer.SealKey(), "build-7-compile", NoPipelineRun, 1),
	} {
		t.Run(name, func(t *testing.T) {
			if k, err := ParseKey(key); !errors.Is(err, ErrName) {
				t.Errorf("%q: parsed as %+v, error %v, want ErrName", key, k, err)
			}
		})
	}
}

func TestSegmentName(t *testing.T) {
	far := time.Date(9999, 12, 31, 23, 59, 59, 999999999, time.UTC)
	for name, s := range map[string]Segment{
		"plain": testSegment,
		"zero":  {First: time.Unix(0, 0).UTC(), Last: time.Unix(0, 0).UTC()},
		"widest": {
			Offset: math.MaxInt64 - 9_999_999_999, Length: 9_999_999_999, PrintedOffset: math.MaxInt64 - 9_999_999_999, Printed: 9_999_999_999,
			Line: 999_999_999_999, Lines: 9_999_999_999, First: far, Last: far,
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseSegmentName(s.Name())
			if err != nil {
				t.Fatal(err)
			}
			if got != s {
				t.Errorf("got  %+v\nwant %+v", got, s)
			}
			if want := len(testSegmentName); len(s.Name()) != want {
				t.Errorf("%d characters, want %d", len(s.Name()), want)
			}
		})
	}
	t.Run("another time zone", func(t *testing.T) {
		s := testSegment
		s.First = s.First.In(time.FixedZone("", 3600))
		if s.Name() != testSegmentName {
			t.Errorf("got %s, want %s", s.Name(), testSegmentName)
		}
	})
}

func TestParseSegmentNameRefuses(t *testing.T) {
	change := func(old, new string) string {
		changed := strings.Replace(testSegmentName, old, new, 1)
		if changed == testSegmentName {
			t.Fatalf("%q is not in %s", old, testSegmentName)
		}
		return changed
	}
	for name, s := range map[string]string{
		"empty":               "",
		"suffix alone":        segmentSuffix,
		"no suffix":           strings.TrimSuffix(testSegmentName, segmentSuffix),
		"another suffix":      change(".zst", ".gz"),
		"field missing":       change("0000001024-", ""),
		"field too many":      change("0000001024-", "0000001024-0000001024-"),
		"narrow":              change("0000001024", "1024"),
		"wide":                change("0000001024", "00000001024"),
		"negative":            change("0000001024", "-000001024"),
		"plus":                change("0000001024", "+000001024"),
		"space":               change("0000001024", " 000001024"),
		"hex":                 change("0000001024", "0x00001024"),
		"other digits":        change("0000001024", "000000102٤"),
		"offset out of range": change("00000000000000004096", "99999999999999999999"),
		"end out of range":    change("00000000000000004096", "09223372036854775807"),
		"printed overflow":    change("00000000000000003000", "09223372036854775807"),
		"short fraction":      change("000000008Z", "00000008Z"),
		"comma":               change("07.000000008Z", "07,000000008Z"),
		"no such day":         change("20260304T", "20260231T"),
		"no such hour":        change("T050607", "T250607"),
		"zone":                change("000000008Z", "000000008+"),
		"folder":              "x/" + testSegmentName,
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := ParseSegmentName(s); !errors.Is(err, ErrName) {
				t.Errorf("%q: parsed as %+v, error %v, want ErrName", s, got, err)
			}
		})
	}
}

// What makes one LIST the index: the order of the names is the order of the log.
func TestSegmentNamesSort(t *testing.T) {
	var segments []Segment
	for _, offset := range []int64{0, 9, 10, 99, 1 << 20, 1 << 31, 1 << 40, math.MaxInt64 >> 1} {
		s := testSegment
		s.Offset = offset
		segments = append(segments, s)
	}
	names := make([]string, len(segments))
	for i, s := range segments {
		names[i] = s.Name()
	}
	if !slices.IsSorted(names) {
		t.Errorf("not sorted: %q", names)
	}
	if c := (Container{Pod: testPod, Container: "c"}); c.SealKey() < c.SegmentKey(segments[len(segments)-1]) {
		t.Error("the seal sorts before a segment")
	}
}

func TestRunIndexSortsNewestFirst(t *testing.T) {
	var entries []RunIndex
	for _, unix := range []int64{0, 1, 999_999_999, 1_000_000_000, 1_772_600_767, 1_772_600_768, 9_999_999_998, 9_999_999_999} {
		entries = append(entries, RunIndex{"team", time.Unix(unix, 0).UTC(), PipelineRun, "build", uidA})
	}
	newestFirst := slices.SortedFunc(slices.Values(entries), func(a, b RunIndex) int { return b.Created.Compare(a.Created) })
	byName := slices.SortedFunc(slices.Values(entries), func(a, b RunIndex) int { return cmp.Compare(a.Key(), b.Key()) })
	if !slices.Equal(newestFirst, byName) {
		t.Errorf("by name %v, want %v", byName, newestFirst)
	}
}

func TestRunIndex(t *testing.T) {
	created := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	for _, c := range []struct {
		name  string
		index RunIndex
		run   Run
	}{
		{"PipelineRun", RunIndex{"team", created, PipelineRun, "build-7", uidA}, Run{"team", "build-7", uidA}},
		{"TaskRun", RunIndex{"team", created, TaskRun, "lint", uidA}, Run{"team", NoPipelineRun, uidA}},
		{"name that looks like a kind", RunIndex{"team", created, PipelineRun, "taskrun", uidA}, Run{"team", "taskrun", uidA}},
		{"name that looks like a file", RunIndex{"team", created, PipelineRun, "x.json", uidA}, Run{"team", "x.json", uidA}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := ParseRunIndexKey(c.index.Key())
			if err != nil || got != c.index {
				t.Errorf("got %+v and %v, want %+v", got, err, c.index)
			}
			if run := c.index.Run(); run != c.run {
				t.Errorf("run %+v, want %+v", run, c.run)
			}
			if !strings.HasPrefix(c.index.Key(), RunIndexPrefix("team")) {
				t.Errorf("%s is not under %s", c.index.Key(), RunIndexPrefix("team"))
			}
		})
	}
	good := RunIndex{"team", created, PipelineRun, "build-7", uidA}.Key()
	for name, key := range map[string]string{
		"empty":         "",
		"unknown kind":  strings.Replace(good, "_pipelinerun_", "_customrun_", 1),
		"no suffix":     strings.TrimSuffix(good, ".json"),
		"short time":    strings.Replace(good, "/8", "/", 1),
		"letter":        strings.Replace(good, "/8", "/x", 1),
		"one folder":    strings.Replace(good, "8227399/232", "8227399232", 1),
		"long seconds":  strings.Replace(good, "/232", "/0232", 1),
		"field missing": strings.Replace(good, "_build-7", "", 1),
		"other folder":  strings.Replace(good, "/runs/", "/uids/", 1),
		"log object":    testRun.RunKey(),
	} {
		t.Run("refuses "+name, func(t *testing.T) {
			if got, err := ParseRunIndexKey(key); !errors.Is(err, ErrName) {
				t.Errorf("%q: parsed as %+v, error %v", key, got, err)
			}
		})
	}
}

func TestPointers(t *testing.T) {
	ns, pod, uid, err := ParsePodIndexKey(PodIndexKey("team", "a.pod", uidB))
	if err != nil || ns != "team" || pod != "a.pod" || uid != uidB {
		t.Errorf("pod index: %q %q %q %v", ns, pod, uid, err)
	}
	if !strings.HasPrefix(PodIndexKey("team", "a.pod", uidB), PodIndexPrefix("team", "a.pod")) {
		t.Error("a pod's pointer is not under its prefix")
	}
	ns, uid, err = ParseUIDIndexKey(UIDIndexKey("team", uidA))
	if err != nil || ns != "team" || uid != uidA {
		t.Errorf("UID index: %q %q %v", ns, uid, err)
	}
	for name, key := range map[string]string{
		"empty": "", "no suffix": "v1-index/team/uids/u", "other suffix": "v1-index/team/uids/u.jsonl", "other folder": "v1-index/team/runs/u.json", "deeper": "v1-index/team/uids/a/u.json", "version": "v1/team/uids/u.json",
	} {
		t.Run("refuses "+name, func(t *testing.T) {
			if _, _, err := ParseUIDIndexKey(key); !errors.Is(err, ErrName) {
				t.Errorf("UID index %q: %v", key, err)
			}
			key = strings.Replace(key, "uids/", "pods/p/", 1)
			if _, _, _, err := ParsePodIndexKey(key); !errors.Is(err, ErrName) {
				t.Errorf("pod index %q: %v", key, err)
			}
		})
	}
}

// Whatever parses formats as the same text, so a name means one thing and one thing has one name.
func FuzzParseKey(f *testing.F) {
	for _, k := range []string{testRun.RunKey(), testPod.PodKey(), testPod.AliveKey(), testContainer.SealKey(), testContainer.WaitingKey(), testContainer.SegmentKey(testSegment), "v1/../x/u/run.json", "v1/n/_/u/run.json", "v1/n/_/u/_/u/pod.json"} {
		f.Add(k)
	}
	f.Fuzz(func(t *testing.T, s string) {
		k, err := ParseKey(s)
		if err != nil {
			if !errors.Is(err, ErrName) {
				t.Errorf("error %v does not wrap ErrName", err)
			}
			return
		}
		if again := format(k); again != s {
			t.Errorf("%q formats as %q", s, again)
		}
		if strings.Contains(s, "..") || strings.ContainsAny(s, "%\\ \x00") {
			t.Errorf("%q is a path trick", s)
		}
	})
}

func FuzzParseSegmentName(f *testing.F) {
	f.Add(testSegmentName)
	f.Add(strings.Replace(testSegmentName, "20260304", "00000101", 1))
	f.Add(strings.Replace(testSegmentName, "00000000000000004096", "09223372036854775807", 1))
	f.Fuzz(func(t *testing.T, s string) {
		seg, err := ParseSegmentName(s)
		if err != nil {
			if !errors.Is(err, ErrName) {
				t.Errorf("error %v does not wrap ErrName", err)
			}
			return
		}
		if again := seg.Name(); again != s {
			t.Errorf("%q formats as %q", s, again)
		}
		if seg.Offset < 0 || seg.Length < 0 || seg.Printed < 0 || seg.PrintedOffset < 0 || seg.Line < 0 || seg.Lines < 0 || seg.End() < seg.Offset {
			t.Errorf("%q has a negative number: %+v", s, seg)
		}
	})
}

// What a segment holds comes back from its name, for all numbers that have a place in it.
func FuzzSegmentRoundTrip(f *testing.F) {
	f.Add(int64(0), int64(0), int64(0), int64(0), int64(0), int64(0), int64(0), int64(0))
	f.Add(int64(4096), int64(1024), int64(3000), int64(700), int64(40), int64(9), int64(1_772_600_767_000_000_008), int64(1_772_600_769_999_999_999))
	f.Fuzz(func(t *testing.T, offset, length, printedOffset, printed, line, lines, first, last int64) {
		abs := func(n, below int64) int64 { return int64(uint64(n) % uint64(below)) }
		want := Segment{
			Offset: abs(offset, math.MaxInt64>>1), Length: abs(length, 1e10), PrintedOffset: abs(printedOffset, math.MaxInt64>>1), Printed: abs(printed, 1e10),
			Line: abs(line, 1e12), Lines: abs(lines, 1e10), First: time.Unix(0, first).UTC(), Last: time.Unix(0, last).UTC(),
		}
		got, err := ParseSegmentName(want.Name())
		if err != nil || got != want {
			t.Errorf("got %+v and %v, want %+v", got, err, want)
		}
	})
}

func FuzzParseIndexKeys(f *testing.F) {
	f.Add(RunIndex{"team", time.Unix(1_772_600_767, 0), PipelineRun, "build-7", uidA}.Key())
	f.Add(RunIndex{"team", time.Unix(0, 0), TaskRun, "lint", uidA}.Key())
	f.Add(PodIndexKey("team", "build-7-compile-pod", uidB))
	f.Add(UIDIndexKey("team", uidA))
	f.Fuzz(func(t *testing.T, s string) {
		parsed := 0
		if x, err := ParseRunIndexKey(s); err == nil {
			parsed++
			if again := x.Key(); again != s {
				t.Errorf("run index %q formats as %q", s, again)
			}
			if err := x.Run().Validate(); err != nil {
				t.Errorf("run index %q: %v", s, err)
			}
		}
		if ns, pod, uid, err := ParsePodIndexKey(s); err == nil {
			parsed++
			if again := PodIndexKey(ns, pod, uid); again != s {
				t.Errorf("pod index %q formats as %q", s, again)
			}
		}
		if ns, uid, err := ParseUIDIndexKey(s); err == nil {
			parsed++
			if again := UIDIndexKey(ns, uid); again != s {
				t.Errorf("UID index %q formats as %q", s, again)
			}
		}
		if _, err := ParseKey(s); err == nil {
			parsed++
		}
		if parsed > 1 {
			t.Errorf("%q is a name of %d kinds", s, parsed)
		}
	})
}
