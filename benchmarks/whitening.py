"""What whitening does to the features of runs: kNN and the strong probe on test, by several rules and features.

    lookalike pretrain DATA --out RUN --recipe small --split train --steps N --seed S     # some data, some seeds
    python benchmarks/whitening.py RUN=DATA RUN=DATA ...

Every rule is fitted to up to 5,000 pictures of train, without labels. ``ridge 1e-4`` adds that share of the largest
variance, on the principal axes, which was the rule once; ``ridge`` is the one that the encoder has. With it: the last
two or three stages joined, the mean with the mirror image, and BatchNorm's statistics taken from 2,000 whole pictures
of train. One line of JSON a run, in percent, k 20 and 200.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lookalike.data.example import Source
from lookalike.metrics.knn import Knn
from lookalike.metrics.probe import LinearProbe
from lookalike.models.encoder import Encoder, Whitening, evaluating, unit
from lookalike.models.image import ResidualBackbone
from lookalike.train.trained import Trained, labelled_parts, load

FITTED, CLEAN, CHUNK = 5_000, 2_000, 500
Rule = Callable[[Tensor], Callable[[Tensor], Tensor]]


def as_they_are(_: Tensor) -> Callable[[Tensor], Tensor]:
    """No whitening."""
    return lambda rows: rows


def largest(features: Tensor) -> Callable[[Tensor], Tensor]:
    """A ridge of 1e-4 of the largest variance, on the principal axes."""
    mean = features.double().mean(0)
    variances, directions = torch.linalg.eigh(torch.cov(features.double().T))
    scale = (variances.clamp_min(0) + 1e-4 * variances[-1]).rsqrt()
    return lambda rows: (rows.double() - mean) @ (directions * scale)


def ours(features: Tensor) -> Callable[[Tensor], Tensor]:
    """The encoder's rule."""
    whitening = Whitening(features.shape[1])
    whitening.fit(features)
    return whitening


RULES: dict[str, Rule] = {"raw": as_they_are, "ridge 1e-4": largest, "ridge": ours}


def stages(backbone: nn.Module, pixels: Tensor) -> Tensor:
    """(B, sum of widths) the mean over positions of what each block of a small residual network gives, in turn."""
    assert isinstance(backbone, ResidualBackbone)
    x, means = backbone.norm(backbone.stem(pixels), activate=True), list[Tensor]()
    for block in backbone.blocks:
        x = block(x)
        means.append(x.mean((2, 3)))
    return torch.cat(means, 1)


class Part(NamedTuple):
    """Features of all stages of a part of the data, and the last stage of the mirror images."""

    every: Tensor  # (N, sum of widths)
    mirrored: Tensor  # (N, sum of widths)
    labels: Tensor  # (N,)


def pictures(model: Trained, source: Source, rows: Tensor) -> Iterator[Tensor]:
    """(B, 3, S, S) as they are evaluated."""
    yield from (view["pixels"] for view in model.views(model.loader(source, 0), rows))


def part(model: Trained, source: Source) -> Part:
    """Of all rows of a source."""
    every, mirrored = list[Tensor](), list[Tensor]()
    with evaluating(model.encoder):
        for pixels in pictures(model, source, torch.arange(len(source))):
            every.append(stages(model.encoder.backbone, pixels))
            mirrored.append(stages(model.encoder.backbone, pixels.flip(3)))
    return Part(torch.cat(every).clone(), torch.cat(mirrored).clone(), source.labels)


def cleaned(encoder: Encoder, pixels: Tensor) -> None:
    """Give each BatchNorm, in order, the statistics of whole pictures (N, 3, S, S)."""
    norms = [module for module in encoder.backbone.modules() if hasattr(module, "running_var")]
    with evaluating(encoder):
        for norm in norms:
            seen: list[Tensor] = []
            hook = norm.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0].double()))
            for chunk in pixels.split(CHUNK):
                encoder.backbone(pixels=chunk)
            hook.remove()
            values = torch.cat(seen)
            norm.running_mean.copy_(values.mean((0, 2, 3)))
            norm.running_var.copy_(values.var((0, 2, 3), correction=0))


def scored(
    rule: Rule, reference: Tensor, query: Tensor, labels: tuple[Tensor, Tensor], probe: bool
) -> dict[str, float]:
    """Accuracies in percent by k, and of the probe."""
    fitted = reference[:: -(-len(reference) // FITTED)]
    known, asked = (unit(rule(fitted)(rows).float()) for rows in (reference, query))
    found = {f"k{k}": Knn(k).accuracy(known, labels[0], asked, labels[1]) for k in (20, 200) if 3 * k <= len(reference)}
    if probe:
        found["probe"] = LinearProbe().fit(known, labels[0]).accuracy(asked, labels[1])
    return {name: round(100 * value, 2) for name, value in found.items()}


def measured(run: str, data: str, probe: bool) -> dict[str, object]:
    """All rules and features of one run."""
    model = load(run)
    sources = labelled_parts(model, data)
    reference, query = (part(model, source) for source in sources)
    widths = [block.conv2.out_channels for block in model.encoder.backbone.blocks]  # type: ignore[union-attr]
    labels, last = (reference.labels, query.labels), widths[-1]
    found = {
        name: scored(rule, reference.every[:, -last:], query.every[:, -last:], labels, probe)
        for name, rule in RULES.items()
    }
    for count in (2, 3):
        kept = sum(widths[-count:])
        found[f"{count} stages"] = scored(ours, reference.every[:, -kept:], query.every[:, -kept:], labels, probe)
    means = ((part.every + part.mirrored)[:, -last:] for part in (reference, query))
    found["mirror"] = scored(ours, *means, labels, False)
    rows = torch.arange(len(sources[0]))[:: -(-len(sources[0]) // CLEAN)]
    cleaned(model.encoder, torch.cat(list(pictures(model, sources[0], rows))))
    clean = (part(model, source).every[:, -last:] for source in sources)
    found["clean statistics"] = scored(ours, *clean, labels, False)
    return {"run": run, "reference": len(labels[0]), "queries": len(labels[1]), **found}


def main() -> None:
    """One line of JSON a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN=DATA")
    parser.add_argument("--no-probe", action="store_true", help="kNN only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for pair in arguments.runs:
        run, _, data = pair.partition("=")
        print(json.dumps(measured(run, data, not arguments.no_probe)), flush=True)


if __name__ == "__main__":
    main()
