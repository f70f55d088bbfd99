"""What recipes learn in equal processor time: kNN and probe on CIFAR-10, held-out training pictures and test.

    python benchmarks/equal_time.py small_masked_moco small_mae small_moco_v3_vit --seconds 240
    python benchmarks/equal_time.py small small_simclr small_simclr:head.widths=128:head.norm=none --seed 1

One thread. The steps of a run follow from its first seven, so that its schedule ends in time; ``--turns 24`` says how
long steps of all recipes take, in turn, from which ``--steps`` may be set, one number a recipe: then a load that comes
and goes changes nothing. Trained on all but the last 5,000 training pictures, which are held out; kNN (k 200) asks for
all of these and for test, the probe is fitted to 5,000. One line of JSON a recipe, and first one of the network of the
first recipe, untrained.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional as F

from lookalike.core.seeding import reseed
from lookalike.data.example import Rows, Source
from lookalike.data.loader import Loader
from lookalike.data.order import Order
from lookalike.data.source import open_source
from lookalike.learn import optim
from lookalike.learn.learner import Learner
from lookalike.metrics.knn import Knn
from lookalike.metrics.probe import LinearProbe
from lookalike.models.encoder import unwhitened
from lookalike.recipes import recipe_named
from lookalike.recipes.recipe import Recipe
from lookalike.recipes.serialize import override
from lookalike.train.loop import backward, batches, new_learner
from lookalike.train.trained import Trained

LEARN, HELD, TEST, PROBED = 45_000, 5_000, 10_000, 5_000


def training(recipe: Recipe, loader: Loader, total: int) -> Iterator[tuple[Learner, float]]:
    """The learner after each of ``total`` steps, and the processor time that the step took."""
    learner = new_learner(recipe, loader).train()
    optimizer = recipe.optimizer.build(learner, recipe.batch)
    order, before = Order(len(loader), recipe.batch, recipe.seed), time.process_time()
    for step, batch in enumerate(batches(loader, recipe, order, 0, total), 1):
        reseed(recipe.seed, step)
        optim.apply(recipe.schedule, optimizer, (step - 1) / total)
        optimizer.zero_grad()
        outcome = backward(learner, learner, batch, recipe)
        optimizer.step()
        learner.advance(outcome, batch, step / total)
        yield learner, time.process_time() - before
        before = time.process_time()


def in_turn(recipes: list[Recipe], loader: Loader, count: int) -> Iterator[list[float]]:
    """For each recipe milliseconds of processor time of ``count`` steps, each after one of every other recipe."""
    runs = [training(recipe, loader, 1000) for recipe in recipes]
    rounds = [[1e3 * next(run)[1] for run in runs] for _ in range(count + 4)][4:]  # memory grows in the first ones
    return (list(times) for times in zip(*rounds))


def measured(recipe: Recipe, learner: Learner, parts: dict[str, tuple[Loader, Tensor]]) -> dict[str, float]:
    """kNN of whitened features and probe of features as they are, in percent."""
    network, found = Trained(recipe, learner.encoder, 1), {}
    features = {
        name: unwhitened(learner.encoder, network.views(loader, torch.arange(len(labels))))
        for name, (loader, labels) in parts.items()
    }
    whitening = learner.encoder.whitening
    assert whitening is not None
    whitening.fit(features["reference"])
    white = {name: F.normalize(whitening(rows), dim=1) for name, rows in features.items()}
    labels = parts["reference"][1]
    probe = LinearProbe(decays=(1.0, 1e-1, 1e-2, 1e-3)).fit(features["reference"][:PROBED], labels[:PROBED])
    for name in ("held", "test"):
        truth = parts[name][1]
        found[f"knn {name}"] = 100 * Knn(k=200).accuracy(white["reference"], labels, white[name], truth)
        found[f"probe {name}"] = 100 * probe.accuracy(features[name], truth)
    return found


def changed(words: str) -> Recipe:
    """The recipe of a name, with the fields that stand behind it."""
    name, *settings = words.split(":")
    recipe = recipe_named(name, LEARN, 32)
    for setting in settings:
        recipe = override(recipe, *setting.split("=", 1))
    return recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", help="names, each with fields that are set: NAME:path=value:path=value")
    parser.add_argument("--data", default="../shared/data/cifar10")
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, nargs="*", default=[], help="in place of --seconds, one a recipe")
    parser.add_argument("--turns", type=int, default=0, help="only time this many steps of each recipe, in turn")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    train, test = open_source(asked.data, "train"), open_source(asked.data, "test")

    def part(source: Source, first: int, count: int) -> tuple[Loader, Tensor]:
        rows = torch.arange(first, first + count)
        return Loader(Rows(source, rows), 32, workers=0), source.labels[rows]

    loader, _ = part(train, 0, LEARN)
    recipes = [replace(changed(name), seed=asked.seed) for name in asked.recipes]
    if asked.turns:
        for name, times in zip(asked.recipes, in_turn(recipes, loader, asked.turns)):
            print(json.dumps({"recipe": name, "ms a step": statistics.median(times), "n": len(times)}), flush=True)
        return
    parts = {"reference": part(train, 0, LEARN), "held": part(train, LEARN, HELD), "test": part(test, 0, TEST)}
    for number, (name, recipe) in enumerate(zip(asked.recipes, recipes)):
        if number == 0:
            print(
                json.dumps({"recipe": "untrained", **measured(recipe, new_learner(recipe, loader), parts)}), flush=True
            )
        if asked.steps:
            steps = asked.steps[number]
        else:
            first = [seconds for _, seconds in islice(training(recipe, loader, 1000), 7)]
            steps = max(1, int(asked.seconds / statistics.median(first[2:])))
        seconds = 0.0
        for learner, took in training(recipe, loader, steps):  # noqa: B007
            seconds += took
        row = {
            "recipe": name,
            "seed": asked.seed,
            "steps": steps,
            "seconds": seconds,
        }
        print(json.dumps(row | measured(recipe, learner, parts)), flush=True)


if __name__ == "__main__":
    main()
