"""Cut pictures of square frames side by side into folders of frames, which ``frames:FOLDER`` reads as videos.

    python examples/strips.py STRIPS FRAMES
    lookalike pretrain frames:FRAMES --out runs/moments --recipe video_moco

STRIPS is a folder of pictures in any layout: ``wave/1.jpg``, 64 pixels high and 640 wide, becomes ``wave/1/0000.png``
to ``wave/1/0009.png``. Frames are PNG, so nothing is lost a second time. A folder that is there already is left.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image


def cut(strip: Path, folder: Path) -> int:
    """Write the frames of one picture into ``folder``, and say how many there are."""
    with Image.open(strip) as opened:
        picture = opened.convert("RGB")
    side, count = picture.height, picture.width // picture.height
    if picture.width % side:
        raise SystemExit(f"{strip} is {picture.width} x {side} pixels, which is no row of square frames")
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        frame = picture.crop((number * side, 0, (number + 1) * side, side))
        frame.save(folder / f"{number:04}.png")
    return count


def main() -> None:
    """Cut every picture below a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("strips", type=Path)
    parser.add_argument("frames", type=Path)
    options = parser.parse_args()
    pictures = [path for path in sorted(options.strips.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
    folders = {path: options.frames / path.relative_to(options.strips).with_suffix("") for path in pictures}
    frames = sum(cut(path, folder) for path, folder in folders.items() if not folder.exists())
    print(f"{len(pictures)} videos, {frames} new frames in {options.frames}")


if __name__ == "__main__":
    main()
