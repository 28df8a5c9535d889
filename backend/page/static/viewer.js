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
  const mostTall = 5000; // lines that are taller than others, and remembered
  const liveEvery = 1000, treeEvery = 5000, retryEvery = 3000, settle = 70; // ms

  const element = (name, className, text) => {
    const e = document.createElement(name);
    if (className) e.className = className;
    if (text !== undefined) e.textContent = text;
    return e;
  };
  const setText = (e, text) => { if (e.textContent !== text) e.textContent = text; };
  const logs = new Map(); // by path: those that are open

  // say tells what has to do with no log, such as that an address names nothing. Without a text it takes that back.
  const told = document.getElementById("told");
  const say = (text) => {
    told.textContent = text || "";
    told.hidden = !text;
  };

  // took is a duration as people read it, as page.go has it.
  const took = (ms) => {
    const s = ms / 1000, two = (n) => String(Math.floor(n)).padStart(2, "0");
    if (!(s >= 0)) return "";
    if (s < 10) return s.toFixed(1) + "s";
    if (s < 60) return Math.floor(s) + "s";
    return s < 3600 ? `${Math.floor(s / 60)}m ${two(s % 60)}s` : `${Math.floor(s / 3600)}h ${two(s / 60 % 60)}m`;
  };
  const isLight = (rgb) => 299 * parseInt(rgb.slice(1, 3), 16) + 587 * parseInt(rgb.slice(3, 5), 16) + 114 * parseInt(rgb.slice(5), 16) > 128000; // by the weights of ITU-R BT.601
  const plural = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;
  // after is the index of the first mark behind a line.
  const after = (marks, number) => {
    let low = 0, high = marks.length;
    while (low < high) {
      const mid = low + high >> 1;
      if (marks[mid].n > number) high = mid; else low = mid + 1;
    }
    return low;
  };

  // unsure tells that what is shown may be old, and why. Without a reason it takes that back.
  const stale = document.getElementById("stale"), [reason, again] = stale.children;
  const sessionEnded = "your session has ended";
  let ended = false; // it has: only what a person does asks the server
  const unsure = (why) => {
    const before = ended;
    stale.hidden = !why;
    ended = why === sessionEnded;
    again.hidden = !ended;
    if (why) setText(reason, `What is shown may be old: ${why}.`);
    if (before && !ended) for (const log of logs.values()) { log.tell(); log.draw(); }
  };
  again.addEventListener("click", () => location.reload()); // whoever asks for the login leads back here

  // get asks the server. Of who is not logged in any more, the server or a proxy before it asks for a login; what is shown stays, since somebody may be reading it.
  const get = async (address, options) => {
    const answer = await fetch(address, {credentials: "same-origin", redirect: "manual", ...options});
    if (answer.status === 401 || answer.type === "opaqueredirect") { unsure(sessionEnded); throw new Error(sessionEnded); }
    if (ended) unsure();
    if (!answer.ok && answer.status !== 304) {
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
      this.chunks = new Map(); // by number, from 0: those that were looked at last are at the end
      this.loading = new Map(); // the same: how to stop it
      this.marks = {all: [], lines: 0}; // as far as was looked for them
      this.folded = new Map(); // by the number of a group's first line: its last
      this.hidden = []; // intervals of lines, in order
      this.picked = null; // [first, last]
      this.drawn = new Map(); // by number: the elements of a line
      this.tall = new Map(); // by number: px beyond rowHeight, of those lines that were drawn taller
      this.position = 0; // px from the first line
      this.hold = {number: 1, y: 0}; // which line is drawn how many px below the top
      this.following = this.status === "running";
      this.paused = false;

      this.box = element("div", "open");
      const bar = element("div", "logbar");
      this.pause = element("button", "pause", "Pause");
      this.pause.type = "button";
      this.pause.addEventListener("click", () => this.setPaused(!this.paused));
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
      this.pane.addEventListener("scroll", () => this.paneScrolled());
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
      this.stopMarks?.abort();
      this.closed = true;
      this.box.remove();
    }

    // tell says how the log stands.
    tell(problem) {
      const running = this.status === "running";
      this.pause.hidden = !running && !this.paused;
      this.pause.textContent = this.paused ? "Go on" : "Pause";
      this.state.textContent = problem || this.damage || (this.paused ? "paused" : running && (this.total > 0 || !this.says) ? "live" : this.says || "");
      this.box.classList.toggle("live", running && !this.paused);
    }

    setPaused(on) {
      this.paused = on;
      if (!on) this.following = true;
      this.tell();
      if (!on) this.renew();
    }

    // standsAs takes what the tree says: a log that was partial may go on, and one that ran may have ended.
    standsAs(status) {
      if (status === this.status || this.paused) return;
      if (status === "running") this.following = this.following || this.position >= this.most - 1;
      this.renew();
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

    // heights are the tall lines that can be seen, in order, each with the px that those before it add.
    get heights() {
      if (!this.sorted) {
        let before = 0;
        this.sorted = [...this.tall.keys()].sort((a, b) => a - b).filter((n) => !this.hidden.some(([from, to]) => n >= from && n <= to)).map((n) => {
          const h = {index: this.index(n), before, px: this.tall.get(n)};
          before += h.px;
          return h;
        });
        this.added = before;
      }
      return this.sorted;
    }
    // top is where the line at an index begins, in px from the first line, and at the way back.
    top(index) {
      let added = 0;
      for (const h of this.heights) { if (h.index >= index) break; added = h.before + h.px; }
      return index * rowHeight + added;
    }
    at(position) {
      let added = 0;
      for (const h of this.heights) {
        const top = h.index * rowHeight + h.before;
        if (position < top) break;
        if (position < top + rowHeight + h.px) return {index: h.index, within: position - top};
        added = h.before + h.px;
      }
      const index = Math.max(0, Math.min(this.count - 1, Math.floor((position - added) / rowHeight)));
      return {index, within: Math.max(0, position - added - index * rowHeight)};
    }
    forgetHeights() {
      this.tall.clear();
      this.sorted = undefined;
      this.hold.y = Math.max(0, this.hold.y);
    }
    // measureRows returns whether a line that is drawn is not as tall as it was thought to be.
    measureRows() {
      let changed = false;
      for (const [number, d] of this.drawn) {
        let px = -rowHeight;
        for (const e of d.elements) px += e.offsetHeight;
        if (px === (this.tall.get(number) || 0)) continue;
        if (px > 0) this.tall.set(number, px); else this.tall.delete(number);
        changed = true;
      }
      if (changed && this.tall.size > mostTall) for (const number of this.tall.keys()) if (!this.drawn.has(number)) this.tall.delete(number);
      if (changed) this.sorted = undefined;
      return changed;
    }

    // measure sizes what is scrolled, and returns how many px of the log one px of the scroll bar is.
    measure() {
      const most = Math.max(rowHeight * 3, Math.floor(innerHeight * 0.72)), wasPlain = this.plain;
      this.plain = this.count <= plainLines;
      if (this.view.clientWidth !== this.width) this.forgetHeights();
      this.width = this.view.clientWidth;
      if (this.plain !== wasPlain) this.box.classList.toggle("plain", this.plain);
      if (this.plain) {
        this.pane.style.height = "";
        this.spacer.style.height = "0";
        this.view.style.height = Math.min(most, Math.max(rowHeight, this.pane.offsetHeight) + 2) + "px";
        return 1;
      }
      this.view.style.height = most + "px";
      this.room = this.view.clientHeight;
      this.pane.style.height = this.room + "px";
      void this.heights;
      const full = this.count * rowHeight + this.added, tall = Math.min(full, tallest);
      this.spacer.style.height = tall - this.room + "px";
      this.most = Math.max(0, full - this.room); // the last position
      return this.most / (tall - this.room) || 1;
    }

    scrolled() {
      const top = this.view.scrollTop;
      if (this.plain) {
        this.position = top;
        this.holdTop();
        this.following = top >= this.view.scrollHeight - this.view.clientHeight - 2;
        return;
      }
      if (Math.abs(top - this.setTop) < 1) return; // it was us
      if (top >= this.view.scrollHeight - this.view.clientHeight - 1) { this.toEnd(); return; }
      if (this.scale === 1) this.moveBy(top - this.setTop); else this.moveTo(top * this.scale);
    }
    // paneScrolled follows where the browser shows the focus or a selection.
    paneScrolled() {
      const by = this.pane.scrollTop - this.paneTop;
      if (!this.plain && Math.abs(by) >= 1) this.moveBy(by);
    }

    holdTop() {
      const {index, within} = this.at(this.position);
      this.hold = {number: this.number(index), y: -within};
    }
    // moveTo shows the log from a position in px.
    moveTo(position) {
      if (this.plain) { this.view.scrollTop = Math.min(position, this.view.scrollHeight); return; }
      this.goal = undefined;
      this.position = Math.max(0, Math.min(position, this.most));
      this.following = this.position >= this.most - 1;
      this.holdTop();
      this.draw();
    }
    // moveBy moves it by px. How tall the lines above are is known when they are drawn: the one that was the first moves by so many px.
    moveBy(px) {
      if (px >= 0 || -px > this.room || this.plain) { this.moveTo(this.position + px); return; }
      this.goal = undefined;
      this.following = false;
      this.holdTop();
      this.hold.y -= px;
      this.draw();
    }
    toEnd() { this.goal = undefined; this.following = true; this.draw(); }

    // wheel and key move by px of the log where those of the scroll bar are more than that.
    wheel(e) {
      if (this.plain || this.scale === 1 || e.ctrlKey || Math.abs(e.deltaX) > Math.abs(e.deltaY)) return;
      const by = e.deltaY * (e.deltaMode === 1 ? rowHeight : e.deltaMode === 2 ? this.room : 1);
      if (by < 0 && this.position <= 0 || by > 0 && this.position >= this.most) return; // the page scrolls
      e.preventDefault();
      this.moveBy(by);
    }
    key(e) {
      if (this.plain || e.ctrlKey || e.metaKey || e.altKey) return;
      const by = {ArrowDown: rowHeight, ArrowUp: -rowHeight, PageDown: this.room - 2 * rowHeight, PageUp: 2 * rowHeight - this.room}[e.key];
      if (e.key === "Home") this.moveTo(0); else if (e.key === "End") this.toEnd(); else if (by) this.moveBy(by); else return;
      e.preventDefault();
    }

    // goTo shows a line, with some before it.
    goTo(number, last) {
      for (const [first, end] of this.folded) if (number > first && number <= end.n) this.folded.delete(first); // what is folded around it is opened
      this.fold();
      this.picked = [number, last || number];
      this.following = false;
      this.goal = number;
      this.hold = {number, y: 3 * rowHeight};
      this.draw();
    }

    draw() {
      if (this.closed) return;
      for (let pass = 0; pass < 5 && this.drawOnce(); pass++); // until all that is drawn has been measured
      clearTimeout(this.waiting);
      if (this.wanted.size > 0) { this.waiting = setTimeout(() => this.load(), this.chunks.size > 0 ? settle : 0); return; }
      if (!this.goal) return;
      if (this.plain) this.view.scrollTop = this.top(this.index(this.goal)) - 3 * rowHeight;
      if (this.goal > this.total) say(`Line ${this.goal} is beyond the end: this log has ${plural(this.total, "line")}${this.status === "running" ? " so far" : ""}.`);
      this.goal = undefined;
    }
    // drawOnce draws the lines that are looked at, and returns whether one was not as tall as it was thought to be.
    drawOnce() {
      const wasPlain = this.plain;
      this.scale = this.measure();
      this.wanted = new Set();
      const count = this.count;
      let first = 0, fit = count, atEnd = false;
      if (!this.plain) {
        const held = this.top(this.index(this.hold.number)) - this.hold.y;
        this.position = Math.max(0, Math.min(this.following ? this.most : held, this.most));
        atEnd = this.position >= this.most - 1;
        fit = Math.ceil(this.room / rowHeight) + 1;
        first = atEnd ? Math.max(0, count - fit) : this.at(this.position).index;
      }
      const numbers = [];
      for (let i = first; i < Math.min(count, first + fit); i++) numbers.push(this.number(i));
      this.show(numbers);
      this.rowOfOpenLine(first + fit >= count);
      const changed = this.measureRows();
      if (this.plain) {
        this.measure();
        if (this.following) this.view.scrollTop = this.view.scrollHeight;
        else if (wasPlain === false) this.view.scrollTop = this.top(this.index(this.hold.number)) - this.hold.y;
        return false;
      }
      if (changed) return true;
      this.pane.scrollTop = atEnd ? this.pane.scrollHeight : this.position - this.top(first);
      this.paneTop = this.pane.scrollTop;
      const top = this.position / this.scale;
      if (Math.abs(this.view.scrollTop - top) >= 1) this.view.scrollTop = top;
      this.setTop = this.view.scrollTop; // as the browser rounds it
      if (!this.goal && this.wanted.size === 0) this.holdTop();
      return false;
    }

    // rowOfOpenLine sees to it that a last line is shown that has not ended: the tree counts ended ones.
    rowOfOpenLine(visible) {
      const k = Math.floor(this.lines / chunkLines);
      if (visible && !this.chunks.has(k)) this.wanted.add(k);
    }

    // row is what is known of a line: undefined while it is not loaded, and null if the archive lacks it.
    row(number) {
      const k = Math.floor((number - 1) / chunkLines), chunk = this.chunks.get(k);
      if (!chunk || chunk.stale) this.wanted.add(k);
      return chunk && (chunk.rows.get(number) || (chunk.stale ? undefined : null));
    }

    // show puts these lines into the page. The elements of those that are there already stay as they are, and with them a selection and the focus.
    show(numbers) {
      const before = this.drawn, focus = this.rows.contains(document.activeElement) ? document.activeElement : null;
      const elements = [];
      this.drawn = new Map();
      for (const number of numbers) {
        const row = this.row(number);
        let d = before.get(number);
        if (!d || d.row !== row) d = this.make(number, row);
        this.update(number, d);
        this.drawn.set(number, d);
        elements.push(...d.elements);
      }
      const now = new Set(elements);
      for (const e of [...this.rows.children]) if (!now.has(e)) e.remove();
      let next = this.rows.firstChild;
      for (const e of elements) {
        if (e === next) next = next.nextSibling; else this.rows.insertBefore(e, next);
      }
      if (focus && !focus.isConnected) {
        const d = this.drawn.get(Number(focus.closest(".row").dataset.number));
        (d && (focus.matches(".fold") ? d.fold : d.label) || this.view).focus({preventScroll: true});
      }
      for (const number of numbers) { // those that are looked at are the last to be forgotten
        const k = Math.floor((number - 1) / chunkLines), chunk = this.chunks.get(k);
        if (chunk && k !== this.latest) { this.chunks.delete(k); this.chunks.set(k, chunk); this.latest = k; }
      }
    }

    // make makes the elements of a line.
    make(number, row) {
      const e = element("div", "row"), d = {row, elements: []};
      e.dataset.number = number;
      if (row === undefined) e.classList.add("waiting");
      if (row === null) e.classList.add("lost");
      for (const g of row?.gaps || []) d.elements.push(element("div", "gap", g));
      d.elements.push(e);
      d.label = element("a", "number", String(number));
      d.label.href = this.address(number, number);
      d.label.addEventListener("click", (event) => { event.preventDefault(); this.pick(number, event.shiftKey); });
      const text = element("span", "text");
      e.append(d.label);
      if (row) {
        e.append(element("span", "time", row.at.replace(/^(.*T)(\d\d:\d\d:\d\d)(\.\d{1,3})?.*$/, (_, day, time, ms) => time + (ms || ".").padEnd(4, "0")) + " "));
        e.lastChild.title = row.at;
        if (row.k) e.classList.add(row.k);
        if (row.e) e.classList.add("stderr");
        if (row.k === "group") {
          d.fold = element("button", "fold");
          d.fold.type = "button";
          d.fold.setAttribute("aria-label", "Group");
          d.fold.addEventListener("click", () => this.toggle(number));
          e.append(d.fold);
        }
        for (const s of row.s) {
          const span = element("span", s.c, s.t);
          if (s.f) span.style.color = s.f;
          if (s.g) {
            span.style.backgroundColor = s.g;
            if (!s.f && !/\bf\d/.test(s.c)) span.style.color = isLight(s.g) ? "#000" : "#fff";
          }
          text.append(span);
        }
        if (row.cut) text.append(element("span", "more", ` … ${row.cut} bytes more: see Download`));
      }
      e.append(text);
      if (d.fold) {
        d.lasted = element("span", "lasted");
        d.lasted.title = "from its first line to its last";
        e.append(d.lasted);
      }
      return d;
    }
    // update shows of a line what is not in the log.
    update(number, d) {
      const e = d.elements[d.elements.length - 1];
      e.classList.toggle("picked", Boolean(this.picked && number >= this.picked[0] && number <= this.picked[1]));
      if (!d.fold) return;
      const open = !this.folded.has(number), end = this.groupEnd(number), lasted = end?.at ? took(Date.parse(end.at) - Date.parse(d.row.at)) : "";
      d.fold.setAttribute("aria-expanded", String(open));
      setText(d.fold, open ? "▾" : "▸");
      setText(d.lasted, lasted);
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
      for (const [k, stop] of this.loading) if (!this.wanted.has(k) && k !== this.renewing) stop.abort();
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
        clearTimeout(this.waiting);
        if (!ended) this.waiting = setTimeout(() => this.draw(), retryEvery);
      } finally {
        if (this.loading.get(k) === stop) this.loading.delete(k);
      }
    }
    take(k, answer) {
      const old = this.chunks.get(k)?.rows, rows = new Map();
      for (const r of answer.rows) { // one that is as it was stays the same object, so that it is not drawn again
        const was = old?.get(r.n);
        rows.set(r.n, was && JSON.stringify(was) === JSON.stringify(r) ? was : r);
      }
      this.chunks.delete(k);
      this.chunks.set(k, {rows});
      while (this.chunks.size > mostChunks) this.chunks.delete(this.chunks.keys().next().value);
      this.box.dataset.chunks = this.chunks.size;
      if (answer.damage) this.damage = answer.damage;
      if (this.paused) return;
      const last = answer.rows.length ? answer.rows[answer.rows.length - 1].n : 0, before = this.total;
      this.lines = answer.lines;
      this.total = Math.max(answer.lines, last, k < Math.floor(answer.lines / chunkLines) ? this.total : 0);
      this.status = answer.status;
      this.says = answer.says;
      const tail = this.chunks.get(Math.floor(before / chunkLines));
      if (this.total > before && tail && Math.floor(before / chunkLines) !== k) tail.stale = true; // it was not full then
    }
    // poll looks for what is new.
    poll() {
      if (!this.paused && this.status === "running" && !document.hidden && !ended) this.renew();
    }
    async renew() {
      if (this.renewing !== undefined) return;
      const status = this.status;
      this.renewing = Math.floor(this.lines / chunkLines);
      await this.get(this.renewing);
      this.renewing = undefined;
      if (this.status !== status && this.status !== "running") refresh();
    }

    // findMarks asks where groups and errors are, and of a log that runs, only in what has come since.
    findMarks() {
      this.marking ??= this.readMarks().finally(() => { this.marking = undefined; });
      return this.marking;
    }
    async readMarks() {
      const m = this.marks;
      if (m.whole || m.more && m.error) return m;
      this.stopMarks = new AbortController();
      const from = m.lines + 1;
      const answer = await (await get(`${own}/marks/${this.path}?from=${from}`, {signal: this.stopMarks.signal})).json();
      m.all = m.all.filter((mark) => mark.n < from).concat(answer.marks);
      m.more = m.more || answer.more;
      m.error = m.error || answer.error;
      m.likely = m.likely || answer.likely;
      m.lines = answer.lines;
      m.whole = answer.status !== "running" && answer.status !== "partial";
      return m;
    }
    // groupEnd is the last line of a group, and its time where that is known: the one that ends it, or the one before the next group, for they do not nest (GitHub Actions and Azure Pipelines), or the log's last.
    groupEnd(first) {
      if (this.folded.has(first)) return this.folded.get(first);
      for (let n = first + 1, at; ; n++) { // in what is loaded
        const row = this.chunks.get(Math.floor((n - 1) / chunkLines))?.rows.get(n);
        if (n > this.total && this.status !== "running" && at) return {n: this.total, at};
        if (!row) break;
        at = row.at;
        if (row.k === "endgroup") return {n, at: row.at};
        if (row.k === "group") return {n: n - 1, at: row.at};
      }
      const m = this.marks, i = after(m.all, first);
      if (i < m.all.length) return {n: m.all[i].k === "group" ? m.all[i].n - 1 : m.all[i].n, at: m.all[i].at};
      return m.lines >= first && !m.more ? {n: this.total} : undefined;
    }
    fold() {
      this.hidden = [...this.folded].sort((a, b) => a[0] - b[0]).map(([first, end]) => [first + 1, end.n]).filter(([from, to]) => to >= from);
      this.sorted = undefined;
    }
    async toggle(number) {
      if (!this.folded.delete(number)) {
        try { if (!this.groupEnd(number)) await this.findMarks(); } catch (err) { this.tell(err.message); return; }
        const end = this.groupEnd(number);
        if (!end) { this.tell("this group cannot be folded: there are too many groups before its end"); return; }
        this.folded.set(number, end);
      }
      this.following = false;
      this.fold();
      this.draw();
    }
    async firstError() {
      this.tell("looking for the first error");
      try {
        const m = await this.findMarks(), n = m.error || m.likely;
        this.tell(n ? undefined : "no line tells of an error");
        if (n) { this.goTo(n); history.replaceState(null, "", this.address(n, n)); }
      } catch (err) { this.tell(err.message); }
    }
  }

  const all = (selector) => [...document.querySelectorAll(selector)];
  const stepOf = (id) => all(".step").find((s) => s.dataset.step === id);
  // taskOf finds a task by the name of its TaskRun, or by what the pipeline calls it: of several, as a matrix makes them, the first that failed. Of retries it is the last.
  const taskOf = (name) => {
    const last = new Map();
    for (const t of all(".task")) if (t.dataset.task === name || t.dataset.label === name || t.dataset.taskrun === name) last.set(t.dataset.taskrun, t);
    const tasks = [...last.values()];
    return {task: tasks.find((t) => t.querySelector('.step[data-failed="true"]')) || tasks[0], several: tasks.length > 1};
  };
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
  let missing = false; // what the fragment names is not in the tree
  const show = () => {
    say();
    missing = false;
    let fragment = location.hash.slice(1);
    try { fragment = decodeURIComponent(fragment); } catch { /* as it is */ }
    if (!fragment) return;
    const fields = Object.fromEntries(fragment.split("&").map((f) => [f.split("=", 1)[0], f.slice(f.indexOf("=") + 1)]));
    const lacks = (what) => {
      missing = true;
      say(`${what} is not in this run${run.dataset.over === "true" ? "" : ", or not yet"}.`);
    };
    if (fields.task) {
      const {task, several} = taskOf(fields.task);
      if (!task) { lacks(`The task ${fields.task}`); return; }
      if (several) say(`Several TaskRuns are of the task ${fields.task}: this is ${task.dataset.taskrun}.`);
      const step = task.querySelector('.step[data-failed="true"]');
      if (step) { last = step; opened(step).toEnd(); }
      task.scrollIntoView();
      return;
    }
    if (!fields.step) { say(`The address names no step: #${fragment}`); return; }
    const retry = fields.retry ? "&retry=" + fields.retry : "";
    let step = stepOf(fields.step + retry);
    if (!step) { // by another of its task's names
      const {task, several} = taskOf(fields.step.split("/", 1)[0]), name = fields.step.slice(fields.step.indexOf("/"));
      step = task && stepOf(task.dataset.task + name + retry);
      if (step && several) say(`Several TaskRuns are of the task ${task.dataset.label}: this is ${task.dataset.taskrun}.`);
    }
    if (!step) { lacks(`The step ${fields.step}${fields.retry ? `, retry ${fields.retry},` : ""}`); return; }
    last = step;
    const log = opened(step);
    if (fields.L !== undefined) {
      const range = /^([1-9]\d{0,14})(?:-([1-9]\d{0,14}))?$/.exec(fields.L);
      if (range) log.goTo(...[Number(range[1]), Number(range[2] || range[1])].sort((a, b) => a - b));
      else say(`L=${fields.L} names no lines: L=7 and L=7-9 would.`);
    }
    step.scrollIntoView({block: "nearest"});
  };
  addEventListener("hashchange", show);

  // refresh brings what is new of the run into the tree.
  const renew = (here, fresh) => { if (here.innerHTML !== fresh.innerHTML) here.replaceChildren(...fresh.childNodes); };
  let refreshing = false, tag = '""'; // of what is shown
  const refresh = async () => {
    if (refreshing) return;
    refreshing = true;
    try {
      const answer = await get(location.pathname, {headers: {"If-None-Match": tag}});
      if (answer.status === 304) { unsure(); return; }
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      const now = fresh.getElementById("run");
      if (!now) throw new Error("the server answers with another page");
      for (const name of ["over", "failed"]) run.dataset[name] = now.dataset[name];
      renew(document.getElementById("title"), fresh.getElementById("title"));
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
          renew(mine.querySelector(".head"), step.querySelector(".head"));
          logs.get(mine.dataset.path)?.standsAs(mine.dataset.status);
        }
      }
      if (before) tree.querySelector(":scope > .message")?.remove();
      if (missing) show();
      tag = answer.headers.get("ETag") || tag;
      unsure();
    } catch (err) { // it is tried again
      unsure(err.message);
    } finally { refreshing = false; }
  };
  // A run that has just begun has no steps, and a log that is partial may go on, though nothing is heard of the run.
  const mayChange = () => run.dataset.over !== "true" || !document.querySelector(".step") || [...logs.values()].some((l) => l.status === "running" || l.status === "partial");
  setInterval(() => { if (mayChange() && !document.hidden && !ended) refresh(); }, treeEvery);
  addEventListener("focus", () => { if (ended) refresh(); }); // one may have logged in elsewhere

  // What is shown of all logs is remembered by the browser.
  const toggles = {times: "timed", wrap: "wrapped"};
  for (const [id, className] of Object.entries(toggles)) {
    const button = document.getElementById(id);
    const set = (on) => {
      document.body.classList.toggle(className, on);
      button.setAttribute("aria-pressed", String(on));
      localStorage.setItem(id, on ? "1" : "0");
      for (const log of logs.values()) { log.forgetHeights(); log.draw(); }
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
    const ask = new URLSearchParams({q, limit: "200", all: "true"});
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
        found.replaceChildren(element("p", "hint", plural(hits.length, "line") + " …"), ...hits.map(hit));
      }
      if (!summary) throw new Error("the answer broke off: search again");
      const said = hits.length === 0 ? "Nothing found" : summary.more ? `The first ${hits.length} lines` : plural(hits.length, "line");
      found.replaceChildren(element("p", "hint", `${said} in ${plural(summary.logs, "log")}`), ...hits.map(hit));
      const lacks = (className, title, logs) => {
        if (!logs?.length) return;
        const box = element("div", className, title), list = element("ul");
        list.append(...logs.map((what) => element("li", "", what)));
        box.append(list);
        found.firstChild.after(box);
      };
      lacks("message", "Only what is archived so far was searched of:", summary.unfinished);
      lacks("message bad", "Not all could be searched of:", summary.damage);
    } catch (err) {
      if (!stop.signal.aborted) found.replaceChildren(element("p", "message bad", err.message));
    }
  });
  // The browser says nothing of an address that is there already.
  found.addEventListener("click", (e) => { if (e.target.closest("a")?.hash === location.hash) show(); });
  const encoder = new TextEncoder(), decoder = new TextDecoder();
  const hit = (m) => {
    const of = ({dataset}) => dataset.taskrun === m.taskRun && Number(dataset.retry) === m.retry;
    const mine = all(".task").find(of)?.querySelectorAll(".step") || [];
    const step = [...mine].find((s) => s.dataset.container === m.container)?.dataset.step || `${m.taskRun}/${m.container.replace(/^step-/, "")}` + (m.retry ? "&retry=" + m.retry : "");
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
