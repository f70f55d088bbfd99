"""A backbone of your own: a frozen dataclass whose ``build`` gives a module from pictures to features, and their width.

Decorated with ``@lookalike.part`` it has a name in recipe.json; whoever opens the run imports this module first.
A network of timm or torchvision needs none of this: ``model="timm:convnext_tiny"``.
"""

from dataclasses import dataclass

from torch import nn

import lookalike


@lookalike.part
@dataclass(frozen=True)
class Patches:
    """Square patches, each seen through the same small network, then averaged."""

    patch: int = 4  # pixels a side
    width: int = 64

    def build(self, group: int) -> tuple[nn.Module, int]:
        """(B, 3, S, S) → (B, width); BatchNorm is put in groups of ``group`` examples for you."""
        net = nn.Sequential(
            nn.Conv2d(3, self.width, self.patch, stride=self.patch),
            nn.BatchNorm2d(self.width),
            nn.GELU(),
            nn.Conv2d(self.width, self.width, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        return net, self.width


if __name__ == "__main__":
    lookalike.pretrain("digits", "runs/own_backbone", recipe="digits", model=Patches(width=32), batch=64, steps=30)
    print(lookalike.load("runs/own_backbone"))
    print(lookalike.evaluate("runs/own_backbone", "digits", "knn", k=20))
