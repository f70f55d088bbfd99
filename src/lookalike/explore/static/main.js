// The page: what is shown of the table, searched, named and exported. Queues are in clean.js, the map in map.js.
import { asked, element, get, json, numbers, post, saved } from "./asked.js";
import { Clean } from "./clean.js";
import { MapView, within } from "./map.js";

const $ = (id) => document.getElementById(id);
const FEW = 60, ASK_EVERY = 1000;
const OKABE = [[0, 114, 178], [230, 159, 0], [0, 158, 115], [204, 121, 167], [86, 180, 233], [213, 94, 0], [170, 160, 30], [120, 94, 240], [150, 85, 40], [230, 80, 150], [100, 190, 50], [0, 175, 185]];
const GRAY = [128, 134, 142], VERDICT = { keep: [0, 158, 115], drop: [213, 94, 0], relabel: [86, 180, 233] };
const RAMP = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];  // viridis

const state = { about: null, now: null, row: [], place: [], label: null, split: null, score: null, kinds: null, kindNames: [],
  selection: new Set(), bright: new Set(), focus: -1, named: new Map(), decided: new Map(), classesOff: new Set(), splitsOff: new Set(), paths: new Map() };
let map, clean;

const say = (words) => { $("said").textContent = words; };
const trouble = (error) => { if (error.name !== "AbortError") say(error.message); };
const colourOf = (i) => i < 0 ? GRAY : i < OKABE.length ? OKABE[i] : hue(i);
function hue(i) {  // far apart, for classes past the palette
  const h = (i * 137.508) % 360, f = (n) => { const k = (n + h / 30) % 12; return Math.round(255 * (0.52 - 0.36 * Math.max(-1, Math.min(k - 3, 9 - k, 1)))); };
  return [f(0), f(8), f(4)];
}
function ramp(value) {
  const at = Math.max(0, Math.min(1, value)) * (RAMP.length - 1), i = Math.min(RAMP.length - 2, Math.floor(at));
  return RAMP[i].map((low, c) => Math.round(low + (RAMP[i + 1][c] - low) * (at - i)));
}
const className = (label) => label >= 0 ? state.about.classes[label] ?? `class ${label}` : "no class";

async function names(rows) {
  const unknown = rows.filter((row) => !state.paths.has(row)).slice(0, 400);
  if (unknown.length) (await json(`names?rows=${unknown.join(",")}`)).names.forEach(([path, text], i) => state.paths.set(unknown[i], { path, text }));
  return rows.map((row) => state.paths.get(row) ?? { path: "", text: null });
}

// ---- the map ----

async function loadPoints() {
  const first = !state.row.length, old = state.row;
  const response = await get("points"), data = await response.arrayBuffer(), n = state.about.rows;
  const places = new Float32Array(data, 0, 2 * n), row = new Uint32Array(data, 8 * n, n);
  state.label = new Int32Array(data, 12 * n, n); state.split = new Uint8Array(data, 16 * n, n);
  state.shown = Number(response.headers.get("X-Map"));
  const same = !first && row.every((r, i) => r === old[i]);
  state.row = row; state.place = new Uint32Array(n);
  row.forEach((r, i) => { state.place[r] = i; });
  map.points(places, { ...state.about, thumbnails: state.now.thumbnails }, same);
  paint();
}

const filtered = (i) => !state.splitsOff.has(state.split[i]) && !state.classesOff.has(state.label[i])
  && (state.least === undefined || !state.score || state.score[state.row[i]] >= state.least);

