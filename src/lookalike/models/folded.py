"""BatchNorm folded into the convolution before it, for evaluation: a pass over memory less for each."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from lookalike.core.devices import full_precision
from lookalike.models.convolution import QuickConv2d

_NEAR = (
    1e-5  # of the largest feature: what folding may change by rounding; a network that it changes more stays as it is
)


class _Activation(nn.Module):
    """What stands where a BatchNorm stood that was folded: addition and activation, as far as it did those."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.then = nn.Sequential(
            *(part for name in ("drop", "act") if isinstance(part := getattr(norm, name, None), nn.Module))
        )

    def forward(self, x: Tensor, residual: Tensor | None = None, activate: bool = False) -> Tensor:
        """(B, C, H, W) → the same."""
        if residual is not None:
            x = x + residual
        return self.then(torch.relu(x) if activate or residual is not None else x)  # type: ignore[no-any-return]


@torch.inference_mode()
@full_precision()
def folded(backbone: nn.Module, **view: Tensor) -> nn.Module:
    """A copy in evaluation mode that gives the same features of ``view``, up to rounding; itself where none would.

    Which convolution a BatchNorm follows is seen as ``view`` passes.
    """
    quick = copy.deepcopy(backbone).eval()
    pairs = _pairs(quick, view)
    for conv, name in pairs:
        norm: Any = quick.get_submodule(name)
        scale, shift = norm.weight, norm.bias
        about = (norm.running_mean, norm.running_var, norm.eps, scale, shift)
        conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *about)
        parent, _, last = name.rpartition(".")
        setattr(quick.get_submodule(parent), last, _Activation(norm))
    if not pairs:
        return backbone
    before, after = backbone(**view), quick(**view)
    return quick if bool((before - after).abs().max() <= _NEAR * before.abs().max()) else backbone


def _pairs(net: nn.Module, view: dict[str, Tensor]) -> list[tuple[nn.Conv2d, str]]:
    """Every convolution whose very output a BatchNorm takes, and the name of that."""
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # which keeps the tensors, and so their numbers
    found: list[tuple[nn.Conv2d, str]] = []
    names = {module: name for name, module in net.named_modules() if isinstance(module, _BatchNorm)}

    def convolved(conv: nn.Conv2d, _: Any, out: Tensor) -> None:
        made[id(out)] = conv, out

    def normalised(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        if id(inputs[0]) in made:
            found.append((made.pop(id(inputs[0]))[0], names[norm]))

    takes_bias = [  # Winograd's does not
        part
        for part in net.modules()
        if isinstance(part, nn.Conv2d) and not (isinstance(part, QuickConv2d) and part.rewritable)
    ]
    hooks: list[Any] = [part.register_forward_hook(convolved) for part in takes_bias]
    hooks += [norm.register_forward_pre_hook(normalised) for norm in names]
    net(**view)
    for hook in hooks:
        hook.remove()
    once = [conv for conv, _ in found]
    return [(conv, name) for conv, name in found if once.count(conv) == 1]
