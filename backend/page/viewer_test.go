package page

import (
	"context"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/shiplog-dev/shiplog/backend"
	"github.com/shiplog-dev/shiplog/backend/archivetest"
	"github.com/shiplog-dev/shiplog/internal/layout"
	"github.com/shiplog-dev/shiplog/internal/record"
)

// heardOf sets when the store got the objects of a run. The server keeps objects as files, with this as their time.
func (s *site) heardOf(t *testing.T, run layout.Run, at time.Time) {
	t.Helper()
	n := 0
	err := filepath.WalkDir(s.data, func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.Contains(path, run.Prefix()) {
			return nil // the server makes and removes files of its own
		}
		n++
		return os.Chtimes(path, at, at)
	})
	if err != nil || n == 0 {
		t.Fatalf("%d files of %s: %v", n, run.Prefix(), err)
	}
}

// start makes a run with one task and one step that runs.
func (s *site) start(t *testing.T, name string, lines []byte) layout.Container {
	t.Helper()
	run := archivetest.PutRun(t, s.store, record.Run{Kind: layout.PipelineRun, Namespace: "builds", Name: name, UID: "run-" + name, Created: begin})
	pod := layout.Pod{Run: run, TaskRun: name + "-t", PodUID: "pod-" + name}
	archivetest.PutPod(t, s.store, pod, record.Pod{PodName: name + "-t-pod", PipelineTask: "t", Created: begin, Containers: steps("s")})
	c := layout.Container{Pod: pod, Container: "step-s"}
	archivetest.PutLog(t, s.store, c, lines, 0)
	return c
}

// grow adds the lines behind the first ones.
func (s *site) grow(t *testing.T, c layout.Container, all []byte, from, to int) {
	t.Helper()
	before, _ := archivetest.Segments(t, firstLines(all, from), 0)
	segments, bodies := archivetest.Segments(t, firstLines(all, to)[before[0].Length:], 0)
	x := segments[0]
	x.Offset, x.PrintedOffset, x.Line = before[0].Length, before[0].Printed, before[0].Lines
	archivetest.Put(t, s.store, c.SegmentKey(x), bodies[0])
}

// finish is start with an end.
func (s *site) finish(t *testing.T, name string, lines []byte) {
	t.Helper()
	c := s.start(t, name, lines)
	archivetest.PutRecord(t, s.store, c.SealKey(), archivetest.Seal(t, lines))
}

// wheel turns the mouse's wheel over the log.
func (b *browser) wheel(px float64) {
	b.Helper()
	b.do(chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		p := input.DispatchMouseEventParams{Type: input.DispatchMouseEventTypeMouseWheel, X: 200, Y: 500, DeltaX: 1e-9, DeltaY: px} // a DeltaX of 0 would be left out, and is wanted
		_, err := cdp.Call(ctx, t, input.DispatchMouseEvent, p)
		return err
	}))
}

// shown is JavaScript that says whether a line is drawn and loaded.
func shown(number int) string {
	return fmt.Sprintf(`document.querySelector('.row:not(.waiting)[data-number="%d"]')`, number)
}