function paint() {
  const n = state.row.length, tint = new Uint8Array(4 * n), by = $("colour").value;
  let low = 0, high = 1, count = 0;
  if (state.score && !state.kinds) { low = Infinity; high = -Infinity; for (const s of state.score) { low = Math.min(low, s); high = Math.max(high, s); } }
  for (let i = 0; i < n; i++) {
    const r = state.row[i], lit = filtered(i);
    let c = GRAY;
    if (by === "class") c = colourOf(state.label[i]);
    else if (by === "split") c = colourOf(state.split[i]);
    else if (by === "decision") c = VERDICT[state.decided.get(r)?.verdict] ?? GRAY;
    else if (state.kinds) { const sure = Math.max(0, Math.min(1, (state.score[r] * state.kindNames.length - 1) / Math.max(1, state.kindNames.length - 1))), k = colourOf(state.kinds[r]); c = state.kindNames.length > 1 ? k.map((v, j) => Math.round(GRAY[j] + (v - GRAY[j]) * (0.25 + 0.75 * sure))) : ramp(state.score[r]); }
    else if (state.score) c = ramp((state.score[r] - low) / (high - low || 1));
    tint.set(c, 4 * i);
    tint[4 * i + 3] = !lit ? 30 : r === state.focus ? 255 : state.selection.has(r) || state.bright.has(r) ? 230 : 128;
    if (tint[4 * i + 3] > 200) tint.set(r === state.focus ? [255, 60, 60] : state.selection.has(r) ? [255, 170, 0] : [30, 140, 255], 4 * i);
    count += lit;
  }
  map.colours(tint);
  $("shown").textContent = count === n ? "" : `${count.toLocaleString()} of ${n.toLocaleString()}`;
  state.count = count;
  $("chosen").hidden = !state.selection.size && count === n;
  $("count").textContent = state.selection.size ? `${state.selection.size.toLocaleString()} selected` : `${count.toLocaleString()} shown by the filter`;
}

const chosen = () => state.selection.size ? [...state.selection].sort((a, b) => a - b) : [...state.row].filter((_, i) => filtered(i)).sort((a, b) => a - b);

function pointer(canvas) {
  const down = new Map();
  let drawn = null, moved = 0, pinch = 0;
  const at = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
  const outline = () => $("lasso").firstElementChild.setAttribute("points", (drawn ?? []).map((p) => p.join(",")).join(" "));
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId); down.set(event.pointerId, at(event)); moved = 0; pinch = 0;
    if (down.size === 1 && (event.shiftKey || $("draw").getAttribute("aria-pressed") === "true")) drawn = [at(event)];
    if (down.size > 1) drawn = null;
    outline();
  });
  canvas.addEventListener("pointermove", (event) => {
    const now = at(event), before = down.get(event.pointerId);
    if (!before) return hover(event, ...now);
    $("tip").hidden = true;
    moved += Math.hypot(now[0] - before[0], now[1] - before[1]);
    down.set(event.pointerId, now);
    if (down.size === 2) {
      const [a, b] = [...down.values()], apart = Math.hypot(a[0] - b[0], a[1] - b[1]);
      if (pinch) map.zoom(apart / pinch, (a[0] + b[0]) / 2, (a[1] + b[1]) / 2);
      pinch = apart;
    } else if (drawn) { drawn.push(now); outline(); } else map.pan(now[0] - before[0], now[1] - before[1]);
  });
  const up = (event) => {
    const last = down.get(event.pointerId);
    down.delete(event.pointerId);
    if (drawn && drawn.length > 4) enclose(drawn, event.ctrlKey || event.metaKey);
    else if (last && moved < 5 && event.type === "pointerup") { const i = map.pick(...last); if (i >= 0) look(state.row[i]); }
    drawn = null; outline();
  };
  canvas.addEventListener("pointerup", up);
  canvas.addEventListener("pointercancel", up);
  canvas.addEventListener("pointerleave", () => { $("tip").hidden = true; });
  canvas.addEventListener("wheel", (event) => { event.preventDefault(); map.zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.0015)), ...at(event)); }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const step = 60, act = { ArrowLeft: () => map.pan(step, 0), ArrowRight: () => map.pan(-step, 0), ArrowUp: () => map.pan(0, step), ArrowDown: () => map.pan(0, -step),
      "+": () => map.zoom(1.3), "=": () => map.zoom(1.3), "-": () => map.zoom(1 / 1.3), 0: () => map.fit(),
      Enter: () => { const i = map.pick(map.width / 2, map.height / 2); if (i >= 0) look(state.row[i]); else say("no picture in the middle of the map"); } }[event.key];
    if (act && !event.ctrlKey && !event.metaKey) { event.preventDefault(); event.stopPropagation(); act(); }
  });
}

