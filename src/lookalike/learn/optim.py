"""Optimizers and schedules as values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import torch
from torch import Tensor, nn

from lookalike.core import dist
from lookalike.core.devices import full_precision
from lookalike.core.errors import Bounded, Factor, Limit, Probability


def _learning(module: nn.Module) -> list[nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


def _fuses(parameters: Sequence[Tensor]) -> bool | None:
    """Whether one kernel is to step many parameters: on a GPU; else as torch chooses."""
    return all(parameter.is_cuda for parameter in parameters) or None


@dataclass(frozen=True)
class SGD(Bounded):
    """SGD with momentum; ``lr`` is for 256 examples and grows linearly with the batch (Goyal et al. 2017).

    Weight decay falls on every parameter, BatchNorm and biases included, as in MoCo's published code.
    """

    lr: Factor = 0.03
    momentum: Probability = 0.9
    weight_decay: Factor = 1e-4

    def build(self, module: nn.Module, batch: int) -> torch.optim.Optimizer:
        """An optimizer of the parameters of ``module`` that learn."""
        lr, learning = self.lr * batch / 256, _learning(module)
        return torch.optim.SGD(learning, lr, self.momentum, weight_decay=self.weight_decay, fused=_fuses(learning))


@dataclass(frozen=True)
class AdamW(Bounded):
    """AdamW (Loshchilov & Hutter 2019); ``lr`` is for 256 examples."""

    lr: Factor = 1e-3
    weight_decay: Factor = 0.01
    betas: Annotated[tuple[float, float], Limit(0, 0.99999)] = (0.9, 0.999)
    decay: Literal["matrices", "all"] = "matrices"  # all: biases, norms and tokens too, as in MoCo v3's published code

    def build(self, module: nn.Module, batch: int) -> torch.optim.Optimizer:
        """An optimizer of the parameters of ``module`` that learn."""
        decaying = [p for p in _learning(module) if p.dim() > 1 or self.decay == "all"]
        rest = [p for p in _learning(module) if p.dim() <= 1 and self.decay != "all"]
        groups: list[dict[str, Any]] = [{"params": decaying}, {"params": rest, "weight_decay": 0.0}]
        filled, lr = [group for group in groups if group["params"]], self.lr * batch / 256
        fused = _fuses(_learning(module))
        return torch.optim.AdamW(filled, lr, self.betas, weight_decay=self.weight_decay, fused=fused)


@dataclass(frozen=True)
class LARS(Bounded):
    """SGD whose step in each matrix is ``trust`` of the matrix's norm (You et al., arXiv 1708.03888, algorithm 1).

    As published for SimCLR and MoCo v3, ``lr`` is for 256 examples and grows linearly, and vectors, such as biases and
    those of BatchNorm, are neither adapted nor decayed. MoCo v3's ResNet-50: 0.6 for 100 epochs, 0.3 for more.
    """

    lr: Factor = 0.3
    momentum: Probability = 0.9
    weight_decay: Factor = 1e-6
    trust: Factor = 0.001

    def build(self, module: nn.Module, batch: int) -> torch.optim.Optimizer:
        """An optimizer of the parameters of ``module`` that learn."""
        defaults = {"lr": self.lr * batch / 256, "weight_decay": self.weight_decay, "trust": self.trust}
        return LARSOptimizer(_learning(module), {**defaults, "momentum": self.momentum})


class LARSOptimizer(torch.optim.Optimizer):
    """Holds one momentum per parameter, of directions without the learning rate, which may change between steps."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step along the momentum of the adapted (matrices) or plain (vectors) gradient."""
        for group in self.param_groups:
            learning = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not learning:
                continue
            matrices = [parameter for parameter in learning if parameter.dim() > 1]
            adapted = iter(trusted(matrices, group["weight_decay"], group["trust"]))
            directions = [next(adapted) if grad.dim() > 1 else grad for grad in _gradients(learning)]
            momenta = [_momentum(self.state[parameter], parameter) for parameter in learning]
            torch._foreach_mul_(momenta, group["momentum"])
            torch._foreach_add_(momenta, directions)
            torch._foreach_sub_(learning, momenta, alpha=group["lr"])


def _momentum(state: dict[str, Tensor], parameter: Tensor) -> Tensor:
    """That of a parameter, which begins at zero."""
    if not state:
        state["momentum"] = torch.zeros_like(parameter)
    return state["momentum"]


