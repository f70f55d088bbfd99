"""Points of bodies, and of whatever else has named points, in boxes that are found as any are."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor

from lookalike.evaluation.detector import C4, FPN, Detection


@dataclass(frozen=True)
class Keypoints(Detection):
    """Keypoint R-CNN (arXiv 1703.06870, section 5): each point is one cell of a 56 × 56 map of its box."""

    convolutions: int = 4

    def extra(self, neck: FPN | C4, classes: int, joints: int) -> dict[str, nn.Module]:
        """Pooling, convolutions, and a map for each of ``joints`` points."""
        return {
            "keypoint_roi_pool": neck.pool(14),
            "keypoint_head": KeypointRCNNHeads(neck.out_channels, [self.width] * self.convolutions),
            "keypoint_predictor": _Maps(self.width, joints),
        }


class _Maps(KeypointRCNNPredictor):  # type: ignore[misc]  # torchvision is not typed
    """torchvision's, whose loss wants the memory layout that convolutions are not fastest in."""

    def forward(self, x: Tensor) -> Tensor:
        """(R, C, 14, 14) → (R, K, 56, 56)."""
        maps: Tensor = super().forward(x)
        return maps.contiguous()