let hovered = -1;
async function hover(event, x, y) {
  const i = map.pick(x, y), tip = $("tip");
  if (i < 0) { hovered = -1; tip.hidden = true; return; }
  const r = state.row[i];
  if (hovered !== r) {
    hovered = r;
    const [{ path, text }] = await names([r]);
    if (hovered !== r) return;
    tip.textContent = `${text ?? path} · ${className(state.label[i])} · ${state.about.splits[state.split[i]]}${state.score ? ` · ${state.score[r].toFixed(3)}` : ""}`;
  }
  tip.hidden = false;
  tip.style.left = `${Math.min(x + 14, map.width - tip.offsetWidth - 6)}px`;
  tip.style.top = `${Math.min(y + 14, map.height - tip.offsetHeight - 6)}px`;
}

function enclose(polygon, more) {
  if (!more) state.selection.clear();
  for (let i = 0; i < state.row.length; i++) if (filtered(i) && within(polygon, ...map.screen(i))) state.selection.add(state.row[i]);
  panel("look"); paint(); say(`${state.selection.size.toLocaleString()} selected`);
  const rows = [...state.selection].slice(0, FEW);
  $("found").textContent = state.selection.size > FEW ? `The first ${FEW} of what you drew around` : "What you drew around";
  show($("hits"), rows.map((row) => [row, null]));
}

// ---- looking ----

export async function show(grid, hits) {
  const list = hits.map(([row]) => row), known = await names(list);
  grid.replaceChildren(...hits.map(([row, cosine], k) => {
    const { path, text } = known[k], label = className(state.label[state.place[row]]);
    const button = element("button", undefined, { type: "button", title: path, "aria-label": `${path}, ${label}${cosine === null ? "" : `, ${cosine.toFixed(3)}`}` });
    if (state.about.pictures) button.append(element("img", undefined, { src: `picture/128/${row}`, alt: "", loading: "lazy" }));
    button.append(element("span", text ?? label));
    if (cosine !== null) button.append(element("span", cosine.toFixed(4), { class: "quiet" }));
    button.addEventListener("click", () => look(row));
    return button;
  }));
  grid.dataset.rows = list.join(",");
}

async function answeredBy(words, answer) {
  state.score = numbers(answer.cosines, Float32Array); state.kinds = null;
  state.bright = new Set(answer.hits.slice(0, 12).map(([row]) => row));
  least(); panel("look"); paint();
  $("found").textContent = words;
  $("hint").hidden = true;
  await show($("hits"), answer.hits);
}

async function look(row) {
  state.focus = row;
  try {
    const [answer, [{ path, text }]] = await Promise.all([asked("near", { rows: [row] }), names([row])]);
    if (state.focus !== row) return;
    $("one").hidden = false;
    $("large").hidden = !state.about.pictures;
    if (state.about.pictures) { $("large").src = `picture/640/${row}`; $("large").alt = path; }
    const i = state.place[row], one = state.decided.get(row);
    $("words").textContent = `${text ? `${text} · ` : ""}${path} · ${className(state.label[i])} · ${state.about.splits[state.split[i]]}${one ? ` · ${one.verdict}${one.label ? `: ${one.label}` : ""}` : ""}`;
    await answeredBy("Near it", answer);
  } catch (error) { trouble(error); }
}

async function searched(words, path, value, raw) {
  say("searching…");
  try {
    state.focus = -1;
    const answer = await asked(path, value, raw);
    $("one").hidden = true;
    await answeredBy(words, answer);
    say("");
  } catch (error) { trouble(error); }
}
function pictureOf(file) {
  if (file.size > 32 * 2 ** 20) return say("the file is larger than 32 MB");
  return searched(`Near ${file.name}`, "dropped", file, true);
}

function least() {
  state.least = undefined; $("least").value = $("least").min = 0; $("least-said").textContent = "any";
  if (!state.score) return;
  const low = state.score.reduce((a, b) => Math.min(a, b), Infinity);
  $("least").min = Math.floor(100 * low) / 100; $("least").value = $("least").min;
}

// ---- names ----

