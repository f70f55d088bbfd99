// The map: points far out, thumbnails near. Rows come in the order of the pages of thumbnails, which keeps neighbours
// together, so a page is one call of the GPU, and what is out of sight is neither fetched nor drawn.
import { get } from "./asked.js";

// A point a row, or two triangles, without instances: what has no GPU draws each instance as if it were alone, 20 µs apiece.
const VERTEX = `#version 300 es
uniform highp sampler2D place; uniform sampler2D tint, shape;
uniform vec2 centre, view; uniform float scale, size, ratio; uniform int each, start, thin, first;
out vec2 at, inside, half_px; out vec4 colour; flat out float lit;
void main() {
  int corners = each > 0 ? 6 : 1, row = start + gl_VertexID / corners * thin, number = first + row - start, side = textureSize(place, 0).x, v = gl_VertexID % 6;
  ivec2 cell = ivec2(row % side, row / side);
  vec2 corner = each > 0 ? vec2(v == 1 || v > 3, v == 2 || v == 3 || v == 5) : vec2(0.5);
  colour = texelFetch(tint, cell, 0); lit = colour.a;
  bool tile = each > 0 && lit > 0.25;
  float px = lit < 0.25 ? max(2.0, min(size, 3.0)) : lit > 0.75 ? size * 1.35 + 4.0 : size, wide = exp2((texelFetch(shape, cell, 0).r * 255.0 - 128.0) / 64.0);
  vec2 box = tile ? px * vec2(wide, 1.0 / wide) : vec2(px);
  vec2 middle = (texelFetch(place, cell, 0).xy - centre) * scale;
  gl_Position = vec4((middle + (corner - 0.5) * box) * 2.0 / view * vec2(1.0, -1.0), lit > 0.97 ? -0.8 : lit > 0.75 ? -0.5 : lit < 0.25 ? 0.5 : 0.0, 1.0);
  at = tile ? (vec2(float(number % each), float(number / each)) + corner * 0.98 + 0.01) / float(each) : vec2(-1.0);
  inside = corner * 2.0 - 1.0; half_px = box * 0.5; gl_PointSize = px * ratio;
}`;
const FRAGMENT = `#version 300 es
precision mediump float;
in vec2 at, inside, half_px; in vec4 colour; flat in float lit;
uniform sampler2D page; uniform vec2 stretch; uniform vec3 ground; uniform bool lone;
out vec4 painted;
void main() {
  if (at.x < 0.0) {
    float far = length(lone ? gl_PointCoord * 2.0 - 1.0 : inside), soft = 2.0 / max(half_px.x, 1.0);
    if (far > 1.0) discard;
    painted = vec4(lit < 0.25 ? mix(ground, colour.rgb, 0.28) : colour.rgb, clamp((1.0 - far) * 2.0 / soft, 0.0, 1.0));
    return;
  }
  vec2 edge = (1.0 - abs(inside)) * half_px;
  float rim = lit > 0.75 ? 3.5 : half_px.y > 11.0 ? 2.0 : 1.0;
  painted = vec4(min(edge.x, edge.y) < rim ? colour.rgb : texture(page, at * stretch).rgb, 1.0);
}`;
const WIDE = 1024;  // rows of the table in a line of the textures that hold them
const KEPT = 160, AT_ONCE = 4, TILE = 13, NEAR = 44, SLOW = 45;  // pages of textures, requests, px from which tiles are drawn, ms of a frame

export class MapView {
  constructor(canvas, told) {
    Object.assign(this, { canvas, told, count: 0, centre: [0, 0], scale: 1, bias: 0, pages: new Map(), waiting: new Set(), textures: false, frames: 0, thin: 1, clock: 0, wanted: [] });
    canvas.addEventListener("webglcontextlost", (event) => { event.preventDefault(); this.gl = null; });
    canvas.addEventListener("webglcontextrestored", () => { this.start(); this.upload(); });
    new ResizeObserver(() => this.resize()).observe(canvas);
    this.start();
  }

