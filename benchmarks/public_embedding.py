"""A folder of JPEG files to embeddings of a public network, in turn by ``lookalike embed`` and by timm's own loop.

Both from the files to unit rows, on the same threads, with the same weights; ours begins each round with an empty
cache. Theirs is what timm's documentation says: ``create_transform(**resolve_data_config(...))`` in a DataLoader with
``--workers`` processes, ``model.eval()``, ``torch.inference_mode()``. Prints pictures a second of each round, medians,
their ratio, and by how much the features differ.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from timm.data import ImageDataset, create_transform, resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import lookalike
from lookalike.core.devices import processor


def theirs(net: nn.Module, data: Path, batch: int, workers: int) -> tuple[list[str], Tensor]:
    transform = create_transform(**resolve_model_data_config(net), is_training=False)
    dataset = ImageDataset(str(data), transform=transform)
    loader = DataLoader(dataset, batch, num_workers=workers)
    with torch.inference_mode():
        rows = torch.cat([F.normalize(net(pixels), dim=1) for pixels, _ in loader])
    return dataset.filenames(), rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--model", default="tf_efficientnet_lite0")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64, help="of theirs")
    parser.add_argument("--workers", type=int, default=2, help="of both")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    net = timm.create_model(asked.model, pretrained=False)
    net.load_state_dict(load_file(asked.weights))
    net.reset_classifier(0)
    net.eval()
    trained = lookalike.load(asked.weights, model=f"timm:{asked.model}")
    speeds: dict[str, list[float]] = {"timm": [], "lookalike": []}
    print(f"{processor()}, {asked.threads} threads, {asked.workers} workers")
    for number in range(asked.rounds + 1):  # the first warms up
        began = time.perf_counter()
        names, rows = theirs(net, asked.data, asked.batch, asked.workers)
        between = time.perf_counter()
        table = lookalike.embed(trained, asked.data, workers=asked.workers)
        ended = time.perf_counter()
        count = len(table)
        if number:
            for name, seconds in (("timm", between - began), ("lookalike", ended - between)):
                speeds[name].append(count / seconds)
            print(", ".join(f"{name} {found[-1]:.1f} pictures/s" for name, found in speeds.items()), flush=True)
    ours = dict(zip(table.path, torch.from_numpy(table.vectors)))
    apart = max(float((ours[name] - row).abs().max()) for name, row in zip(names, rows))
    middle = {name: statistics.median(found) for name, found in speeds.items()}
    ratio = middle["lookalike"] / middle["timm"]
    print(
        f"median timm {middle['timm']:.1f}, lookalike {middle['lookalike']:.1f}: {ratio:.2f} times, n = {asked.rounds}"
    )
    print(f"{count} pictures, features at most {apart:.1e} apart")


if __name__ == "__main__":
    main()
