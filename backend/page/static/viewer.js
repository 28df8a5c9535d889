"use strict";
// The page of a run: steps are opened, and of their logs the lines are loaded that are looked at. All text goes into the page as text, never as HTML.
(() => {
  const run = document.getElementById("run");
  if (!run) return;
  const {own, api, namespace, kind, uid} = run.dataset;
  const rowHeight = 18; // px, as page.css has it
  const chunkLines = 250;
  const mostChunks = 40; // of a log in memory
  const plainLines = 300; // a log that is no longer is drawn whole, and the browser scrolls it
  const tallest = 8e6; // px: browsers draw no element that is much taller, so of a longer log a pixel of the scroll bar is several
  const liveEvery = 1000, treeEvery = 5000, settle = 70; // ms

  const element = (name, className, text) => {
    const e = document.createElement(name);
    if (className) e.className = className;
    if (text !== undefined) e.textContent = text;
    return e;
  };
  const logs = new Map(); // by path: those that are open

  // get asks the server. Who is not logged in any more is led to the login.
  const get = async (address, options) => {
    const answer = await fetch(address, {credentials: "same-origin", ...options});
    if (answer.status === 401) location.reload();
    if (!answer.ok) {
      let why = answer.statusText;
      try { why = (await answer.json()).error || why; } catch { /* it is not ours */ }
      throw new Error(why);
    }
    return answer;
  };

  // Log is a container's log that is open.
  class Log {
    constructor(step) {
      this.step = step;
      this.path = step.dataset.path;
      this.lines = Number(step.dataset.lines); // that have ended
      this.total = this.lines; // and the one that has not
      this.status = step.dataset.status;
      this.chunks = new Map(); // by number, from 0
      this.loading = new Map(); // the same: how to stop it
      this.folded = new Set(); // numbers of groups' first lines
      this.hidden = []; // intervals of lines, in order
      this.picked = null; // [first, last]
      this.position = 0; // px from the first line
      this.following = this.status === "running";
      this.live = this.following;

      this.box = element("div", "open");
      const bar = element("div", "logbar");
      this.pause = element("button", "pause", "Pause");
      this.pause.type = "button";
      this.pause.addEventListener("click", () => this.setLive(!this.live));
      this.end = element("button", "", "To the end");
      this.end.type = "button";
      this.end.addEventListener("click", () => this.toEnd());
      const raw = element("a", "button", "Download");
      raw.href = `${api}/containers/${this.path}/logs?download=true`;
      raw.setAttribute("download", "");
      const text = element("a", "button", "As text");
      text.href = `${api}/containers/${this.path}/logs?notices=true`;
      this.state = element("span", "state");
      bar.append(this.pause, this.end, raw, text, this.state);
      this.view = element("div", "log");
      this.view.tabIndex = 0;
      this.view.setAttribute("role", "log");
      this.view.setAttribute("aria-label", step.dataset.step);
      this.pane = element("div", "pane");
      this.rows = element("div", "rows");
      this.pane.append(this.rows);
      this.spacer = element("div");
      this.view.append(this.pane, this.spacer);
      this.box.append(bar, this.view);
      step.append(this.box);
      this.view.addEventListener("scroll", () => this.scrolled());
      this.view.addEventListener("wheel", (e) => this.wheel(e), {passive: false});
      this.view.addEventListener("keydown", (e) => this.key(e));
      this.resized = new ResizeObserver(() => this.draw());
      this.resized.observe(this.view);
      this.timer = setInterval(() => this.poll(), liveEvery);
      this.tell();
      this.draw();
    }

    close() {
      clearInterval(this.timer);
      clearTimeout(this.waiting);
      this.resized.disconnect();
      for (const stop of this.loading.values()) stop.abort();
      this.closed = true;
      this.box.remove();
    }

    // tell says how the log stands.
    tell(problem) {
      const running = this.status === "running";
      this.pause.hidden = !running;
      this.pause.textContent = this.live ? "Pause" : "Go on";
      this.state.textContent = problem || this.damage || (running ? (this.live ? "live" : "paused") : this.says || "");
      this.box.classList.toggle("live", running && this.live);
    }

    setLive(on) {
      this.live = on;
      if (on) this.following = true;
      this.tell();
      if (on) this.poll();
    }

    // count is how many lines can be seen, for folded ones cannot.
    get count() {
      let n = this.total;
      for (const [from, to] of this.hidden) n -= Math.max(0, Math.min(to, this.total) - from + 1);
      return n;
    }
    // number is that of the line at an index among those that can be seen, and index the way back.
    number(index) {
      let n = index + 1;
      for (const [from, to] of this.hidden) { if (n < from) break; n += to - from + 1; }
      return n;
    }
    index(number) {
      let i = number - 1;
      for (const [from, to] of this.hidden) { if (number < from) break; i -= Math.min(number, to) - from + 1; }
      return Math.max(0, i);
    }

    // measure sizes what is scrolled, and returns how many px of the log one px of the scroll bar is.
    measure() {
      const full = this.count * rowHeight, most = Math.max(rowHeight * 3, Math.floor(innerHeight * 0.72));
      this.plain = this.count <= plainLines;
      this.box.classList.toggle("plain", this.plain);
      if (this.plain) {
        this.pane.style.height = "";
        this.spacer.style.height = "0";
        this.view.style.height = Math.min(most, Math.max(rowHeight, this.pane.offsetHeight) + 2) + "px";
        this.most = 0;
        return 1;
      }
      this.view.style.height = most + "px";
      this.room = this.view.clientHeight;
      this.pane.style.height = this.room + "px";
      const tall = Math.min(full, tallest);
      this.spacer.style.height = tall - this.room + "px";
      this.most = full - this.room; // the last position
      return this.most / (tall - this.room);
    }

    scrolled() {
      const top = this.view.scrollTop;
      if (this.plain) { this.following = top >= this.view.scrollHeight - this.view.clientHeight - 2; return; }
      if (Math.abs(top - this.setTop) < 1) return; // it was us
      this.position = Math.min(top * this.scale, Math.max(this.most, 0));
      if (top >= this.view.scrollHeight - this.view.clientHeight - 1) this.position = this.most;
      this.following = this.position >= this.most - 1;
      this.draw();
    }

    // moveTo shows the log from a position in px.
    moveTo(position) {
      if (this.plain) { this.view.scrollTop = Math.min(position, this.view.scrollHeight); return; }
      this.position = Math.max(0, Math.min(position, this.most));
      this.following = this.position >= this.most - 1;
      this.setTop = this.position / this.scale;
      this.view.scrollTop = this.setTop;
      this.setTop = this.view.scrollTop; // as the browser rounds it
      this.draw();
    }
    toEnd() { this.following = true; this.draw(); }

    // wheel and key move by lines where a px of the scroll bar is more than that.
    wheel(e) {
      if (this.plain || this.scale <= 1 || e.ctrlKey || Math.abs(e.deltaX) > Math.abs(e.deltaY)) return;
      const by = e.deltaY * (e.deltaMode === 1 ? rowHeight : e.deltaMode === 2 ? this.room : 1);
      if (by < 0 && this.position <= 0 || by > 0 && this.position >= this.most) return; // the page scrolls
      e.preventDefault();
      this.moveTo(this.position + by);
    }
    key(e) {
      if (this.plain || e.ctrlKey || e.metaKey || e.altKey) return;
      const by = {ArrowDown: rowHeight, ArrowUp: -rowHeight, PageDown: this.room - 2 * rowHeight, PageUp: 2 * rowHeight - this.room, Home: -Infinity, End: Infinity}[e.key];
      if (by === undefined) return;
      e.preventDefault();
      this.moveTo(this.position + by);
    }

    // goTo shows a line, with some before it.
    goTo(number, last) {
      for (const first of [...this.folded]) { // what is folded around it is opened
        const end = this.groupEnd(first);
        if (number > first && number <= end) this.folded.delete(first);
      }
      this.fold();
      this.picked = [number, last || number];
      this.following = false;
      this.goal = number;
      this.scale = this.measure();
      this.position = Math.max(0, (this.index(number) - 3) * rowHeight);
      this.draw();
    }

    draw() {
      if (this.closed) return;
      this.scale = this.measure();
      this.wanted = new Set();
      const count = this.count;
      let first = 0, fit = count, atEnd = false;
      if (!this.plain) {
        this.position = Math.max(0, Math.min(this.following ? this.most : this.position, this.most));
        atEnd = this.position >= this.most - 1;
        fit = Math.ceil(this.room / rowHeight) + 1;
        first = atEnd ? Math.max(0, count - fit) : Math.floor(this.position / rowHeight);
      }
      const drawn = [];
      for (let i = first; i < Math.min(count, first + fit); i++) {
        const number = this.number(i), row = this.row(number);
        for (const g of row?.gaps || []) drawn.push(element("div", "gap", g));
        drawn.push(this.draws(number, row));
      }
      this.rowOfOpenLine(first + fit >= count);
      this.rows.replaceChildren(...drawn);
      if (this.plain) {
        this.measure();
        const goal = this.goal && this.wanted.size === 0 ? this.rows.querySelector(".picked") : null;
        if (goal) { this.view.scrollTop = goal.offsetTop - 3 * rowHeight; this.goal = undefined; }
        if (this.following) this.view.scrollTop = this.view.scrollHeight;
      } else {
        this.goal = undefined;
        this.pane.scrollTop = atEnd ? this.pane.scrollHeight : this.position - first * rowHeight;
        const top = this.position / this.scale;
        if (Math.abs(this.view.scrollTop - top) >= 1) this.view.scrollTop = top;
        this.setTop = this.view.scrollTop; // as the browser rounds it
      }
      clearTimeout(this.waiting);
      if (this.wanted.size > 0) this.waiting = setTimeout(() => this.load(), this.chunks.size > 0 ? settle : 0);
    }

    // rowOfOpenLine sees to it that a last line is shown that has not ended: the tree counts ended ones.
    rowOfOpenLine(visible) {
      const k = Math.floor(this.lines / chunkLines);
      if (visible && !this.chunks.has(k)) this.wanted.add(k);
    }

    row(number) {
      const k = Math.floor((number - 1) / chunkLines), chunk = this.chunks.get(k);
      if (!chunk) { this.wanted.add(k); return undefined; }
      return chunk.rows.get(number);
    }

    // draws makes the element of a line.
    draws(number, row) {
      const e = element("div", "row");
      if (row === undefined) e.classList.add("waiting");
      const label = element("a", "number", String(number));
      label.href = this.address(number, number);
      label.addEventListener("click", (event) => { event.preventDefault(); this.pick(number, event.shiftKey); });
      const text = element("span", "text");
      e.append(label);
      if (row) {
        e.append(element("span", "time", row.at.replace(/^(.*T)(\d\d:\d\d:\d\d)(\.\d{1,3})?.*$/, (_, day, time, ms) => time + (ms || ".").padEnd(4, "0")) + " "));
        e.lastChild.title = row.at;
        if (row.k) e.classList.add(row.k);
        if (row.e) e.classList.add("stderr");
        if (row.k === "group") {
          const fold = element("button", "fold", this.folded.has(number) ? "▸" : "▾");
          fold.type = "button";
          fold.setAttribute("aria-expanded", String(!this.folded.has(number)));
          fold.setAttribute("aria-label", "Group");
          fold.addEventListener("click", () => this.toggle(number));
          e.append(fold);
        }
        for (const s of row.s) {
          const span = element("span", s.c, s.t);
          if (s.f) span.style.color = s.f;
          if (s.g) span.style.backgroundColor = s.g;
          text.append(span);
        }
        if (row.cut) text.append(element("span", "more", ` … ${row.cut} bytes more: see Download`));
      }
      e.append(text);
      if (this.picked && number >= this.picked[0] && number <= this.picked[1]) e.classList.add("picked");
      return e;
    }

    address(first, last) {
      return `#step=${this.step.dataset.step}&L=${first}${last > first ? "-" + last : ""}`;
    }
    // pick marks a line, or from the one that is marked up to it, and puts it into the address.
    pick(number, extend) {
      this.picked = extend && this.picked ? [Math.min(this.picked[0], number), Math.max(this.picked[1], number)] : [number, number];
      history.replaceState(null, "", this.address(...this.picked));
      this.draw();
    }

    // load gets the chunks that the last drawing lacked, and stops those that nobody looks at any more.
    load() {
      for (const [k, stop] of this.loading) if (!this.wanted.has(k)) stop.abort();
      for (const k of this.wanted) if (!this.loading.has(k)) this.get(k);
    }
    async get(k) {
      const stop = new AbortController();
      this.loading.set(k, stop);
      try {
        const answer = await (await get(`${own}/lines/${this.path}?from=${k * chunkLines + 1}&count=${chunkLines}`, {signal: stop.signal})).json();
        if (this.closed) return;
        this.take(k, answer);
        this.tell();
        this.draw();
      } catch (err) {
        if (stop.signal.aborted || this.closed) return;
        this.tell(err.message);
        this.chunks.delete(k);
        this.waiting = setTimeout(() => this.draw(), 3000);
      } finally {
        if (this.loading.get(k) === stop) this.loading.delete(k);
      }
    }
    take(k, answer) {
      const rows = new Map();
      for (const r of answer.rows) rows.set(r.n, r);
      const last = answer.rows.length ? answer.rows[answer.rows.length - 1].n : 0;
      const before = this.total;
      this.lines = answer.lines;
      this.total = Math.max(answer.lines, last, k < Math.floor(answer.lines / chunkLines) ? this.total : 0);
      this.status = answer.status;
      this.says = answer.says;
      if (answer.damage) this.damage = answer.damage;
      this.chunks.delete(k);
      this.chunks.set(k, {rows});
      if (this.total > before) { // chunks that were not full then
        for (const old of [...this.chunks.keys()]) if (old !== k && old === Math.floor(before / chunkLines)) this.chunks.delete(old);
      }
      while (this.chunks.size > mostChunks) this.chunks.delete(this.chunks.keys().next().value);
    }
    // poll looks for what is new.
    async poll() {
      if (!this.live || this.status !== "running" || document.hidden || this.polling) return;
      this.polling = true;
      await this.get(Math.floor(this.lines / chunkLines));
      this.polling = false;
      if (this.status !== "running") refresh();
    }

    // findMarks asks once where groups and messages are.
    findMarks() {
      if (!this.marked) {
        this.marked = get(`${own}/marks/${this.path}`).then((a) => a.json());
        this.marked.then((m) => { this.marks = m.marks; if (this.status === "running") this.marked = undefined; }, () => { this.marked = undefined; });
      }
      return this.marked;
    }
    // groupEnd is the last line of a group: the one that ends it, or the one before the next group, for they do not nest (GitHub Actions and Azure Pipelines), or the log's last.
    groupEnd(first) {
      for (const m of this.marks || []) {
        if (m.n <= first) continue;
        if (m.k === "endgroup") return m.n;
        if (m.k === "group") return m.n - 1;
      }
      return this.total;
    }
    fold() {
      this.hidden = [...this.folded].sort((a, b) => a - b).map((first) => [first + 1, this.groupEnd(first)]).filter(([from, to]) => to >= from);
    }
    async toggle(number) {
      try { await this.findMarks(); } catch (err) { this.tell(err.message); return; }
      if (!this.folded.delete(number)) this.folded.add(number);
      this.following = false;
      this.fold();
      this.draw();
    }
    async firstError() {
      this.tell("looking for the first error");
      try {
        const m = await this.findMarks();
        this.tell(m.error ? undefined : "no line tells of an error");
        if (m.error) { this.goTo(m.error); history.replaceState(null, "", this.address(m.error, m.error)); }
      } catch (err) { this.tell(err.message); }
    }
  }

  const stepOf = (id) => [...document.querySelectorAll(".step")].find((s) => s.dataset.step === id);
  // opened returns a step's log, and opens it.
  const opened = (step) => {
    let log = logs.get(step.dataset.path);
    if (!log) {
      log = new Log(step);
      logs.set(step.dataset.path, log);
      step.querySelector(".head").setAttribute("aria-expanded", "true");
    }
    return log;
  };
  const closeStep = (step) => {
    logs.get(step.dataset.path)?.close();
    logs.delete(step.dataset.path);
    step.querySelector(".head").setAttribute("aria-expanded", "false");
  };
  // current is the step that keys and buttons mean: the one with the focus, or the last one that was opened.
  let last = null;
  const current = () => document.activeElement?.closest?.(".step") || (last?.isConnected ? last : null) || stepOf(run.dataset.failed) || document.querySelector(".step");

  document.getElementById("tree").addEventListener("click", (e) => {
    const head = e.target.closest(".head");
    if (!head) return;
    const step = head.closest(".step");
    if (head.getAttribute("aria-expanded") === "true") { closeStep(step); return; }
    last = step;
    opened(step);
    history.replaceState(null, "", "#step=" + step.dataset.step);
  });

  // show opens what the fragment names: step=TASK/STEP, retry=N, L=FIRST-LAST; or task=TASK.
  const show = () => {
    let fragment = location.hash.slice(1);
    try { fragment = decodeURIComponent(fragment); } catch { /* as it is */ }
    const fields = Object.fromEntries(fragment.split("&").map((f) => [f.split("=", 1)[0], f.slice(f.indexOf("=") + 1)]));
    if (fields.task) {
      const task = [...document.querySelectorAll(".task")].filter((t) => t.dataset.task === fields.task).pop();
      task?.scrollIntoView();
      const step = task?.querySelector('.step[data-failed="true"]');
      if (step) { last = step; opened(step).toEnd(); }
      return;
    }
    if (!fields.step) return;
    const step = stepOf(fields.step + (fields.retry ? "&retry=" + fields.retry : ""));
    if (!step) return;
    last = step;
    const log = opened(step);
    const range = /^(\d{1,15})(?:-(\d{1,15}))?$/.exec(fields.L || "");
    if (range) {
      const first = Math.max(1, Number(range[1]));
      log.goTo(first, Math.max(first, Number(range[2] || 0)));
    }
    step.scrollIntoView({block: "nearest"});
  };
  addEventListener("hashchange", show);

  // refresh brings what is new of the run into the tree.
  let refreshing = false;
  const refresh = async () => {
    if (refreshing) return;
    refreshing = true;
    try {
      const fresh = new DOMParser().parseFromString(await (await get(location.pathname)).text(), "text/html");
      const now = fresh.getElementById("run");
      if (!now) return;
      for (const name of ["over", "failed"]) run.dataset[name] = now.dataset[name];
      document.getElementById("title").replaceChildren(...fresh.getElementById("title").childNodes);
      document.getElementById("go-failed").hidden = !run.dataset.failed;
      const tree = document.getElementById("tree");
      let before = null;
      for (const task of fresh.querySelectorAll(".task")) {
        const here = document.getElementById(task.id);
        if (!here) {
          if (before) before.after(task); else tree.prepend(task);
          before = task;
          continue;
        }
        before = here;
        for (const step of task.querySelectorAll(".step")) {
          const mine = document.getElementById(step.id);
          if (!mine) { here.append(step); continue; }
          Object.assign(mine.dataset, step.dataset);
          const head = mine.querySelector(".head"), focused = head === document.activeElement;
          head.replaceChildren(...step.querySelector(".head").childNodes);
          if (focused) head.focus();
        }
      }
      if (before) tree.querySelector(":scope > .message")?.remove();
    } catch { /* it is tried again */ } finally { refreshing = false; }
  };
  setInterval(() => { if (run.dataset.over !== "true" && !document.hidden) refresh(); }, treeEvery);

  // What is shown of all logs is remembered by the browser.
  const toggles = {times: "timed", wrap: "wrapped"};
  for (const [id, className] of Object.entries(toggles)) {
    const button = document.getElementById(id);
    const set = (on) => {
      document.body.classList.toggle(className, on);
      button.setAttribute("aria-pressed", String(on));
      localStorage.setItem(id, on ? "1" : "0");
      for (const log of logs.values()) log.draw();
    };
    set(localStorage.getItem(id) === "1");
    button.addEventListener("click", () => set(button.getAttribute("aria-pressed") !== "true"));
  }
  document.getElementById("go-failed").addEventListener("click", () => {
    const step = stepOf(run.dataset.failed);
    if (!step) return;
    last = step;
    opened(step).toEnd();
    history.replaceState(null, "", "#step=" + step.dataset.step);
    step.scrollIntoView({block: "nearest"});
  });
  document.getElementById("go-error").addEventListener("click", () => {
    const step = current();
    if (step) { last = step; opened(step).firstError(); }
  });
  const help = document.getElementById("help");
  document.getElementById("keys").addEventListener("click", () => help.showModal());

  // Searching asks the API, which answers line by line.
  const found = document.getElementById("found"), form = document.getElementById("search");
  const clean = (text) => text.replace(/\x1b\[[0-9;:]*m/g, "").replace(/[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g, "·");
  let searching = null;
  form.addEventListener("submit", async (e) => {
    e.preventDefault();
    searching?.abort();
    const stop = searching = new AbortController();
    const q = form.elements.q.value;
    found.hidden = q === "";
    found.replaceChildren(element("p", "hint", "Searching …"));
    if (q === "") return;
    const ask = new URLSearchParams({q, limit: "200"});
    if (form.elements.regexp.checked) ask.set("regexp", "true");
    if (form.elements.ignoreCase.checked) ask.set("ignoreCase", "true");
    try {
      const answer = await get(`${api}/namespaces/${namespace}/${kind}/${uid}/search?${ask}`, {signal: stop.signal});
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      const hits = [];
      let rest = "", summary = null;
      for (;;) {
        const {done, value} = await reader.read();
        if (done) break;
        rest += value;
        const parts = rest.split("\n");
        rest = parts.pop();
        for (const part of parts) {
          if (!part) continue;
          const m = JSON.parse(part);
          if (m.found) summary = m.found; else hits.push(m);
        }
        found.replaceChildren(element("p", "hint", `${hits.length} lines …`), ...hits.map(hit));
      }
      if (!summary) throw new Error("the answer broke off: search again");
      const said = hits.length === 0 ? "Nothing found" : summary.more ? `The first ${hits.length} lines` : `${hits.length} lines`;
      found.replaceChildren(element("p", "hint", `${said} in ${summary.logs} logs`), ...hits.map(hit));
      for (const what of summary.damage || []) found.append(element("p", "message bad", what));
    } catch (err) {
      if (!stop.signal.aborted) found.replaceChildren(element("p", "message bad", err.message));
    }
  });
  const encoder = new TextEncoder(), decoder = new TextDecoder();
  const hit = (m) => {
    const step = `${m.task || m.taskRun}/${m.container.replace(/^step-/, "")}` + (m.retry ? "&retry=" + m.retry : "");
    const a = element("a");
    a.href = `#step=${step}&L=${m.line}`;
    const bytes = encoder.encode(m.text), part = (from, to) => clean(decoder.decode(bytes.slice(from, to)));
    a.append(element("span", "hint", `${step}:${m.line}  `), part(0, m.start), element("mark", "", part(m.start, m.end)), part(m.end, bytes.length));
    return a;
  };

  addEventListener("keydown", (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey || e.target.closest("input, select, textarea, dialog")) {
      if (e.key === "Escape") e.target.blur?.();
      return;
    }
    const heads = [...document.querySelectorAll(".head")];
    const at = heads.indexOf(current()?.querySelector(".head"));
    const focused = heads.includes(document.activeElement) || document.activeElement?.closest?.(".step");
    const log = current() && logs.get(current().dataset.path);
    switch (e.key) {
      case "/": form.elements.q.focus(); form.elements.q.select(); break;
      case "j": heads[Math.min(heads.length - 1, focused ? at + 1 : at)]?.focus(); break;
      case "k": heads[Math.max(0, at - 1)]?.focus(); break;
      case "f": document.getElementById("go-failed").click(); break;
      case "e": document.getElementById("go-error").click(); break;
      case "t": document.getElementById("times").click(); break;
      case "w": document.getElementById("wrap").click(); break;
      case "g": log?.moveTo(0); break;
      case "G": log?.toEnd(); break;
      case "?": help.showModal(); break;
      case "Escape": found.hidden = true; break;
      default: return;
    }
    e.preventDefault();
  });

  show();
})();
