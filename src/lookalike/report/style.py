"""The style sheet of the page: legible by day and by night, on paper and on a telephone."""

from __future__ import annotations

CSS = """
:root {
  color-scheme: light dark;
  --paper: #fbfbf9; --panel: #ffffff; --ink: #1c2024; --soft: #626a73; --rule: #e3e4e0; --track: #eceeeb;
  --line: #1f5fbf; --faint: #b7cbe9; --guide: #b4540a; --fill: #9aa7b5; --best: #1f5fbf;
  --right: #009e73; --wrong: #d55e00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171a; --panel: #1b1f23; --ink: #e8eaec; --soft: #9aa3ac; --rule: #2d3338; --track: #2a3036;
    --line: #7fb0ff; --faint: #34507c; --guide: #f0a05a; --fill: #66717d; --best: #7fb0ff;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
}
main { max-width: 1060px; margin: 0 auto; padding: 48px 24px 72px; }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -0.02em; margin: 0 0 6px; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; letter-spacing: -0.01em; margin: 52px 0 6px; }
h3 { font-size: 0.95rem; font-weight: 600; margin: 0 0 4px; }
p { margin: 0 0 14px; max-width: 74ch; }
.lead { color: var(--soft); font-size: 1.05rem; }
.quiet { color: var(--soft); font-size: 0.88rem; margin-top: 8px; max-width: 100ch; }
.panel { background: var(--panel); border: 1px solid var(--rule); border-radius: 10px; padding: 16px 16px 12px; }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 14px; margin-top: 14px; }
.pairs { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 14px; }
.pairs { align-items: start; margin-top: 14px; }
.hits { display: grid; grid-template-columns: repeat(auto-fill, minmax(176px, 1fr)); gap: 18px 14px; margin-top: 14px; }
.hits { align-items: end; }
.hits figure { margin: 0; }
.hits img { display: block; max-width: 100%; height: auto; border-radius: 4px; }
.hits figcaption { color: var(--soft); font-size: 0.82rem; margin-top: 4px; overflow-wrap: anywhere; }
.hits b { color: var(--ink); font-weight: 600; }
.panel img { display: block; width: 100%; height: auto; }
.curves svg { display: block; width: 100%; height: auto; }
svg text { font: 13px system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: var(--soft); }
svg .last { fill: var(--line); font-weight: 650; }
svg .grid { stroke: var(--rule); stroke-width: 1; }
svg .guide { stroke: var(--guide); stroke-width: 1.5; stroke-dasharray: 5 4; }
svg .line, svg .faint { fill: none; stroke: var(--line); stroke-width: 2; stroke-linejoin: round; }
svg .faint { stroke: var(--faint); stroke-width: 1; }
svg .dot { fill: var(--line); }
svg .trial { fill: var(--fill); }
svg .whisker { stroke: var(--line); stroke-width: 2.5; }
svg .name { fill: var(--ink); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
.accuracies { width: 100%; margin-top: 14px; background: var(--panel); }
.accuracies td, .accuracies th { padding: 11px 18px 12px 16px; text-align: left; border-bottom: 1px solid var(--rule); }
.accuracies thead th { font-weight: 500; color: var(--soft); font-size: 0.88rem; padding-bottom: 6px; }
.accuracies tbody th { font-weight: 500; }
.accuracies tbody td { width: 25%; min-width: 150px; white-space: nowrap; }
.bar { display: block; width: 100%; height: 10px; margin-top: 6px; border-radius: 5px; }
.bar .track { fill: var(--track); } .bar .fill { fill: var(--fill); } .bar .best { fill: var(--best); }
.bar .whisker { fill: var(--ink); }
.sheet { margin-top: 14px; }
.sheet th { font-weight: 500; font-size: 0.9rem; text-align: right; padding: 0 16px 0 0; }
.sheet tbody th { max-width: 14rem; overflow-wrap: anywhere; }
.sheet thead th { color: var(--soft); font-size: 0.88rem; text-align: left; padding: 0 0 6px; }
.sheet td { padding: 2px 0; }
.sheet img { display: block; }
.key { display: inline-block; width: 0.8em; height: 0.8em; border-radius: 2px; vertical-align: -0.05em; }
.key.right { background: var(--right); } .key.wrong { background: var(--wrong); }
.facts { font-size: 0.88rem; }
.facts th { font-weight: 400; color: var(--soft); text-align: left; padding: 3px 24px 3px 0; }
.facts th { vertical-align: top; white-space: nowrap; }
.facts td { padding: 3px 0; overflow-wrap: anywhere; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(320px, 1fr)); gap: 12px 40px; }
.columns { align-items: start; justify-items: start; margin-top: 14px; }
code { font: 0.92em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
@media print { body { background: #fff; } .panel, .accuracies { break-inside: avoid; } }
"""