def _gradients(learning: Sequence[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in learning if parameter.grad is not None]


def trusted(matrices: list[Tensor], decay: float, trust: float) -> Sequence[Tensor]:
    """Decayed gradients at ``trust`` of the norm of their matrices; as they are where either is zero.

    Waits for no device.
    """
    if not matrices:
        return []
    directions = list(torch._foreach_add(_gradients(matrices), matrices, alpha=decay))
    sizes = torch.stack(torch._foreach_norm(matrices) + torch._foreach_norm(directions)).view(2, -1)
    scaled = torch.where((sizes > 0).all(0), trust * sizes[0] / sizes[1], 1.0)
    torch._foreach_mul_(directions, _each(scaled, directions))
    return directions


def _each(numbers: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """A factor for each tensor; on a GPU as large as it and laid out alike, so that one kernel can take them all."""
    if not _on_gpu(numbers):
        return numbers.unbind()
    sizes = [tensor.numel() for tensor in tensors]
    spread = torch.cat([number.expand(size) for number, size in zip(numbers.unbind(), sizes)])
    parts = torch.split_with_sizes(spread, sizes)
    return tuple(part.as_strided(tensor.shape, tensor.stride()) for part, tensor in zip(parts, tensors))


def _on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda or tensor.is_meta  # meta: what a GPU would do is counted


@dataclass(frozen=True)
class Muon(Bounded):
    """Momentum whose direction is orthogonalised, matrix by matrix (Jordan 2024, kellerjordan.github.io/posts/muon).

    Kernels (out, in, h, w) are matrices (out, in·h·w), which torch.optim.Muon does not take. Vectors, such as those
    of BatchNorm, step by their momentum at unit root mean square. ``lr`` is for 256 examples and grows with the square
    root of the batch.
    """

    lr: Factor = 0.02
    vector_lr: Factor = 1e-3
    momentum: Probability = 0.95
    weight_decay: Factor = 0.01

    def build(self, module: nn.Module, batch: int) -> torch.optim.Optimizer:
        """An optimizer of the parameters of ``module`` that learn."""
        scale = math.sqrt(batch / 256)
        matrices = [p for p in _learning(module) if p.dim() > 1]
        vectors = [p for p in _learning(module) if p.dim() <= 1]
        groups: list[dict[str, Any]] = [
            {"params": matrices, "lr": self.lr * scale, "weight_decay": self.weight_decay},
            {"params": vectors, "lr": self.vector_lr * scale, "weight_decay": 0.0},
        ]
        return MuonOptimizer([group for group in groups if group["params"]], self.momentum)


class MuonOptimizer(torch.optim.Optimizer):
    """Holds one momentum per parameter; ranks share the work of orthogonalising, each matrix is done by one of them."""

    def __init__(self, groups: list[dict[str, Any]], momentum: float) -> None:
        super().__init__(groups, {"momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step along the orthogonalised (matrices) or normalised (vectors) Nesterov momentum."""
        for group in self.param_groups:
            learning = [parameter for parameter in group["params"] if parameter.grad is not None]
            if learning:
                ahead = self._ahead(learning, group["momentum"])
                torch._foreach_mul_(learning, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_sub_(learning, directions(ahead), alpha=group["lr"])

    def _ahead(self, learning: list[Tensor], momentum: float) -> Sequence[Tensor]:
        momenta, grads = [_momentum(self.state[parameter], parameter) for parameter in learning], _gradients(learning)
        torch._foreach_lerp_(momenta, grads, 1 - momentum)
        return torch._foreach_lerp(grads, momenta, momentum)


def directions(ahead: Sequence[Tensor]) -> list[Tensor]:
    """Vectors at unit root mean square, matrices and kernels orthogonalised; on all ranks, which hold the same."""
    matrices = [_flat(part) for part in ahead if part.dim() > 1]
    turned = iter(dist.shared(orthogonals, matrices, [_products(matrix) for matrix in matrices]))
    levelled = iter(_levelled([part for part in ahead if part.dim() <= 1]))
    return [_shaped(next(turned), part) if part.dim() > 1 else next(levelled) for part in ahead]


def _flat(kernel: Tensor) -> Tensor:
    """(out, in · h · w); on a GPU channels last, which copies nothing: the order of columns does not matter."""
    return (kernel.movedim(1, -1) if _on_gpu(kernel) else kernel).reshape(len(kernel), -1)


def _shaped(matrix: Tensor, kernel: Tensor) -> Tensor:
    """Back from ``_flat`` to the shape of ``kernel``."""
    return matrix.view(kernel.movedim(1, -1).shape).movedim(-1, 1) if _on_gpu(kernel) else matrix.view_as(kernel)


def _levelled(vectors: list[Tensor]) -> Sequence[Tensor]:
    """At unit root mean square."""
    if not vectors or not _on_gpu(vectors[0]):
        return [vector / vector.square().mean().sqrt().clamp_min(1e-12) for vector in vectors]
    norms = torch._foreach_div(torch._foreach_norm(vectors), [math.sqrt(len(vector)) for vector in vectors])
    return torch._foreach_div(vectors, _each(torch.stack(norms).clamp_min(1e-12), vectors))


def orthogonals(matrices: Sequence[Tensor]) -> list[Tensor]:
    """The direction of each matrix; on a GPU those of a shape are worked on together."""
    if not matrices or not _on_gpu(matrices[0]):
        return [orthogonal(matrix) for matrix in matrices]
    found = list(matrices)
    for shape in {matrix.shape: None for matrix in matrices}:
        alike = [number for number, matrix in enumerate(matrices) if matrix.shape == shape]
        turned = orthogonal(torch.stack([matrices[number] for number in alike])).contiguous()
        for number, direction in zip(alike, turned.unbind()):
            found[number] = direction
    return found


def orthogonal(matrix: Tensor) -> Tensor:
    """The direction of a matrix: tall ones are stretched, so that what they change has the size that others change."""
    stretch: float = max(1.0, matrix.shape[-2] / matrix.shape[-1]) ** 0.5
    return stretch * orthogonalised(matrix)


def _products(matrix: Tensor, iterations: int = 5) -> int:
    """About how many products orthogonalising takes."""
    short, long = sorted(matrix.shape)
    return short * short * (2 * long + (4 * iterations - 3) * short)


@full_precision()
def orthogonalised(matrix: Tensor, iterations: int = 5) -> Tensor:
    """About UVᵀ for ``matrix`` = USVᵀ (..., m, n): Newton-Schulz with Jordan's quintic.

    It moves singular values near 1. Iterates on the Gram matrix of the shorter side and multiplies the long matrix once
    at the end: a third of the products of the usual form.
    """
    if matrix.shape[-2] > matrix.shape[-1]:
        return orthogonalised(matrix.mT, iterations).mT
    matrix = matrix / matrix.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    gram, product = matrix @ matrix.mT, None
    for left in reversed(range(iterations)):
        polynomial = -4.7750 * gram + 2.0315 * (gram @ gram)
        polynomial.diagonal(dim1=-2, dim2=-1).add_(3.4445)
        product = polynomial if product is None else polynomial @ product
        if left:
            gram = polynomial @ (polynomial @ gram)
    assert product is not None
    return product @ matrix


class Schedule(Protocol):
    """The learning rate over a run, as a share of the full one."""

    def share(self, progress: float) -> float:
        """``progress`` runs from 0 to 1."""
        ...


@dataclass(frozen=True)
class Cosine(Bounded):
    """Half a cosine down after a linear rise over the share ``warmup`` of the run (SGDR, arXiv 1608.03983)."""

    warmup: Probability = 0.0
    start: Probability = 0.0  # the share of the full rate that the rise begins at
    floor: Probability = 0.0  # the share that the cosine ends at

    def share(self, progress: float) -> float:
        """In [0, 1]."""
        if progress < self.warmup:
            return self.start + (1 - self.start) * progress / self.warmup
        fallen = 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))
        return self.floor + (1 - self.floor) * fallen


@dataclass(frozen=True)
class Linear(Bounded):
    """Straight down to zero after a linear rise over the share ``warmup`` of the run (BERT, arXiv 1810.04805)."""

    warmup: Probability = 0.0

    def share(self, progress: float) -> float:
        """In [0, 1]."""
        if progress < self.warmup:
            return progress / self.warmup
        return (1 - progress) / (1 - self.warmup)


@dataclass(frozen=True)
class Steps(Bounded):
    """The rate is multiplied by ``factor`` at each share of the run in ``at``."""

    at: tuple[Probability, ...] = (0.6, 0.8)
    factor: Probability = 0.1

    def share(self, progress: float) -> float:
        """In (0, 1]."""
        return self.factor ** sum(progress >= at for at in self.at)


def apply(schedule: Schedule, optimizer: torch.optim.Optimizer, progress: float) -> None:
    """Set the learning rate of every group, whose full one is that which it was built with."""
    for group in optimizer.param_groups:
        full, rests = group.setdefault("initial_lr", group["lr"]), progress < group.get("rest", 0.0)
        group["lr"] = 0.0 if rests else full * schedule.share(progress)