async function teach() {
  $("kinds").replaceChildren(...[...state.named].map(([name, rows], k) => {
    const item = element("li"), dot = element("i", "", { class: "dot" }), drop = element("button", "Remove", { "aria-label": `Remove ${name}` });
    dot.style.background = `rgb(${colourOf(k)})`;
    const predicted = state.kinds && state.kindNames.length > 1 ? `, ${state.kinds.reduce((sum, kind) => sum + (kind === k), 0).toLocaleString()} look so` : "";
    item.append(dot, element("span", `${name}: ${rows.size} named${predicted}`), drop);
    drop.addEventListener("click", () => { state.named.delete(name); guess(); });
    return item;
  }));
  $("forget").hidden = !state.named.size;
}
async function guess() {
  state.kinds = state.score = null;
  try {
    if (state.named.size) {
      const answer = await asked("named", { named: Object.fromEntries([...state.named].map(([name, rows]) => [name, [...rows]])) });
      state.kinds = numbers(answer.kinds, Uint8Array); state.score = numbers(answer.scores, Float32Array); state.kindNames = answer.names;
      $("colour").value = "score";
    }
    least(); teach(); paint();
  } catch (error) { trouble(error); }
}

// ---- panels, filters, and what changes ----

export function panel(name) {
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const open = tab.getAttribute("aria-controls") === name;
    tab.setAttribute("aria-selected", open); tab.tabIndex = open ? 0 : -1;
    $(tab.getAttribute("aria-controls")).hidden = !open;
  }
}

function chips(holder, words, off, colour) {
  holder.replaceChildren(...words.map(([value, word]) => {
    const chip = element("button", undefined, { type: "button", "aria-pressed": "true" });
    if (colour) { const dot = element("i", "", { class: "dot" }); dot.style.background = `rgb(${colourOf(value)})`; chip.append(dot); }
    chip.append(element("span", word));
    chip.addEventListener("click", (event) => {
      if (event.shiftKey) for (const [other] of words) off.add(other);  // this one alone
      if (off.has(value)) off.delete(value); else off.add(value);
      [...holder.children].forEach((each, k) => each.setAttribute("aria-pressed", !off.has(words[k][0])));
      paint();
    });
    return chip;
  }));
}

function facts() {  // how much is shown, and of a run that trains by which of its steps
  const { about, now } = state, step = now?.live.shown, model = step > 0 ? `${about.model.replace(/, step [\d,]+$/, "")}, step ${step.toLocaleString()}` : about.model;
  $("facts").textContent = `${about.rows.toLocaleString()} ${about.pictures ? "pictures" : "texts"}${model ? ` · ${model}` : ""}`;
}

export function took(now) {
  const before = state.now;
  state.now = now;
  state.decided = new Map(now.decided.map(([row, queue, verdict, label]) => [row, { queue, verdict, label }]));
  $("drawn").textContent = now.words || `${now.drawn}`;
  clean?.update(now);
  if (now.live.training !== undefined) {
    $("tab-run").hidden = false;
    facts();
    const shown = { "": now.live.training ? "is training" : "has stopped", "step shown": now.live.shown, ...now.live.metrics };
    $("numbers").replaceChildren(...Object.entries(shown).flatMap(([name, value]) => [element("dt", name), element("dd", typeof value === "number" ? String(Number(value.toPrecision(5))) : value)]));
  }
  if (before && JSON.stringify(before.decided) !== JSON.stringify(now.decided)) paint();
}

async function follow() {
  for (let quiet = 0; ; ) {
    await new Promise((resolve) => setTimeout(resolve, quiet ? 5 * ASK_EVERY : ASK_EVERY));
    if (document.hidden) continue;
    try {
      took(await json("state"));
      if (state.now.map !== state.shown) await loadPoints();
      const busy = state.now.words || state.now.live.training !== undefined || state.now.queues.some((queue) => queue.state === "waiting" || queue.state === "looking");
      quiet = busy ? 0 : 1;
    } catch { quiet = 1; say("the server has ended; what was decided is kept"); }
  }
}