  start() {
    this.pages.clear(); this.waiting.clear();
    const gl = this.gl = this.canvas.getContext("webgl2", { antialias: false, alpha: false, depth: true, powerPreference: "high-performance" });
    if (!gl) return;
    const program = gl.createProgram();
    for (const [kind, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, text); gl.compileShader(shader); gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
    gl.useProgram(program);
    this.uniform = Object.fromEntries(["centre", "view", "scale", "size", "each", "start", "thin", "first", "stretch", "ground", "ratio", "lone"].map((n) => [n, gl.getUniformLocation(program, n)]));
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    const kinds = [["place", gl.RG32F, gl.RG, gl.FLOAT, 2], ["tint", gl.RGBA8, gl.RGBA, gl.UNSIGNED_BYTE, 4], ["shape", gl.R8, gl.RED, gl.UNSIGNED_BYTE, 1]];
    this.rows = Object.fromEntries(kinds.map(([name, ...kind], i) => [name, { unit: i + 1, kind, texture: gl.createTexture() }]));
    for (const name in this.rows) gl.uniform1i(gl.getUniformLocation(program, name), this.rows[name].unit);
    gl.enable(gl.BLEND); gl.blendFunc(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA);
    gl.enable(gl.DEPTH_TEST); gl.depthFunc(gl.LEQUAL);
    this.blank = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, this.blank);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGB, 1, 1, 0, gl.RGB, gl.UNSIGNED_BYTE, new Uint8Array([128, 128, 128]));
    this.resize();
  }

  // places Float32 (2N) in the order of the pages; the old ones, if of the same rows, glide there
  points(places, about, from) {
    this.about = about; this.count = places.length / 2; this.textures = about.thumbnails;
    this.target = places;
    if (!this.tint || this.tint.length !== 4 * this.count) this.tint = new Uint8Array(4 * this.count).fill(128);
    if (!from) { this.shape = new Uint8Array(this.count).fill(128); this.forget(); this.places = places.slice(); this.fit(); this.index(); this.upload(); return; }
    const begun = performance.now(), old = this.places.slice();
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    this.index();
    const glide = () => {
      const share = still ? 1 : Math.min(1, (performance.now() - begun) / 900), eased = share * share * (3 - 2 * share);
      for (let i = 0; i < old.length; i++) this.places[i] = old[i] + (places[i] - old[i]) * eased;
      this.put("place", this.places); this.boxes(); this.ask();
      if (share < 1) requestAnimationFrame(glide);
    };
    glide();
  }

  forget() {
    for (const page of this.pages.values()) if (this.gl) this.gl.deleteTexture(page.texture);
    this.pages.clear();
    for (const waiting of this.waiting) waiting.abort.abort();
    this.waiting.clear();
  }

  upload() { if (this.gl && this.count) { this.put("place", this.places); this.put("tint", this.tint); this.put("shape", this.shape); this.boxes(); this.ask(); } }
  put(name, data) {  // rows of the table as pixels of a texture, WIDE a line
    const gl = this.gl;
    if (!gl) return;
    const row = this.rows[name], [inside, format, type, parts] = row.kind, full = Math.floor(this.count / WIDE), rest = this.count % WIDE;
    gl.activeTexture(gl.TEXTURE0 + row.unit); gl.bindTexture(gl.TEXTURE_2D, row.texture);
    if (row.count !== this.count) {
      gl.texImage2D(gl.TEXTURE_2D, 0, inside, WIDE, full + 1, 0, format, type, null);
      for (const filter of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, filter, gl.NEAREST);
      row.count = this.count;
    }
    if (full) gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, WIDE, full, format, type, data);
    if (rest) gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, full, rest, 1, format, type, data, full * WIDE * parts);
    gl.activeTexture(gl.TEXTURE0);
  }
  colours(tint) { this.tint = tint; this.put("tint", tint); this.ask(); }

  // which part of the map each 64 rows lie in: what a page of the nearest thumbnails holds
  boxes() {
    const each = (this.about.page / this.about.sides[1]) ** 2, count = Math.ceil(this.count / each), box = this.box = new Float32Array(4 * count);
    for (let b = 0; b < count; b++) {
      let [l, t, r, d] = [Infinity, Infinity, -Infinity, -Infinity];
      for (let i = b * each; i < Math.min(this.count, (b + 1) * each); i++) {
        const x = this.places[2 * i], y = this.places[2 * i + 1];
        l = Math.min(l, x); r = Math.max(r, x); t = Math.min(t, y); d = Math.max(d, y);
      }
      box.set([l, t, r, d], 4 * b);
    }
  }

  index() {  // cells of the map, to find what is under the pointer
    const side = Math.max(1, Math.ceil(Math.sqrt(this.count / 4))), p = this.target;
    let [l, t, r, d] = [Infinity, Infinity, -Infinity, -Infinity];
    for (let i = 0; i < this.count; i++) { l = Math.min(l, p[2 * i]); r = Math.max(r, p[2 * i]); t = Math.min(t, p[2 * i + 1]); d = Math.max(d, p[2 * i + 1]); }
    const cell = Math.max((r - l) / side, (d - t) / side, 1e-9), starts = new Uint32Array(side * side + 1), of = new Uint32Array(this.count);
    const at = (x, y) => Math.min(side - 1, Math.max(0, Math.floor((x - l) / cell))) + side * Math.min(side - 1, Math.max(0, Math.floor((y - t) / cell)));
    for (let i = 0; i < this.count; i++) starts[at(p[2 * i], p[2 * i + 1]) + 1]++;
    for (let c = 0; c < side * side; c++) starts[c + 1] += starts[c];
    const next = starts.slice();
    for (let i = 0; i < this.count; i++) of[next[at(p[2 * i], p[2 * i + 1])]++] = i;
    this.cells = { l, t, cell, side, starts, of };
  }

  pick(x, y) {  // the nearest lit point to a pixel of the canvas, or -1
    if (!this.cells) return -1;
    const [wx, wy] = this.world(x, y), reach = Math.max(8, this.size() * 0.7) / this.scale, { l, t, cell, side, starts, of } = this.cells;
    let best = -1, least = reach * reach;
    const clip = (v) => Math.min(side - 1, Math.max(0, Math.floor(v)));
    for (let cy = clip((wy - reach - t) / cell); cy <= clip((wy + reach - t) / cell); cy++)
      for (let cx = clip((wx - reach - l) / cell); cx <= clip((wx + reach - l) / cell); cx++)
        for (let k = starts[cx + side * cy]; k < starts[cx + side * cy + 1]; k++) {
          const i = of[k], far = (this.target[2 * i] - wx) ** 2 + (this.target[2 * i + 1] - wy) ** 2;
          if (far < least && this.tint[4 * i + 3] > 60) { least = far; best = i; }
        }
    return best;
  }

  world(x, y) { return [this.centre[0] + (x - this.width / 2) / this.scale, this.centre[1] + (y - this.height / 2) / this.scale]; }
  screen(i) { return [(this.places[2 * i] - this.centre[0]) * this.scale + this.width / 2, (this.places[2 * i + 1] - this.centre[1]) * this.scale + this.height / 2]; }

  fit() {
    if (!this.count || !this.width) return;
    const range = [0, 1].map((axis) => {
      const some = Float32Array.from({ length: Math.min(this.count, 5000) }, (_, k) => this.target[2 * Math.floor(k * this.count / Math.min(this.count, 5000)) + axis]).sort();
      return [some[Math.floor(0.002 * some.length)], some[Math.ceil(0.998 * (some.length - 1))]];
    });
    this.centre = range.map(([low, high]) => (low + high) / 2);
    this.scale = Math.max(1e-6, Math.min((this.width - 50) / (range[0][1] - range[0][0] || 1), (this.height - 90) / (range[1][1] - range[1][0] || 1)));
    this.centre[1] -= 18 / this.scale;  // below the tools
    this.whole = this.scale;
    this.ask();
  }

  size() {  // px of a thumbnail: what the whole map has room for, growing with the zoom, at most 128
    const room = Math.sqrt(this.width * this.height / Math.max(1, this.count)) * 1.4, zoom = this.scale / (this.whole || this.scale);
    return Math.min(128, Math.max(3, Math.min(room, 40) * zoom ** 0.75)) * 2 ** this.bias;
  }

  zoom(factor, x = this.width / 2, y = this.height / 2) {
    const [wx, wy] = this.world(x, y);
    this.moved = performance.now();
    this.scale = Math.min(this.whole * 400, Math.max(this.whole / 3, this.scale * factor));
    this.centre = [wx - (x - this.width / 2) / this.scale, wy - (y - this.height / 2) / this.scale];
    this.ask();
  }
  pan(dx, dy) { this.moved = performance.now(); this.centre[0] -= dx / this.scale; this.centre[1] -= dy / this.scale; this.ask(); }

  resize() {
    const ratio = Math.min(2, devicePixelRatio || 1), first = !this.width;
    this.width = this.canvas.clientWidth; this.height = this.canvas.clientHeight;
    this.canvas.width = Math.round(this.width * ratio); this.canvas.height = Math.round(this.height * ratio);
    if (first) this.fit();
    this.ask();
  }

  // where frames take long, as without a GPU, a map that moves shows every second to sixteenth of its rows, and all when it rests
  thinned() {
    const now = performance.now(), moving = this.moved > this.before || now - this.moved < 250;
    if (moving && this.moving && now - this.before > SLOW) this.thin = Math.min(16, 2 * this.thin);
    if (!moving) this.thin = Math.max(1, this.thin / 2);
    this.moving = moving; this.before = now;
    if (!moving || this.thin === 1) return 1;
    clearTimeout(this.rest);
    this.rest = setTimeout(() => this.ask(), 260);
    return this.thin;
  }

  ask() { if (!this.due) { this.due = true; requestAnimationFrame(() => { this.due = false; this.draw(); }); } }

  draw() {
    const gl = this.gl;
    if (!gl || !this.count || !this.width) return;
    const size = this.size(), tiles = this.textures && size >= TILE, [coarse, fine] = this.about.sides;
    const ground = getComputedStyle(this.canvas.parentElement).backgroundColor.match(/[\d.]+/g).slice(0, 3).map((v) => v / 255);
    gl.viewport(0, 0, this.canvas.width, this.canvas.height);
    gl.clearColor(...ground, 1); gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.uniform2f(this.uniform.centre, ...this.centre); gl.uniform2f(this.uniform.view, this.width, this.height); gl.uniform3f(this.uniform.ground, ...ground);
    gl.uniform1f(this.uniform.scale, this.scale); gl.uniform1f(this.uniform.ratio, this.canvas.width / this.width);
    const wanted = [], few = (this.about.page / fine) ** 2, many = (this.about.page / coarse) ** 2, visible = [];
    const margin = size / this.scale, [l, t] = this.world(0, 0), [r, d] = this.world(this.width, this.height);
    for (let b = 0; 4 * b < this.box.length; b++) {
      const [bl, bt, br, bd] = this.box.subarray(4 * b, 4 * b + 4);
      if (bl > r + margin || br < l - margin || bt > d + margin || bd < t - margin) continue;
      visible.push([b, Math.hypot((bl + br) / 2 - this.centre[0], (bt + bd) / 2 - this.centre[1])]);
    }
    const near = tiles && size >= NEAR && visible.length <= KEPT / 2;
    const thin = this.thinned();
    let run = null;
    const flush = () => { if (run) this.call(run.start, run.end, run.page, run.first, size, thin); run = null; };
    for (const [b, far] of visible) {
      const start = b * few, end = Math.min(this.count, start + few), big = Math.floor(start / many);
      let page = null;
      if (near) { page = this.pages.get(`${fine}/${b}`); if (!page) wanted.push([far, fine, b]); }
      if (tiles && !page?.texture) { page = this.pages.get(`${coarse}/${big}`); if (!page && !near) wanted.push([far, coarse, big]); }
      if (page) page.used = this.clock;
      if (run && run.page === page && run.end === start) { run.end = end; continue; }
      flush();
      run = { start, end, page, first: page ? start - (page.side === fine ? b * few : big * many) : 0 };
    }
    flush();
    this.clock++; this.frames++;
    this.wanted = wanted.sort((a, b) => a[0] - b[0]);
    this.fetchPages();
  }

  call(start, end, page, first, size, thin) {
    const gl = this.gl, loaded = page?.texture;
    gl.uniform1i(this.uniform.each, loaded ? this.about.page / page.side : 0);
    gl.uniform1i(this.uniform.first, first); gl.uniform1f(this.uniform.size, loaded ? size : Math.min(size * 0.6, 8));
    gl.bindTexture(gl.TEXTURE_2D, loaded || this.blank);
    if (loaded) gl.uniform2f(this.uniform.stretch, 1, this.about.page / page.height);
    gl.uniform1i(this.uniform.start, start); gl.uniform1i(this.uniform.thin, thin);
    gl.uniform1i(this.uniform.lone, loaded ? 0 : 1);
    gl.drawArrays(...(loaded ? [gl.TRIANGLES, 0, 6 * Math.ceil((end - start) / thin)] : [gl.POINTS, 0, Math.ceil((end - start) / thin)]));
  }

  fetchPages() {
    const named = new Set(this.wanted.map(([, side, number]) => `${side}/${number}`));
    for (const waiting of this.waiting) if (!named.has(waiting.name)) { waiting.abort.abort(); this.waiting.delete(waiting); }
    const busy = new Set([...this.waiting].map((waiting) => waiting.name));
    for (const [, side, number] of this.wanted) {
      const name = `${side}/${number}`;
      if (this.waiting.size >= AT_ONCE) break;
      if (busy.has(name)) continue;
      busy.add(name);
      const waiting = { name, abort: new AbortController() };
      this.waiting.add(waiting);
      this.load(side, number, waiting).catch(() => this.pages.set(name, { side, used: this.clock, texture: null }))
        .finally(() => { this.waiting.delete(waiting); this.ask(); });
    }
  }

  async load(side, number, waiting) {
    let data;
    try { data = await (await get(`pages/${side}/${number}`, waiting.abort.signal)).arrayBuffer(); } catch (error) { if (waiting.abort.signal.aborted) return; throw error; }
    const each = (this.about.page / side) ** 2, count = Math.min(each, this.count - number * each);
    const image = await createImageBitmap(new Blob([data.slice(count)], { type: "image/jpeg" }));
    const gl = this.gl;
    if (!gl || waiting.abort.signal.aborted) return;
    const texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGB, gl.RGB, gl.UNSIGNED_BYTE, image);
    for (const [what, how] of [[gl.TEXTURE_MIN_FILTER, gl.LINEAR], [gl.TEXTURE_MAG_FILTER, gl.LINEAR], [gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE], [gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE]])
      gl.texParameteri(gl.TEXTURE_2D, what, how);
    this.pages.set(`${side}/${number}`, { side, texture, height: image.height, used: this.clock });
    image.close();
    this.shape.set(new Uint8Array(data, 0, count), number * each);
    this.put("shape", this.shape);
    if (this.pages.size > KEPT) {
      const [oldest] = [...this.pages].sort((a, b) => a[1].used - b[1].used)[0];
      gl.deleteTexture(this.pages.get(oldest).texture); this.pages.delete(oldest);
    }
  }
}

export function within(polygon, x, y) {  // whether a point is inside (even-odd rule)
  let inside = false;
  for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
    const [ax, ay] = polygon[i], [bx, by] = polygon[j];
    if (ay > y !== by > y && x < ((bx - ax) * (y - ay)) / (by - ay) + ax) inside = !inside;
  }
  return inside;
}
