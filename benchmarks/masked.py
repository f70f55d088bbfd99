"""What a masked query costs: forward and backward of one encoder on whole pictures and on some of their patches.

Both go in turn, round by round, on the same weights and pixels; a round's ratio is whole over masked, in processor time
of one thread, which other work on the machine disturbs least. Rows: MoCo v3's ViT-S at 224 px with patches of 16, and
the small twin at 24 px with patches of 4, without and with the decoder that paints what is hidden.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from lookalike.models.decoder import Decoder
from lookalike.models.vit import ViT
from lookalike.pretext.image import ImageView, Masked

NETWORKS = {
    "ViT-S, 224 px": (ViT(), 224, Decoder()),
    "small, 24 px": (ViT(width=96, depth=4, heads=3, patch=4, pool="mean"), 24, Decoder(width=48, depth=1, heads=3)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, nargs="+", default=[0.6, 0.75], help="of the patches, hidden")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--json")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    found = {row: measured(row, asked.share, asked.batch, asked.rounds) for row in asked.rows}
    for row, costs in found.items():
        for what, seconds in costs.items():
            print(f"{row:14} {what:28} {told(seconds, costs['whole'])}")
    if asked.json:
        with open(asked.json, "w") as file:
            json.dump(found, file, indent=2)


def measured(row: str, shares: list[float], batch: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of every round by what was done in it."""
    spec, side, decoder = NETWORKS[row]
    torch.manual_seed(0)
    net, features = spec.build(32)
    paints = decoder.build(features, spec.patch)
    pixels, rows = torch.randn(batch, 3, side, side), torch.arange(batch)
    works: dict[str, Callable[[], Tensor]] = {"whole": lambda: net(pixels).square().mean()}
    for share in shares:
        mask = replace(Masked(ImageView(size=side)), share=share, patch=spec.patch)
        keep = mask.keep(rows, 0, 0)
        works[f"{share:.0%} hidden"] = lambda keep=keep: net(pixels, keep).square().mean()
        works[f"{share:.0%} hidden, and painted"] = lambda keep=keep: paints(net.tokens(pixels, keep), pixels, keep)
    seconds: dict[str, list[float]] = {what: [] for what in works}
    for number in range(rounds + 1):
        for what, work in works.items():
            began = time.process_time()
            work().backward()
            if number:  # the first round warms up
                seconds[what].append(time.process_time() - began)
    return seconds


def told(seconds: list[float], whole: list[float]) -> str:
    """The median, and the ratios of the rounds."""
    ratios = sorted(long / short for long, short in zip(whole, seconds))
    spread = f"({ratios[0]:.2f} to {ratios[-1]:.2f}, n = {len(ratios)})"
    return f"{1000 * statistics.median(seconds):8.1f} ms   {statistics.median(ratios):5.2f} x cheaper {spread}"


if __name__ == "__main__":
    main()
