"""What embedding costs beside the encoder's bare forward pass; see docs/results.md.

In turn: all pictures of one split through ``Trained.features``, canvases in memory as any run has them, and the same
views, made before, through the encoder alone. Prints seconds of both and the share of the time that is the encoder's.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from lookalike.core.devices import keep_freed, module_to_device
from lookalike.data.example import Rows
from lookalike.data.loader import Loader
from lookalike.data.source import open_source
from lookalike.models.encoder import embed
from lookalike.recipes import recipe_named
from lookalike.train.trained import Trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--recipe", default="small")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    keep_freed()
    source = open_source(asked.data, "train")
    recipe = recipe_named(asked.recipe, len(source), 32)
    trained = Trained(recipe, module_to_device(recipe.build(len(source)).encoder), 0)
    loader = Loader(Rows(source, torch.arange(min(asked.rows, len(source)))), recipe.canvas)
    views = list(trained.views(loader, torch.arange(len(loader))))
    shares = []
    for number in range(asked.rounds + 1):  # the first warms up
        began = time.perf_counter()
        trained.features(loader)
        whole = time.perf_counter() - began
        began = time.perf_counter()
        embed(trained.encoder, views)
        bare = time.perf_counter() - began
        if number:
            shares.append(bare / whole)
            print(f"embedding {whole:.2f} s, encoder {bare:.2f} s: {shares[-1]:.1%}", flush=True)
    low, high = min(shares), max(shares)
    print(f"median {statistics.median(shares):.1%} ({low:.1%} to {high:.1%}, n = {len(shares)} rounds)")


if __name__ == "__main__":
    main()
