"""A folder of JPEG files to embeddings of a public network, in turn by ``lookalike embed`` and by timm's own loop.

Both in processes of their own, from weights and files to unit rows, on the same threads; imports are not counted.
Theirs is what timm's documentation says: ``create_transform(**resolve_data_config(...))`` in a DataLoader with
``--workers`` processes, ``model.eval()``, ``torch.inference_mode()``. Prints pictures a second of each round, medians,
their ratio, and by how much the features differ. Threads that wait for busy cores decide everything: an idle machine.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import timm
import torch
from safetensors.torch import load_file
from timm.data import ImageDataset, create_transform, resolve_model_data_config
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import lookalike
from lookalike.core.devices import keep_freed, processor


def theirs(net: nn.Module, data: Path, batch: int, workers: int) -> tuple[list[str], Tensor]:
    transform = create_transform(**resolve_model_data_config(net), is_training=False)
    dataset = ImageDataset(str(data), transform=transform)
    loader = DataLoader(dataset, batch, num_workers=workers)
    with torch.inference_mode():
        rows = torch.cat([F.normalize(net(pixels), dim=1) for pixels, _ in loader])
    return dataset.filenames(), rows


def ours(weights: Path, model: str, data: Path, workers: int) -> tuple[list[str], Tensor]:
    table = lookalike.embed(lookalike.load(weights, model=f"timm:{model}"), data, workers=workers)
    return table.path, torch.from_numpy(table.vectors)


def side(asked: argparse.Namespace) -> None:
    """One of the two, in a process of its own, as a person runs it: how memory is kept is the process's."""
    torch.set_num_threads(asked.threads)
    began = time.perf_counter()
    if asked.only == "lookalike":
        keep_freed()  # as the command line does
        names, rows = ours(asked.weights, asked.model, asked.data, asked.workers)
    else:
        net = timm.create_model(asked.model, pretrained=False)
        net.load_state_dict(load_file(asked.weights))
        net.reset_classifier(0)
        names, rows = theirs(net.eval(), asked.data, asked.batch, asked.workers)
    seconds = time.perf_counter() - began
    torch.save({"seconds": seconds, "rows": dict(zip(names, rows))}, asked.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--model", default="tf_efficientnet_lite0")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64, help="of theirs")
    parser.add_argument("--workers", type=int, default=2, help="of both")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", choices=("timm", "lookalike"), help="one side, once")
    parser.add_argument("--out", type=Path, help="of --only: its seconds and rows")
    asked = parser.parse_args()
    if asked.only:
        side(asked)
        return
    print(f"{processor()}, {asked.threads} threads, {asked.workers} workers, batches of {asked.batch} for timm")
    speeds: dict[str, list[float]] = {"timm": [], "lookalike": []}
    with TemporaryDirectory() as folder:
        for _ in range(asked.rounds):
            done = {}
            for name in speeds:
                command = [sys.executable, *sys.argv, "--only", name, "--out", f"{folder}/{name}.pt"]
                subprocess.run(command, check=True)
                done[name] = torch.load(f"{folder}/{name}.pt")
                speeds[name].append(len(done[name]["rows"]) / done[name]["seconds"])
            print(", ".join(f"{name} {found[-1]:.1f} pictures/s" for name, found in speeds.items()), flush=True)
    rows = done["timm"]["rows"]
    apart = max(float((done["lookalike"]["rows"][name] - row).abs().max()) for name, row in rows.items())
    middle = {name: statistics.median(found) for name, found in speeds.items()}
    ratio = middle["lookalike"] / middle["timm"]
    print(
        f"median timm {middle['timm']:.1f}, lookalike {middle['lookalike']:.1f}: {ratio:.2f} times, n = {asked.rounds}"
    )
    print(f"{len(rows)} pictures, features at most {apart:.1e} apart")


if __name__ == "__main__":
    main()
