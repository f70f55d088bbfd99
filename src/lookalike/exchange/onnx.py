"""To ONNX by torch's exporter, with a batch that varies; checked by onnxruntime in a process that has no torch."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.exchange import runtime
from lookalike.exchange.export import Checked, Subject, Target
from lookalike.models.encoder import Encoder, evaluating, unit
from lookalike.recipes.modality import TEXT, modality_of
from lookalike.recipes.recipe import Recipe

FILE = "model.onnx"
_LARGE = 1_800_000_000  # bytes of weights: a file of protocol buffers holds at most 2 GB


class _Embedding(nn.Module):
    """What ``lookalike embed`` writes, as one network."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, pixels: Tensor) -> Tensor:
        return unit(self.encoder.features(pixels=pixels))


def _refusal(recipe: Recipe) -> str | None:
    return "which takes text, and exports are of networks for pictures" if modality_of(recipe).inputs == TEXT else None


def _write(subject: Subject, folder: Path) -> None:
    """One file, or two where the weights are large, from a batch of 2: one of 1 would be taken for fixed."""
    weights = sum(part.nbytes for part in subject.encoder.backbone.state_dict().values())
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own code
        torch.onnx.export(
            _Embedding(subject.encoder).eval(),
            (subject.pixels(2),),
            folder / FILE,
            input_names=["pixels"],
            output_names=["embedding"],
            dynamic_shapes={"pixels": {0: torch.export.Dim("batch")}},
            dynamo=True,
            external_data=weights > _LARGE,
            verbose=False,
        )


def _check(subject: Subject, folder: Path) -> Checked:
    """Exporters are known to write graphs of one batch, or wrong ones, without a word."""
    pixels = subject.pixels(max(runtime.BATCHES))
    with evaluating(subject.encoder), tempfile.TemporaryDirectory() as aside:
        arrays = Path(aside) / "rows.npz"
        np.savez(arrays, pixels=pixels.numpy(), rows=unit(subject.encoder.features(pixels=pixels)).numpy())
        command = [sys.executable, "-P", str(runtime.__file__), FILE, str(arrays)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=folder)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["it was stopped"])[-1][:300]
        raise UserError(f"onnxruntime does not run what torch exported ({reason}): nothing was kept", BAD_DATA)
    found = json.loads(done.stdout)
    worst = float("inf") if found["difference"] is None else float(found["difference"])
    where = "beside torch" if found["torch"] else "in a process without torch"
    return worst, f"onnxruntime {found['version']}, batches of {', '.join(map(str, runtime.BATCHES))}, {where}"


ONNX = Target(
    "onnx",
    "onnx",
    _refusal,
    _write,
    _check,
    usage='session = onnxruntime.InferenceSession("FOLDER/model.onnx")\n'
    '(rows,) = session.run(None, {"pixels": pixels})  # float32 (batch, 3, S, S), normalised as below',
    needs=("onnx", "onnxscript", "onnxruntime"),
    extra="export",
    embeds=True,
)
