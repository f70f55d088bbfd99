// Queues that a person works through: one picture at a time, beside what it was found with.
import { asked, element, json } from "./asked.js";

const $ = (id) => document.getElementById(id);

export class Clean {
  constructor(state, page) {
    Object.assign(this, { state, page, name: null, items: [], at: 0, last: Promise.resolve() });
    for (const verdict of ["keep", "drop"]) $(verdict).addEventListener("click", () => this.decide(verdict));
    $("relabel").addEventListener("click", () => this.ask());
    $("undo").addEventListener("click", () => this.undo());
    $("back").addEventListener("click", () => this.go(this.at - 1));
    $("next").addEventListener("click", () => this.go(this.at + 1));
    $("anew").addEventListener("submit", (event) => { event.preventDefault(); const label = $("label").value.trim(); if (label) this.decide("relabel", label); });
    $("label").addEventListener("keydown", (event) => { if (event.key === "Escape") { $("anew").hidden = true; $("relabel").focus(); } });
    $("labels").replaceChildren(...state.about.classes.map((name) => element("option", undefined, { value: name })));
    addEventListener("keydown", (event) => {
      if ($("clean").hidden || $("work").hidden || event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
      const act = { k: () => this.decide("keep"), d: () => this.decide("drop"), r: () => this.ask(), u: () => this.undo(), ArrowLeft: () => this.go(this.at - 1), ArrowRight: () => this.go(this.at + 1) }[event.key];
      if (act) { event.preventDefault(); act(); }
    });
  }

  update(now) {
    const words = now.queues.map((queue) => `${queue.name} ${queue.state} ${queue.words} ${queue.count} ${this.name}`).join("\n");
    this.decided = new Map(now.decided.map(([row, queue, verdict, label]) => [`${queue}\n${row}`, { verdict, label }]));
    if (words === this.words) return;
    this.words = words;
    if (!now.queues.length) { $("queues").replaceChildren(element("li", "No queue is known.", { class: "quiet" })); return; }
    $("queues").replaceChildren(...now.queues.map((queue) => {
      const item = element("li"), button = element("button", undefined, { type: "button", "aria-pressed": queue.name === this.name });
      button.append(element("span", queue.name), element("span", queue.state === "found" ? queue.count.toLocaleString() : queue.words || queue.state));
      button.disabled = queue.state !== "found" || !queue.count;
      button.addEventListener("click", () => this.open(queue.name));
      item.append(button);
      return item;
    }));
  }

  async open(name) {
    try {
      this.items = (await json(`queue/${encodeURIComponent(name)}`)).items;
      this.name = name; this.words = null; this.update(this.state.now);
      $("work").hidden = false;
      const first = this.items.findIndex((item) => !this.of(item));
      this.go(first < 0 ? 0 : first);
      $("keep").focus();
    } catch (error) { this.page.trouble(error); }
  }

  of(item) { return this.decided.get(`${this.name}\n${item.row}`); }

  async go(at) {
    if (!this.items.length) return;
    this.at = Math.max(0, Math.min(this.items.length - 1, at));
    const item = this.items[this.at], [{ path, text }] = await this.page.names([item.row]);
    const done = this.items.filter((each) => this.of(each)).length, one = this.of(item), place = this.state.place[item.row];
    $("anew").hidden = true;
    $("where").textContent = `${this.at + 1} of ${this.items.length} · ${done} decided${one ? ` · this one: ${one.verdict}${one.label ? ` as ${one.label}` : ""}` : ""}`;
    $("done").value = done / this.items.length;
    $("case").hidden = !this.state.about.pictures;
    if (this.state.about.pictures) { $("case").src = `picture/640/${item.row}`; $("case").alt = path; }
    $("case-words").textContent = `${text ? `${text} · ` : ""}${path} · ${this.page.className(this.state.label[place])} · ${this.state.about.splits[this.state.split[place]]}`;
    $("why").textContent = `${item.reason} (${item.score.toFixed(3)})`;
    await this.page.show($("others"), item.others.map((row) => [row, null]));
  }

  ask() { $("anew").hidden = false; $("label").value = ""; $("label").focus(); }

  // one after the other, however fast the keys come
  then(work) { this.last = this.last.then(work).catch((error) => this.page.trouble(error)); }
  decide(decision, label) { this.then(() => this.take(decision, label)); }
  undo() { this.then(() => this.takeBack()); }

  async take(decision, label) {
    const item = this.items[this.at];
    if (item) {
      this.page.took(await asked("decide", { queue: this.name, row: item.row, decision, ...(label ? { label } : {}) }));
      this.page.say(`${decision}${label ? ` as ${label}` : ""}; u takes it back`);
      const later = this.items.findIndex((each, i) => i > this.at && !this.of(each)), any = this.items.findIndex((each) => !this.of(each));
      if (later < 0 && any < 0) this.page.say("all of this queue is decided");
      await this.go(later >= 0 ? later : any >= 0 ? any : this.at);
      if (label) $("keep").focus();
    }
  }

  async takeBack() {
    const now = await asked("undo", {});
    this.page.took(now);
    if (!now.undone) return this.page.say("there is nothing to undo");
    const [queue, row] = now.undone, at = queue === this.name ? this.items.findIndex((item) => item.row === row) : -1;
    this.page.say(at < 0 ? `taken back: the last of ${queue}` : "taken back");
    await this.go(at < 0 ? this.at : at);
  }
}
