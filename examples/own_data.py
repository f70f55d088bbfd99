"""Data of your own: anything with ``len`` and an index that gives a picture, or a picture and its label.

A picture is a PIL image or a tensor, (3, H, W) or (H, W), uint8 or from 0 to 1; it must not be augmented or normalised.
"""

import torch
from torch import Tensor

import lookalike


class Discs:
    """Discs in one of three sizes, somewhere in a picture."""

    classes = ("small", "medium", "large")

    def __init__(self, count: int) -> None:
        self.labels = [row % 3 for row in range(count)]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        x, y, red, green, blue = torch.rand(5, generator=torch.Generator().manual_seed(row))
        grid = torch.arange(24) / 24
        inside = (grid[:, None] - 0.3 - 0.4 * y) ** 2 + (grid - 0.3 - 0.4 * x) ** 2 < (
            0.1 + 0.1 * self.labels[row]
        ) ** 2
        return inside * torch.stack([red, green, blue])[:, None, None], self.labels[row]


if __name__ == "__main__":
    discs = Discs(300)
    lookalike.pretrain(discs, "runs/own_data", recipe="tiny", steps=30)
    print(lookalike.embed("runs/own_data", discs))
    print(lookalike.evaluate("runs/own_data", discs, "knn", k=10))