// TestBrowserViewer is what the viewer does with logs that are long, wide, damaged or still written.
func TestBrowserViewer(t *testing.T) {
	s := newSite(t)
	b := newBrowser(t, s)
	b.do(chromedp.Navigate(s.url + "/ui/"))
	b.login()
	part := func(name string, f func(b *browser)) {
		t.Run(name, func(t *testing.T) { f(&browser{t, b.ctx, s}) })
	}
	number := func(i int) string { return fmt.Sprintf("line %d", i+1) }

	part("nothing archived", func(b *browser) {
		archivetest.PutRun(b.T, s.store, record.Run{Kind: layout.PipelineRun, Namespace: "builds", Name: "none", UID: "run-none", Created: begin})
		b.open("/ui/builds/run-none")
		if text := b.text("#run"); !strings.Contains(text, "Nothing of this run is archived yet") || strings.Contains(text, "verified") {
			b.Errorf("the page says %q", text)
		}
		b.picture("nothing")
		archivetest.PutPod(b.T, s.store, layout.Pod{Run: layout.Run{Namespace: "builds", Name: "none", UID: "run-none"}, TaskRun: "none-t", PodUID: "pod-none"}, record.Pod{PodName: "none-t-pod", Created: begin, Containers: steps("s")})
		b.until("the first step", `document.querySelector(".step") && !document.querySelector("#tree > .message") && document.querySelector("#title").innerText.includes("logs running")`)
	})

	part("the session ends", func(b *browser) {
		all := archivetest.Lines(begin, 60, number)
		c := s.start(b.T, "session", firstLines(all, 40))
		const address = "/ui/builds/run-session#step=t/s"
		b.open(address)
		b.until("the log", shown(40))
		post := func(path, body string) {
			b.Helper()
			run(b, chromedp.Evaluate[int](fmt.Sprintf(`fetch(%q, {
				method: "POST", body: new URLSearchParams(%s), redirect: "manual",
			}).then((r) => r.status)`, path, body), chromedp.EvalAwaitPromise))
		}
		// stale is JavaScript that says whether the page tells that it may be old.
		const stale = `!document.querySelector("#stale").hidden`
		const live = `document.querySelector(".state").innerText === "live"`
		says := func(selector string) string {
			const js = `document.querySelector(%q).innerText.includes("your session has ended")`
			return fmt.Sprintf(js, selector)
		}
		told := func() {
			b.Helper()
			b.until("that the session has ended", stale+" && "+says("#stale"))
			b.do(chromedp.WaitVisible("#stale button"))
			b.until("it beside the log", says(".state"))
			if text := b.text(".row .text"); !strings.Contains(text, number(39)) {
				b.Errorf("the log is not shown any more: %q", text)
			}
		}
		post(own+"/logout", "{}")
		told()
		b.picture("session-ended")
		b.readable("session-ended")
		// Who logs in elsewhere finds the page going on.
		s.grow(b.T, c, all, 40, 50)
		post(own+"/login", fmt.Sprintf("{token: %q}", s.token))
		evaluate[bool](b, `window.dispatchEvent(new Event("focus"))`)
		b.until("what has come", shown(50)+" && !("+stale+") && "+live)
		post(own+"/logout", "{}")
		told()
		b.do(chromedp.Click("#stale button"))
		b.login()
		b.until("the same log", shown(50))
		if at := evaluate[string](b, `location.pathname + location.hash`); at != address {
			b.Errorf("the login leads to %q", at)
		}
		// A proxy before the server has a login of its own, which no script may follow to.
		proxy := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://login.example/", http.StatusFound)
		})
		s.instead.Store(&proxy)
		told()
		s.instead.Store(nil)
		evaluate[bool](b, `window.dispatchEvent(new Event("focus"))`)
		b.until("the page's going on", `document.querySelector("#stale").hidden`)
	})

	part("the page cannot be renewed", func(b *browser) {
		s.start(b.T, "stale", archivetest.Lines(begin, 3, number))
		b.open("/ui/builds/run-stale")
		for _, c := range []struct {
			status int
			says   string
		}{
			{http.StatusForbidden, "you may not"}, {http.StatusOK, "the server answers with another page"},
		} {
			no := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(c.status)
				fmt.Fprintf(w, `{"error":%q}`, c.says)
			})
			s.instead.Store(&no)
			why := "What is shown may be old: " + c.says + "."
			b.until("why", fmt.Sprintf(`document.querySelector("#stale").innerText.trim() === %q`, why))
			s.instead.Store(nil)
			b.until("the page's going on", `document.querySelector("#stale").hidden`)
		}
	})

	part("a long line is read to its end", func(b *browser) {
		long := "begin " + strings.Repeat("0123456789 ", 550) + "the very end"
		s.finish(b.T, "wide", archivetest.Lines(begin, 1000, func(i int) string {
			if i == 499 {
				return long
			}
			return number(i)
		}))
		b.do(chromedp.EmulateViewport(390, 800, chromedp.EmulateMobile))
		b.open("/ui/builds/run-wide#step=t/s&L=490")
		b.until("the line before", shown(490))
		b.picture("unwrapped-phone")
		// Seen from the side, a number stays where it is, and what marks a line goes on.
		evaluate[float64](b, `document.querySelector(".pane").scrollLeft = 3000`)
		if off := evaluate[float64](b, `(() => {
			const row = document.querySelector(".row.picked"), pane = document.querySelector(".pane").getBoundingClientRect();
			return Math.abs(row.querySelector(".number").getBoundingClientRect().left - pane.left) + Math.max(0, pane.right - row.getBoundingClientRect().right);
		})()`); off > 1 {
			b.Errorf("the number and the mark's end are off by %.0f px", off)
		}
		b.picture("sideways-phone")
		b.do(chromedp.Click("#wrap"))
		b.until("wrapped lines", `document.body.classList.contains("wrapped")`)
		// Each turn of the wheel shows what follows: every screen begins where the one before has ended, or above.
		evaluate[string](b, `(() => {
			window.seen = [];
			const view = document.querySelector(".log"), bottom = () => view.getBoundingClientRect().bottom;
			window.look = () => {
				const row = document.querySelector('.row[data-number="500"] .text');
				if (!row) return;
				const box = row.getBoundingClientRect(), top = view.getBoundingClientRect().top;
				seen.push([Math.max(0, top - box.top), Math.min(box.height, bottom() - box.top), box.height]);
			};
			return "";
		})()`)
		evaluate[float64](b, `(document.querySelector(".log").scrollIntoView(), document.querySelector(".log").scrollTop)`)
		for i := range 60 {
			evaluate[string](b, "look(), ''")
			if evaluate[bool](b, "seen.length > 0 && seen[seen.length - 1][1] >= seen[seen.length - 1][2]") {
				break
			}
			before := evaluate[float64](b, `document.querySelector(".log").scrollTop`)
			b.wheel(300)
			b.until(fmt.Sprintf("turn %d", i), fmt.Sprintf(`document.querySelector(".log").scrollTop > %f`, before))
			if i == 5 {
				b.picture("wrapped-phone")
			}
		}
		if hole := evaluate[string](b, `(() => {
			let to = 0;
			for (const [from, until] of seen) { if (from > to + 1) return from + " behind " + to; to = Math.max(to, until); }
			return seen.length > 3 && to >= seen[0][2] && seen[0][2] > 1500 ? "" : "only to " + to + " of " + JSON.stringify(seen[0]);
		})()`); hole != "" {
			b.Errorf("of the long line is not seen what is at %s px", hole)
		}
		// Upwards, too: what is above the view stays where it was, however tall it turns out to be.
		b.open("/ui/builds/run-wide#step=t/s&L=505")
		b.until("the line behind", shown(505))
		before := evaluate[float64](b, `document.querySelector('.row[data-number="503"]').getBoundingClientRect().top`)
		for range 4 {
			b.do(chromedp.Focus(".log"), chromedp.KeyEvent(kb.ArrowUp))
		}
		after := evaluate[float64](b, `document.querySelector('.row[data-number="503"]').getBoundingClientRect().top`)
		if moved := after - before; moved != 4*18 {
			b.Errorf("four keys moved the line by %.0f px, want 72", moved)
		}
		b.do(chromedp.Click("#wrap"), chromedp.EmulateViewport(1280, 900))
	})

	part("lines of all lengths, page by page", func(b *browser) {
		const lines = 1200
		s.finish(b.T, "lengths", archivetest.Lines(begin, lines, func(i int) string { return strings.Repeat(number(i)+" ", 1+i*i%197) }))
		b.open("/ui/builds/run-lengths#step=t/s&L=1")
		b.until("the log", shown(1))
		b.do(chromedp.Click("#wrap"))
		pages := func(key string) string {
			return run(b, chromedp.Evaluate[string](fmt.Sprintf(`new Promise((done) => {
				const view = document.querySelector(".log"), seen = new Set();
				let last = "";
				const page = () => {
					if (document.querySelector(".row.waiting")) { requestAnimationFrame(page); return; }
					const box = view.getBoundingClientRect(), rows = [...document.querySelectorAll(".row")];
					for (const row of rows) {
						const r = row.getBoundingClientRect();
						if (r.bottom > box.top && r.top < box.bottom) seen.add(row.dataset.number);
					}
					const now = rows[0].dataset.number + " " + rows[0].getBoundingClientRect().top;
					if (now === last) {
						done(seen.size + " lines, " + rows.find((row) => row.getBoundingClientRect().bottom > box.top).dataset.number + " to " + rows.pop().dataset.number);
						return;
					}
					last = now;
					view.dispatchEvent(new KeyboardEvent("keydown", {key: %q, bubbles: true}));
					requestAnimationFrame(page);
				};
				page();
			})`, key), chromedp.EvalAwaitPromise))
		}
		if got := pages("PageDown"); !strings.HasPrefix(got, fmt.Sprintf("%d lines", lines)) || !strings.HasSuffix(got, fmt.Sprintf(" to %d", lines)) {
			b.Errorf("down: %s", got)
		}
		b.picture("lengths")
		if got := pages("PageUp"); !strings.HasPrefix(got, fmt.Sprintf("%d lines, 1 to ", lines)) {
			b.Errorf("up: %s", got)
		}
		b.do(chromedp.Click("#wrap"))
	})

	part("a selection and the focus survive", func(b *browser) {
		all := archivetest.Lines(begin, 60, number)
		c := s.start(b.T, "grows", firstLines(all, 40))
		b.open("/ui/builds/run-grows#step=t/s")
		b.until("the log", shown(40))
		evaluate[string](b, `(() => {
			getSelection().selectAllChildren(document.querySelector('.row[data-number="38"] .text'));
			document.querySelector('.row[data-number="39"] .number').focus();
			window.row = document.querySelector('.row[data-number="38"]');
			return "";
		})()`)
		same := func(when string) {
			b.Helper()
			if got := evaluate[string](b, `getSelection() + " " + document.activeElement.innerText + " " + row.isConnected`); got != "line 38 39 true" {
				b.Errorf("%s: selection, focus, and whether the element is still there: %s", when, got)
			}
		}
		asked := s.lines.Load()
		b.until("the next two looks", fmt.Sprintf(`(window.n ??= 0, performance.getEntriesByType("resource").filter((e) => e.name.includes("/lines/")).length >= 4)`))
		if s.lines.Load() == asked {
			b.Error("nothing was asked for")
		}
		same("nothing came")
		s.grow(b.T, c, all, 40, 60)
		b.until("what came", shown(60))
		same("lines came")
		b.do(chromedp.KeyEvent(kb.Enter))
		b.until("the line is picked", `document.querySelector(".row.picked")?.dataset.number === "39"`)
		same("a line was picked")
		b.do(chromedp.KeyEvent(kb.Tab), chromedp.KeyEvent(kb.Tab), chromedp.KeyEvent(kb.Enter, chromedp.KeyModifiers(chromedp.ModifierShift)))
		b.until("a range", `document.querySelectorAll(".row.picked").length === 3`)
		if hash := evaluate[string](b, "location.hash"); hash != "#step=t/s&L=39-41" {
			b.Errorf("the address ends with %q", hash)
		}
	})

	part("groups by keyboard", func(b *browser) {
		lines := archivetest.Lines(begin, 400, func(i int) string {
			switch i + 1 {
			case 3:
				return "::group::Fetch"
			case 20:
				return "::endgroup::"
			}
			return number(i)
		})
		s.finish(b.T, "fold", lines)
		b.open("/ui/builds/run-fold#step=t/s&L=1")
		b.until("the log", shown(3))
		if text := b.text(".row.group .lasted"); text != "17s" {
			b.Errorf("the group took %q", text)
		}
		b.do(chromedp.Focus(".row.group .fold"), chromedp.KeyEvent(kb.Enter))
		b.until("the folded group", `!document.querySelector('.row[data-number="4"]') && document.activeElement.matches('.fold[aria-expanded="false"]')`)
		b.do(chromedp.KeyEvent(kb.Enter))
		b.until("the open group", `document.querySelector('.row[data-number="4"]') && document.activeElement.matches('.fold[aria-expanded="true"]')`)
	})

	part("more groups than are known", func(b *browser) {
		const groups = mostMarks + 1000
		s.finish(b.T, "groups", archivetest.Lines(begin, groups*2+400, func(i int) string {
			switch {
			case i == 5:
				return "this error is not marked as one"
			case i == groups*2+1:
				return "::group::last"
			case i == groups*2+398:
				return "::error::behind all of them"
			case i < groups*2 && i%2 == 0:
				return "::group::g"
			}
			return number(i)
		}))
		b.open(fmt.Sprintf("/ui/builds/run-groups#step=t/s&L=%d", groups*2+2))
		b.until("the last group", `document.querySelector(".row.group.picked .fold")`)
		b.do(chromedp.Click(".row.group.picked .fold"))
		b.until("why it is not folded", `document.querySelector(".state").innerText.includes("cannot be folded") && document.querySelector('.row.group.picked .fold[aria-expanded="true"]')`)
		b.do(chromedp.Click("#go-error"))
		b.until("the first error", fmt.Sprintf(`document.querySelector(".row.picked.error")?.dataset.number === "%d"`, groups*2+399))
	})

	part("first error is looked for once", func(b *browser) {
		all := archivetest.Lines(begin, 500, func(i int) string {
			if i == 350 {
				return "it failed"
			}
			return number(i)
		})
		c := s.start(b.T, "errors", firstLines(all, 310))
		b.open("/ui/builds/run-errors#step=t/s")
		b.until("the log", shown(310))
		before := s.marks.Load()
		evaluate[string](b, `(() => { for (let i = 0; i < 5; i++) document.getElementById("go-error").click(); return ""; })()`)
		b.until("what was found", `document.querySelector(".state").innerText.includes("no line tells of an error")`)
		if n := s.marks.Load() - before; n != 1 {
			b.Errorf("%d readings for five clicks", n)
		}
		s.grow(b.T, c, all, 310, 500)
		b.until("what came", shown(500))
		b.do(chromedp.Click("#go-error"))
		b.until("the error", `document.querySelector(".row.picked")?.dataset.number === "351"`)
		if from := evaluate[string](b, `performance.getEntriesByType("resource").filter((e) => e.name.includes("/marks/")).pop().name.replace(/.*from=/, "")`); from != "311" {
			b.Errorf("it was read again from line %s", from)
		}
	})

	part("the store is away for a while", func(b *browser) {
		s.start(b.T, "away", archivetest.Lines(begin, 30, number))
		b.open("/ui/builds/run-away#step=t/s")
		b.until("the log", shown(30))
		s.away.Store(true)
		defer s.away.Store(false)
		b.until("what is wrong", `document.querySelector(".state").innerText.includes("the store is away")`)
		b.do(chromedp.Click(`.row[data-number="7"] .number`))
		b.until("a line is marked all the same", `document.querySelector(".row.picked").dataset.number === "7"`)
		if n := evaluate[int](b, `document.querySelectorAll(".row:not(.waiting)").length`); n != 30 {
			b.Errorf("%d lines are left", n)
		}
		s.away.Store(false)
		b.until("it goes on", `document.querySelector(".state").innerText === "live"`)
	})

	part("a log that was partial goes on", func(b *browser) {
		all := archivetest.Lines(begin, 50, number)
		c := s.start(b.T, "silent", firstLines(all, 40))
		s.heardOf(b.T, c.Run, time.Now().Add(-2*backend.AliveWithin))
		b.open("/ui/builds/run-silent#step=t/s")
		b.until("its state", `document.querySelector(".step").dataset.status === "partial" && document.querySelector(".state").innerText.includes("partial")`)
		b.until("the log", shown(40))
		b.picture("partial")
		s.grow(b.T, c, all, 40, 50)
		b.until("what came", shown(50))
		b.until("its state", `document.querySelector(".state").innerText === "live"`)
	})

	part("states, retries, a matrix", func(b *browser) {
		run := archivetest.PutRun(b.T, s.store, record.Run{Kind: layout.PipelineRun, Namespace: "builds", Name: "states", UID: "run-states", Created: begin})
		pod := func(taskRun, task, uid string, made int, containers ...record.Container) layout.Pod {
			p := layout.Pod{Run: run, TaskRun: taskRun, PodUID: uid}
			archivetest.PutPod(b.T, s.store, p, record.Pod{PodName: uid, PipelineTask: task, Created: begin.Add(time.Duration(made) * time.Second), Containers: containers})
			return p
		}
		log := func(p layout.Pod, name, text string, code int) {
			s.put(b.T, layout.Container{Pod: p, Container: name}, archivetest.Lines(begin, 3, func(int) string { return text }), code)
		}
		waits := pod("states-wait", "wait", "pod-wait", 0, append(steps("pull"), record.Container{Name: "step-bare", Kind: record.Step, Skipped: "it has no command"}, record.Container{Name: "sidecar-db", Kind: record.Sidecar, Captured: true})...)
		archivetest.PutRecord(b.T, s.store, layout.Container{Pod: waits, Container: "step-pull"}.WaitingKey(), record.Waiting{Reason: "ImagePullBackOff", Message: `Back-off pulling image "registry.example/none"`})
		log(waits, "sidecar-db", "the needle of the sidecar", 0)
		log(pod("states-again", "again", "pod-again-0", 1, steps("s")...), "step-s", "the first try", 1)
		log(pod("states-again", "again", "pod-again-1", 2, steps("s")...), "step-s", "the second try", 0)
		log(pod("states-m-0", "m", "pod-m-0", 3, steps("s")...), "step-s", "one of a matrix", 0)
		log(pod("states-m-1", "m", "pod-m-1", 4, steps("s")...), "step-s", "the needle of the other", 1)

		b.open("/ui/builds/run-states")
		text := b.text("#tree")
		for _, want := range []string{"not captured", "it has no command", "image pull failed", "registry.example/none", "retry 1", "states-m-1", "exit 1"} {
			if !strings.Contains(text, want) {
				b.Errorf("the tree lacks %q:\n%s", want, text)
			}
		}
		b.picture("states")
		for _, c := range []struct{ name, fragment, text, told string }{
			{"a step", "step=again/s", "the first try", ""},
			{"its retry", "step=again/s&retry=1&L=2", "the second try", ""},
			{"by the name of the TaskRun", "step=states-again/s", "the first try", ""},
			{"one of a matrix", "step=states-m-1/s", "the needle of the other", ""},
			{"a label of several", "step=m/s", "the needle of the other", "Several TaskRuns are of the task m: this is states-m-1."},
			{"the task of an annotation", "task=m", "the needle of the other", "Several TaskRuns are of the task m: this is states-m-1."},
			{"no step", "step=again/none", "", "The step again/none is not in this run, or not yet."},
			{"no retry", "step=again/s&retry=7", "", "The step again/s, retry 7, is not in this run, or not yet."},
			{"no task", "task=none", "", "The task none is not in this run, or not yet."},
			{"no lines", "step=again/s&L=x", "the first try", "L=x names no lines: L=7 and L=7-9 would."},
			{"behind the end", "step=again/s&L=400", "the first try", "Line 400 is beyond the end: this log has 3 lines."},
			{"nothing", "nonsense", "", "The address names no step: #nonsense"},
		} {
			b.open("/ui/builds/run-states#" + c.fragment)
			if c.text != "" {
				b.until(c.name, fmt.Sprintf(`document.querySelectorAll(".open").length === 1 && document.querySelector(".row:not(.waiting) .text")?.innerText === %q`, c.text))
			}
			b.until(c.name, fmt.Sprintf(`document.getElementById("told").innerText === %q`, c.told))
		}
		b.picture("told")

		for step, want := range map[string]string{"wait/bare": "it has no command", "wait/pull": "image pull failed"} {
			b.open("/ui/builds/run-states#step=" + step)
			b.until(step, fmt.Sprintf(`document.querySelector(".state")?.innerText.includes(%q)`, want))
		}

		b.open("/ui/builds/run-states")
		b.do(chromedp.Click("#go-failed"))
		b.until("the failed step", `document.querySelectorAll(".open").length === 1 && location.hash === "#step=states-m-1/s"`) // and not the first try of "again", which was tried again with success

		b.open("/ui/builds/run-states")
		b.do(chromedp.SendKeys(`#search input[type="search"]`, "the needle"+kb.Enter))
		b.until("what was found", `document.querySelectorAll("#found a").length === 6`)
		if text := b.text("#found"); !strings.Contains(text, "wait/sidecar-db:1") || !strings.Contains(text, "states-m-1/s:3") {
			b.Errorf("found:\n%s", text)
		}
		if text := b.text("#found .message"); !strings.Contains(text, "Only what is archived so far was searched of:") || !strings.Contains(text, "wait/step-pull: not started yet") {
			b.Errorf("of the log that runs: %q", text)
		}
		b.picture("found")
		evaluate[string](b, `(document.querySelector('#found a[href="#step=states-m-1/s&L=2"]').click(), "")`)
		b.until("the line", `document.querySelector(".row.picked:not(.waiting)")?.closest(".task").dataset.taskrun === "states-m-1"`)
		evaluate[string](b, `(document.querySelector('.row[data-number="3"] .number').click(), history.replaceState(null, "", "#step=states-m-1/s&L=2"), document.querySelector('#found a[href="#step=states-m-1/s&L=2"]').click(), "")`)
		b.until("the line again", `document.querySelector(".row.picked").dataset.number === "2"`)
	})

	part("the system's dark mode", func(b *browser) {
		scheme := func(value string) {
			b.do(chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
				_, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: value}}})
				return err
			}))
		}
		scheme("dark")
		b.open("/ui/builds/run-fold#step=t/s&L=1")
		b.until("the dark page", `getComputedStyle(document.body).backgroundColor === "rgb(13, 17, 23)"`)
		b.picture("dark-system")
		scheme("light")
		b.until("the light page", `getComputedStyle(document.body).backgroundColor === "rgb(255, 255, 255)"`)
		scheme("")
	})
}
