"""torchvision's ResNets with ReLU and the addition of a block left to its norms: one pass over memory on a GPU."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck


class _BasicBlock(BasicBlock):  # type: ignore[misc]  # torchvision is not typed
    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        inner = self.bn1(self.conv1(x), activate=True)
        out: Tensor = self.bn2(self.conv2(inner), shortcut)
        return out


class _Bottleneck(Bottleneck):  # type: ignore[misc]
    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        inner = self.bn1(self.conv1(x), activate=True)
        inner = self.bn2(self.conv2(inner), activate=True)
        out: Tensor = self.bn3(self.conv3(inner), shortcut)
        return out


class _ResNet(torchvision.models.ResNet):  # type: ignore[misc]
    def _forward_impl(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.bn1(self.conv1(x), activate=True))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        out: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return out


_ACTIVATING: dict[type, type] = {
    BasicBlock: _BasicBlock,
    Bottleneck: _Bottleneck,
    torchvision.models.ResNet: _ResNet,
}


def activate_in_norms(net: nn.Module) -> nn.Module:
    """The same network, whose norms are grouped ones already; names of weights stay, on a processor all bytes do."""
    for module in net.modules():
        if type(module) in _ACTIVATING:
            module.__class__ = _ACTIVATING[type(module)]
    return net