function listen() {
  pointer($("map"));
  $("draw").addEventListener("click", () => { const on = $("draw").getAttribute("aria-pressed") !== "true"; $("draw").setAttribute("aria-pressed", on); $("map").classList.toggle("lasso", on); });
  $("closer").addEventListener("click", () => map.zoom(1.5));
  $("farther").addEventListener("click", () => map.zoom(1 / 1.5));
  $("fit").addEventListener("click", () => map.fit());
  $("size").addEventListener("input", () => { map.bias = Number($("size").value); map.ask(); });
  $("colour").addEventListener("change", paint);
  $("search").addEventListener("submit", (event) => { event.preventDefault(); const text = $("sentence").value.trim(); if (text) searched(`Near “${text}”`, "near", { text }); });
  $("file").addEventListener("change", () => { const [file] = $("file").files; if (file) pictureOf(file); $("file").value = ""; });
  $("clear").addEventListener("click", () => { state.selection.clear(); state.bright.clear(); state.splitsOff.clear(); state.classesOff.clear(); least();
    for (const chip of document.querySelectorAll(".chips button")) chip.setAttribute("aria-pressed", true); paint(); });
  $("least").addEventListener("input", () => { state.least = Number($("least").value); $("least-said").textContent = state.score ? state.least.toFixed(2) : "any: search first"; paint(); });
  for (const kind of ["csv", "parquet"]) $(`as-${kind}`).addEventListener("click", async () => {
    try { saved(await (await post("export", { kind, rows: chosen() })).blob(), `selection.${kind}`); } catch (error) { trouble(error); }
  });
  $("naming").addEventListener("submit", (event) => {
    event.preventDefault();
    const name = $("kind").value.trim(), rows = state.selection.size ? [...state.selection] : state.focus >= 0 ? [state.focus] : [];
    if (!name) return say("give it a name");
    if (!rows.length) return say("click a picture, or draw around some, first");
    state.named.set(name, new Set([...(state.named.get(name) ?? []), ...rows])); $("kind").value = ""; state.selection.clear();
    guess();
  });
  $("forget").addEventListener("click", () => { state.named.clear(); guess(); });
  const tabs = [...document.querySelectorAll("[role=tab]")];
  for (const tab of tabs) {
    tab.addEventListener("click", () => panel(tab.getAttribute("aria-controls")));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key], open = tabs.filter((each) => !each.hidden);
      if (step) { event.stopPropagation(); const next = open[(open.indexOf(tab) + step + open.length) % open.length]; panel(next.getAttribute("aria-controls")); next.focus(); }
    });
  }
  let inside = 0;
  const drag = (event, by) => { if (![...event.dataTransfer.types].includes("Files")) return; event.preventDefault(); inside = Math.max(0, inside + by); document.body.classList.toggle("drop", inside > 0); };
  addEventListener("dragenter", (event) => drag(event, 1));
  addEventListener("dragleave", (event) => drag(event, -1));
  addEventListener("dragover", (event) => drag(event, 0));
  addEventListener("drop", (event) => { drag(event, -inside); const [file] = event.dataTransfer.files; if (file) pictureOf(file); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => map.ask());
}

async function begin() {
  history.replaceState(null, "", "/");  // the token is in the cookie now, and need not stand where it may be copied
  map = new MapView($("map"), say);
  if (!map.gl) say("this browser shows no WebGL 2, so there is no map; search and queues work");
  listen(); panel("look");
  const [about, now] = await Promise.all([json("about"), json("state")]);
  state.about = about; state.now = now;
  document.title = `${about.name} · lookalike explore`;
  $("name").textContent = about.name;
  facts();
  $("map").setAttribute("aria-label", `Map of ${about.rows.toLocaleString()} ${about.pictures ? "pictures" : "texts"}`);
  $("sentence").hidden = !about.sentences;
  $("decisions").textContent = about.decisions;
  chips($("splits"), about.splits.map((word, i) => [i, word]), state.splitsOff);
  chips($("classes"), [...about.classes.map((word, i) => [i, word]), [-1, "no class"]], state.classesOff, true);
  clean = new Clean(state, { say, show, took, trouble, names, className, panel });
  took(now);
  await loadPoints();
  document.body.dataset.ready = "yes";
  Object.assign(window, { explore: { state, map, look } });  // for the curious, and for tests
  follow();
}
begin().catch(trouble);
