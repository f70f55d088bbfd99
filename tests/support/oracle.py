"""The small case on which the official code was run: weights, inputs and sizes from formulas, in float64.

How tests/support/moco_oracle.json was made (2026-11, torch 2.14.1, one CPU process): ``MoCo`` of moco/builder.py of
facebookresearch/moco at 132aea9 was built with ``Net`` below, dim 16, K 32, m 0.9, T 0.07 and mlp False, then True;
every parameter of its query encoder, copied to its key encoder, and its queue were set by ``numbers``; ``.cuda()`` was
made to return its tensor and a gloo group of one process was started; then ten steps of SGD (lr 0.1, momentum 0.9,
weight decay 1e-4) were taken on ``views``. Kept: the loss of each step and the queue after the last.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DIM, SIZE, BATCH, STEPS = 16, 32, 8, 10


def numbers(offset: int, *shape: int) -> Tensor:
    """Values in (-1, 1) that look random and need no generator."""
    count = torch.Size(shape).numel()
    return torch.sin(torch.arange(1, count + 1, dtype=torch.float64) * 12.9898 + offset * 78.233).reshape(shape)


def views(step: int) -> tuple[Tensor, Tensor]:
    """Two views (8, 3, 8, 8) of a step's examples: a picture with two different noises."""
    picture = numbers(1000 + step, BATCH, 3, 8, 8)
    return picture + 0.3 * numbers(2000 + step, BATCH, 3, 8, 8), picture + 0.3 * numbers(3000 + step, BATCH, 3, 8, 8)


class Net(nn.Module):
    """Convolution, BatchNorm, ReLU, convolution, BatchNorm, mean over positions, ``fc``."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 24, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(24)
        self.fc: nn.Module = nn.Linear(24, num_classes)

    def forward(self, pixels: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(pixels)))
        out: Tensor = self.fc(F.relu(self.bn2(self.conv2(x))).mean(dim=(2, 3)))
        return out


def set_parameters(module: nn.Module) -> None:
    """Every parameter by its position: matrices scaled by fan-in, BatchNorm weights near 1."""
    for position, parameter in enumerate(module.parameters()):
        values = numbers(position, *parameter.shape)
        fan = parameter[0].numel() if parameter.dim() > 1 else 100
        parameter.data.copy_(values * (3 / fan) ** 0.5 + (1.0 if parameter.dim() == 1 and position % 3 == 1 else 0.0))
