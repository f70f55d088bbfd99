"""Compares an ONNX file with what a network gave, in a process that has no torch, and prints JSON.

``python -P runtime.py MODEL.onnx ROWS.npz``, which holds ``pixels`` (17, ...) and ``rows`` (17, E).
"""

from __future__ import annotations

import json
import sys

import numpy as np

BATCHES = (1, 3, 17)


def main(model: str, arrays: str) -> None:
    """The largest difference over all batches; null where shapes differ or a value is no number."""
    import onnxruntime

    session, worst = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]), 0.0
    with np.load(arrays) as parts:
        pixels, rows = parts["pixels"], parts["rows"]
    for batch in BATCHES:
        (given,) = session.run(None, {"pixels": pixels[-batch:]})
        apart = np.abs(given - rows[-batch:]).max() if given.shape == rows[-batch:].shape else np.inf
        worst = max(worst, float(np.nan_to_num(apart, nan=np.inf, posinf=np.inf)))
    numbers = {"difference": worst if worst < np.inf else None, "torch": "torch" in sys.modules}
    print(json.dumps(numbers | {"version": onnxruntime.__version__}))


if __name__ == "__main__":
    main(*sys.argv[1:])
