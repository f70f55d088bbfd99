"""Two networks under one head: one for pictures, one for texts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from lookalike.core.errors import UserError
from lookalike.models.image import ResNet, SmallResNet
from lookalike.models.text import Transformer


@dataclass(frozen=True)
class TwoTowers:
    """An encoder for each kind (CLIP, arXiv 2103.00020, section 2.3); both end in F features."""

    picture: SmallResNet | ResNet = SmallResNet()  # noqa: RUF009
    text: Transformer = Transformer(width=256, depth=2)  # noqa: RUF009

    @property
    def vocabulary(self) -> int:
        """How many tokens the network of texts knows."""
        return self.text.vocabulary

    def build(self, group: int) -> tuple[nn.Module, int]:
        """Random weights and F."""
        picture, features = self.picture.build(group)
        text, width = self.text.build(group)
        if width != features:
            raise UserError(f"model.text.width {width} must be the features of the picture's network, {features}")
        return TwoTowersBackbone(picture, text), features


class TwoTowersBackbone(nn.Module):
    """A view with ``pixels`` goes through the network of pictures, any other through that of texts."""

    def __init__(self, picture: nn.Module, text: nn.Module) -> None:
        super().__init__()
        self.picture, self.text = picture, text

    def forward(self, **view: Tensor) -> Tensor:
        """A view of B pictures or texts → (B, F)."""
        features: Tensor = self.picture(**view) if "pixels" in view else self.text(**view)
        return features
