"""What starts are worth on other data: one table and one plot of many comparisons, see docs/results.md.

    lookalike pretrain ../shared/data/imagenette128 --recipe small --steps 6000 --out ours
    lookalike supervised ../shared/data/imagenette128 --recipe small --steps 8400 --out labels
    python benchmarks/transfer.py ours labels --own own --out transfer
    python benchmarks/transfer.py ours labels --rows raccoon camvid
    python benchmarks/transfer.py FILE --model timm:NAME --own adapted --out public --rows knn probe few clothing_few

Each row is one ``lookalike compare``, whose trials are kept in --out: the same call goes on, and writes transfer.md and
transfer.svg anew. Where --own has a run of a row's data, such as own/lspet, it is one more start.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lookalike.evaluation.compare import Comparison, compare
from lookalike.report.charts import Axis, number, ticks
from lookalike.report.comparison import points, write
from lookalike.report.page import CSS, percent, shown


class Row(NamedTuple):
    """One comparison: where, what, how often, and the settings that are not the task's own."""

    data: str
    task: str
    trials: int
    title: str
    settings: Mapping[str, Any] = {}
    metric: str | None = None  # another of the task's numbers, from the same trials


ONE, TEN, HALF = (
    {"shares": (share,), "steps": steps, "rates": rates, "batch": batch}
    for share, steps, rates, batch in (
        (0.01, 60, (1e-4, 1e-3), 64),
        (0.1, 150, (1e-4, 1e-3), 64),
        (0.5, 40, (1e-3,), 32),
    )
)
COCO, POSES = {"steps": 200}, {"steps": 600}
MASKS = COCO | {"masks": True}
ROWS = {
    "knn": Row("imagenette128", "knn", 5, "imagenette128, kNN"),
    "probe": Row("imagenette128", "probe", 5, "imagenette128, linear probe"),
    "few": Row("imagenette128", "fewshot", 20, "imagenette128, 5 labels a class"),
    "one": Row("imagenette128", "finetune", 3, "imagenette128, tuned on 1 % of the labels", ONE),
    "ten": Row("imagenette128", "finetune", 3, "imagenette128, tuned on 10 % of the labels", TEN),
    "clothing_few": Row("clothing_small", "fewshot", 20, "clothing, 5 labels a class"),
    "clothing": Row("clothing_small", "finetune", 20, "clothing, tuned on half of the labels", HALF),
    "raccoon": Row("raccoon", "detect", 3, "raccoon, box AP", {"steps": 200}),
    "camvid": Row("camvid/CamVid", "segment", 5, "camvid, mIoU", {"steps": 150, "void": (11,)}),
    "coco_boxes": Row("coco_mini", "detect", 3, "coco_mini, box AP of 80 classes", MASKS, "AP"),
    "coco_masks": Row("coco_mini", "detect", 3, "coco_mini, mask AP of 80 classes", MASKS),
    "coco_people": Row("coco_mini", "keypoints", 3, "coco_mini, box AP of people", COCO, "AP"),
    "coco_points": Row("coco_mini", "keypoints", 3, "coco_mini, keypoint AP", COCO),
    "coco_pck": Row("coco_mini", "keypoints", 3, "coco_mini, PCK@0.1", COCO, "PCK"),
    "lspet_boxes": Row("lspet", "keypoints", 3, "lspet, box AP", POSES, "AP"),
    "lspet": Row("lspet", "keypoints", 3, "lspet, keypoint AP", POSES),
    "lspet_pck": Row("lspet", "keypoints", 3, "lspet, PCK@0.1", POSES, "PCK"),
}
LEFT, PANEL, TOP, HEIGHT, BOTTOM = 330, 520, 34, 30, 60


def measured(row: Row, runs: Sequence[str], own: Path, data: Path, out: Path, **how: Any) -> Comparison:
    """What is kept of it, and the rest."""
    there = own / row.data.split("/")[0]
    every = [*runs, str(there)] if there.is_dir() else runs
    folder = out / row.data.replace("/", "-")
    say = partial(print, f"{row.title}:", flush=True)
    about = {"trials": row.trials, "metric": row.metric, "out": folder, "say": say, **how}
    found = compare(every, str(data / row.data), row.task, **about, **row.settings)
    write(found, folder)
    return found


