"""Search pictures by what ``lookalike export RUN --to onnx --out FOLDER`` wrote: without torch, without lookalike.

python search_by_onnx.py FOLDER PICTURES QUERY prints the pictures that are nearest to the file QUERY.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image


def seen(file: Path, how: dict) -> np.ndarray:
    """(3, S, S) float32: the centre of a picture as the network was shown it; a canvas is squashed before."""
    picture, size = Image.open(file).convert("RGB"), how["crop_size"]["width"]
    canvas = how.get("canvas")
    whole = picture.resize((canvas, canvas), Image.Resampling.BILINEAR) if canvas else picture
    side = min(picture.size) * size / how["size"].get("shortest_edge", size)
    left, top = (now * (1 - side / before) / 2 for now, before in zip(whole.size, picture.size))
    box = (left, top, whole.width - left, whole.height - top)
    pixels = np.asarray(whole.resize((size, size), Image.Resampling(how["resample"]), box=box), np.float32) / 255
    return ((pixels - how["image_mean"]) / how["image_std"]).astype(np.float32).transpose(2, 0, 1)


def main(folder: str, pictures: str, query: str) -> None:
    """Rows have unit norm, so their products are cosines."""
    how = json.loads(Path(folder, "preprocessor_config.json").read_text())
    session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
    files = sorted(file for file in Path(pictures).rglob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
    rows = []
    for start in range(0, len(files), 32):
        batch = np.stack([seen(file, how) for file in files[start : start + 32]])
        rows.append(session.run(None, {"pixels": batch})[0])
    (wanted,) = session.run(None, {"pixels": seen(Path(query), how)[None]})[0]
    cosines = np.concatenate(rows) @ wanted
    for place in np.argsort(-cosines)[:5]:
        print(f"{cosines[place]:.4f}  {files[place]}")


if __name__ == "__main__":
    main(*sys.argv[1:4])