def table(found: Mapping[str, Comparison], runs: Sequence[str]) -> str:
    """A line a comparison: each start, and how far it is from the baseline."""
    columns = 2 + len(runs)  # random, the runs, and its own pictures
    names = [row.name for row in next(iter(found.values())).rows][: columns - 1]
    lines = [["", "n", *names, "and its own pictures"], ["---"] * (columns + 2)]
    for key, comparison in found.items():
        said = [
            percent(row.mean) + ("" if row.against is None else f" ({points(row.against)}, {row.verdict()})")
            for row in comparison.rows
        ]
        lines.append([ROWS[key].title, str(comparison.trials), *said, *["–"] * (columns - len(said))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def plot(found: Mapping[str, Comparison]) -> str:
    """Differences from the baseline in points: a dot and its 95 % interval for each other start, a row a comparison."""
    cells = [[row for row in comparison.rows if row.against is not None] for comparison in found.values()]
    ends = [100 * (row.against.mean + sign * row.against.half) for rows in cells for row in rows for sign in (-1, 1)]
    marks = ticks(min([0.0, *ends]), max([0.0, *ends]), 8)
    axis = Axis(marks[0], marks[-1], LEFT, LEFT + PANEL)
    bottom = TOP + HEIGHT * len(found)
    width, height = LEFT + PANEL + 30, bottom + BOTTOM
    title = "difference from the network trained with labels, points"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{title}">',
        f"<style>{CSS} svg .open {{ fill: var(--panel); stroke: var(--line); stroke-width: 2; }}"
        " svg .thin { stroke: var(--fill); stroke-width: 2; }</style>",
        f'<rect width="{width}" height="{height}" style="fill: var(--panel)"/>',
        *_legend(),
    ]
    for mark in marks:
        kind, at = "guide" if mark == 0 else "grid", axis.at(mark)
        parts.append(f'<line class="{kind}" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{at:.1f}" y="{bottom + 18}" text-anchor="middle">{number(mark)}</text>')
    parts.append(f'<text class="tick" x="{LEFT + PANEL / 2}" y="{bottom + 40}" text-anchor="middle">{title}</text>')
    for i, (key, rows) in enumerate(zip(found, cells)):
        middle = TOP + HEIGHT * (i + 0.5)
        parts.append(
            f'<text class="name" x="{LEFT - 14}" y="{middle + 4}" text-anchor="end">{shown(ROWS[key].title)}</text>'
        )
        for kind, whisker, row, y in zip(KINDS, WHISKERS, rows, (middle - 7, middle, middle + 7)):
            low, high = (axis.at(100 * (row.against.mean + sign * row.against.half)) for sign in (-1, 1))
            parts.append(f'<line class="{whisker}" x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}"/>')
            at = axis.at(100 * row.against.mean)
            parts.append(f'<circle class="{kind}" cx="{at:.1f}" cy="{y}" r="4.5"/>')
    return "\n".join([*parts, "</svg>"])


KINDS, WHISKERS = ("trial", "dot", "open"), ("thin", "whisker", "whisker")


def _legend() -> list[str]:
    names = ("untrained", "without labels", "and its own pictures")
    found = []
    for kind, name, x in zip(KINDS, names, (LEFT, LEFT + 110, LEFT + 250)):
        found.append(f'<circle class="{kind}" cx="{x}" cy="16" r="4.5"/>')
        found.append(f'<text class="tick" x="{x + 10}" y="20">{name}</text>')
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="runs, one of them made by lookalike supervised")
    parser.add_argument("--own", type=Path, default=Path("own"), help="a folder of runs named as the data")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("transfer"))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--model", help="which network files of weights are of")
    asked_for = parser.parse_args()
    found, how = {}, {"model": asked_for.model, "cache": {}}
    for key in asked_for.rows:
        places = asked_for.own, asked_for.data, asked_for.out
        found[key] = measured(ROWS[key], asked_for.runs, *places, **how)
        (asked_for.out / "transfer.md").write_text(table(found, asked_for.runs))
        (asked_for.out / "transfer.svg").write_text(plot(found))
    print(table(found, asked_for.runs))


if __name__ == "__main__":
    main()
