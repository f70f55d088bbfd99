"""What others train with, step by step: lightly's examples, and plain PyTorch after the code of the papers.

lightly's are its own examples/pytorch/moco.py and simclr.py. Plain PyTorch is, each written anew: FAIR's CIFAR-10
notebook of MoCo (a batch normalised in parts, keys shuffled among them), SimCLR with one pass over both views, FAIR's
MoCo v3 (both views as queries and keys, a predictor), and InstDisc's NCE of 4,096 draws from a memory bank. All read
files by Pillow, make views by torchvision's transforms in the workers of a DataLoader, and compute in fp32.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from lookalike.models.image import ResNet
from lookalike.models.vit import ViT
from lookalike.pretext.image import MOCO_CIFAR, MOCO_V2, ImageView

LIGHTLY_COMMIT = "e8d317fc5a87f4387a85a35e689869039ec249ee"  # of examples/pytorch
TEMPERATURE, MOMENTUM, LR, DIM, WORKERS = 0.1, 0.99, 0.06, 128, 2
V3_TEMPERATURE, NCE_TEMPERATURE, NCE_DRAWS, NCE_MOMENTUM = 1.0, 0.07, 4096, 0.5

Step = Callable[[list[Tensor], Tensor], Tensor]
"""Of some views of a batch (B, 3, S, S) and its rows (B,); gives the loss."""


@dataclass(frozen=True)
class Job:
    """What one fresh process measures."""

    side: str
    folder: str  # of files
    source: str  # what ours reads: those files, parquet, or a prepared cache
    threads: int
    batch: int
    queue: int
    group: int
    warmup: int
    steps: int
    precision: str
    network: str
    method: str

    @property
    def views(self) -> int:
        """How many are made of a picture."""
        return 1 if self.method == "instdisc" else 2


class Network(NamedTuple):
    """What is trained, on views of which side."""

    model: ResNet | ViT
    view: ImageView
    features: int


NETWORKS = {
    "resnet18": Network(ResNet("resnet18", stem="small"), MOCO_CIFAR, 512),
    "resnet50": Network(ResNet("resnet50"), replace(MOCO_V2, size=128), 2048),
    "vit_tiny": Network(ViT(width=192, heads=3), replace(MOCO_V2, size=128), 192),
}


class Rival(NamedTuple):
    """How another trains: its batches, its step, and what it is to be judged by."""

    loader: DataLoader[Any]
    step: Step
    backbone: nn.Module

    def losses(self, layout: torch.memory_format = torch.contiguous_format) -> Iterator[float]:
        """Epoch after epoch, the loss of each step when it is done."""
        while True:
            for views, rows, *_ in self.loader:
                views = views if isinstance(views, list | tuple) else [views]
                yield self.step([view.to(memory_format=layout) for view in views], rows).item()


def backbone(network: str, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Module:
    """torchvision's ResNet, with the CIFAR stem for ``resnet18``, or timm's ViT-tiny; (B, F) or (B, F, 1, 1)."""
    if network == "vit_tiny":
        import timm

        vit: nn.Module = timm.create_model("vit_tiny_patch16_224", img_size=128, num_classes=0)
        return vit
    import torchvision

    resnet = torchvision.models.get_model(network, norm_layer=norm)
    if network == "resnet18":
        resnet.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
        resnet.maxpool = nn.Identity()
    return nn.Sequential(*list(resnet.children())[:-1])


def blend(twin: nn.Module, module: nn.Module) -> None:
    """Move a twin's parameters towards a module's."""
    for old, new in zip(twin.parameters(), module.parameters(), strict=True):
        old.data.mul_(MOMENTUM).add_(new.data, alpha=1 - MOMENTUM)


def updated(optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
    """The loss, after a step down its gradient."""
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


# ---- lightly, after examples/pytorch/moco.py and simclr.py ----


def lightly(job: Job, layout: torch.memory_format = torch.contiguous_format, given: nn.Module | None = None) -> Rival:
    """Its example of ``job.method``, with its own backbone or with the one that is ``given``."""
    net = backbone(job.network) if given is None else given
    step = (lightly_moco if job.method == "moco" else lightly_simclr)(job, net, layout)
    return Rival(lightly_loader(job), step, net)


def lightly_loader(job: Job) -> DataLoader[Any]:
    from lightly.data import LightlyDataset

    dataset = LightlyDataset(job.folder, transform=lightly_views(NETWORKS[job.network].view))
    return DataLoader(dataset, batch_size=job.batch, shuffle=True, drop_last=True, num_workers=WORKERS)


def lightly_views(view: ImageView) -> Callable[[Image.Image], list[Tensor]]:
    """Two of a picture, by lightly's transform."""
    from lightly.transforms.moco_transform import MoCoV2Transform

    transform: Callable[[Image.Image], list[Tensor]] = MoCoV2Transform(
        input_size=view.size,
        cj_prob=view.jitter,
        cj_bright=view.brightness,
        cj_contrast=view.contrast,
        cj_sat=view.saturation,
        cj_hue=view.hue,
        min_scale=view.scale[0],
        random_gray_scale=view.gray,
        gaussian_blur=view.blur,
        sigmas=view.sigma,
        hf_prob=view.flip,
        normalize={"mean": list(view.mean), "std": list(view.std)},
    )
    return transform


class MoCo(nn.Module):
    def __init__(self, net: nn.Module, features: int) -> None:
        super().__init__()
        from lightly.models.modules import MoCoProjectionHead
        from lightly.models.utils import deactivate_requires_grad

        self.backbone = net
        self.projection_head = MoCoProjectionHead(features, features, DIM)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)

    def forward(self, x: Tensor) -> Tensor:
        query: Tensor = self.projection_head(self.backbone(x).flatten(start_dim=1))
        return query

    def forward_momentum(self, x: Tensor) -> Tensor:
        key: Tensor = self.projection_head_momentum(self.backbone_momentum(x).flatten(start_dim=1))
        return key.detach()


def lightly_moco(job: Job, net: nn.Module, layout: torch.memory_format) -> Step:
    from lightly.loss import NTXentLoss
    from lightly.models.utils import update_momentum

    model = MoCo(net, features_of(net, job)).to(memory_format=layout)
    criterion = NTXentLoss(temperature=TEMPERATURE, memory_bank_size=(job.queue, DIM))
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)

    def step(views: list[Tensor], _: Tensor) -> Tensor:
        update_momentum(model.backbone, model.backbone_momentum, m=MOMENTUM)
        update_momentum(model.projection_head, model.projection_head_momentum, m=MOMENTUM)
        query = model(views[0])
        key = model.forward_momentum(views[1])
        return updated(optimizer, criterion(query, key))

    return step


def lightly_simclr(job: Job, net: nn.Module, layout: torch.memory_format) -> Step:
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    features = features_of(net, job)
    model = nn.Sequential(net, nn.Flatten(1), SimCLRProjectionHead(features, features, DIM)).to(memory_format=layout)
    criterion = NTXentLoss(temperature=TEMPERATURE)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    return lambda views, _: updated(optimizer, criterion(model(views[0]), model(views[1])))


@torch.no_grad()
def features_of(net: nn.Module, job: Job) -> int:
    """How many numbers a backbone gives."""
    side = NETWORKS[job.network].view.size
    found = net.eval()(torch.zeros(1, 3, side, side)).flatten(1).shape[1]
    net.train()
    return found


# ---- plain PyTorch, after the code of the papers ----


class Blur:
    """Pillow's Gaussian blur, as the code of SimCLR and MoCo v2 draws it."""

    def __init__(self, sigma: tuple[float, float]) -> None:
        self.sigma = sigma

    def __call__(self, picture: Image.Image) -> Image.Image:
        return picture.filter(ImageFilter.GaussianBlur(random.uniform(*self.sigma)))


def papers_view(view: ImageView) -> Callable[[Image.Image], Tensor]:
    """One of a picture, by torchvision on Pillow, as MoCo v2's code has it."""
    from torchvision import transforms

    jitter = transforms.ColorJitter(view.brightness, view.contrast, view.saturation, view.hue)
    steps = [
        transforms.RandomResizedCrop(view.size, view.scale, view.ratio),
        transforms.RandomApply([jitter], view.jitter),
        transforms.RandomGrayscale(view.gray),
        *([transforms.RandomApply([Blur(view.sigma)], view.blur)] if view.blur else []),
        transforms.RandomHorizontalFlip(view.flip),
        transforms.ToTensor(),
        transforms.Normalize(view.mean, view.std),
    ]
    chain: Callable[[Image.Image], Tensor] = transforms.Compose(steps)
    return chain


class Files(Dataset[Any]):
    """Some random views of each picture of a folder, and its row."""

    def __init__(self, folder: str, view: ImageView, views: int) -> None:
        self.paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        self.views, self.transform = views, papers_view(view)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[list[Tensor], int]:
        with Image.open(self.paths[row]) as picture:
            colours = picture.convert("RGB")
        return [self.transform(colours) for _ in range(self.views)], row


class SplitNorm(nn.BatchNorm2d):
    """BatchNorm over parts of a batch, as on so many GPUs, in one process (FAIR's CIFAR-10 notebook)."""

    def __init__(self, channels: int, splits: int) -> None:
        super().__init__(channels)
        self.splits = splits

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        count, channels, height, width = input.shape
        assert self.running_mean is not None
        assert self.running_var is not None
        means, variances, scale, shift = (
            part.repeat(self.splits) for part in (self.running_mean, self.running_var, self.weight, self.bias)
        )
        parts = input.reshape(count // self.splits, channels * self.splits, height, width)
        out = F.batch_norm(parts, means, variances, scale, shift, True, self.momentum or 0.0, self.eps)
        self.running_mean.copy_(means.view(self.splits, channels).mean(0))
        self.running_var.copy_(variances.view(self.splits, channels).mean(0))
        return out.view_as(input)


def plain(job: Job) -> Rival:
    """The code of the paper of ``job.method``."""
    dataset = Files(job.folder, NETWORKS[job.network].view, job.views)
    loader: DataLoader[Any] = DataLoader(dataset, job.batch, shuffle=True, drop_last=True, num_workers=WORKERS)
    if job.method == "instdisc":
        net = backbone(job.network)
        return Rival(loader, plain_instdisc(job, net, len(dataset)), net)
    splits = partial(SplitNorm, splits=max(1, job.batch // job.group))
    net = backbone(job.network, splits if job.method == "moco" else nn.BatchNorm2d)
    return Rival(
        loader, {"moco": plain_moco, "simclr": plain_simclr, "moco_v3": plain_moco_v3}[job.method](job, net), net
    )


def projected(net: nn.Module, *layers: nn.Module) -> nn.Sequential:
    """A backbone with a head of these layers."""
    return nn.Sequential(net, nn.Flatten(1), *layers)


def plain_moco(job: Job, net: nn.Module) -> Step:
    features = NETWORKS[job.network].features
    head = nn.Linear(features, features), nn.ReLU(), nn.Linear(features, DIM)
    model = projected(net, *head)
    twin = copy.deepcopy(model).requires_grad_(False)
    queue = F.normalize(torch.randn(DIM, job.queue), dim=0)
    optimizer, pointer = torch.optim.SGD(model.parameters(), LR), 0

    @torch.no_grad()
    def keys(view: Tensor) -> Tensor:
        blend(twin, model)
        order = torch.randperm(len(view))
        return F.normalize(twin(view[order]), dim=1)[order.argsort()]

    def step(views: list[Tensor], _: Tensor) -> Tensor:
        nonlocal pointer
        query, key = F.normalize(model(views[0]), dim=1), keys(views[1])
        logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue.clone()], 1) / TEMPERATURE
        loss = updated(optimizer, F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long)))
        queue[:, pointer : pointer + len(key)] = key.T
        pointer = (pointer + len(key)) % job.queue
        return loss

    return step


def plain_simclr(job: Job, net: nn.Module) -> Step:
    features = NETWORKS[job.network].features
    head = nn.Linear(features, features, bias=False), nn.BatchNorm1d(features), nn.ReLU(), nn.Linear(features, DIM)
    model = projected(net, *head)
    optimizer = torch.optim.SGD(model.parameters(), LR)

    def step(views: list[Tensor], _: Tensor) -> Tensor:
        rows = F.normalize(model(torch.cat(views)), dim=1)
        logits = (rows @ rows.T / TEMPERATURE).fill_diagonal_(-math.inf)
        return updated(optimizer, F.cross_entropy(logits, torch.arange(len(rows)).roll(len(rows) // 2)))

    return step


def plain_moco_v3(job: Job, net: nn.Module) -> Step:
    features = NETWORKS[job.network].features
    model = projected(
        net,
        nn.Linear(features, features, bias=False),
        nn.BatchNorm1d(features),
        nn.ReLU(),
        nn.Linear(features, DIM, bias=False),
        nn.BatchNorm1d(DIM, affine=False),
    )
    twin = copy.deepcopy(model).requires_grad_(False)
    predictor = nn.Sequential(
        nn.Linear(DIM, features, bias=False), nn.BatchNorm1d(features), nn.ReLU(), nn.Linear(features, DIM, bias=False)
    )
    optimizer = torch.optim.SGD([*model.parameters(), *predictor.parameters()], LR)

    def asked(query: Tensor, key: Tensor) -> Tensor:
        logits = F.normalize(query, dim=1) @ F.normalize(key, dim=1).T / V3_TEMPERATURE
        return 2 * V3_TEMPERATURE * F.cross_entropy(logits, torch.arange(len(query)))

    def step(views: list[Tensor], _: Tensor) -> Tensor:
        first, second = (predictor(model(view)) for view in views)
        with torch.no_grad():
            blend(twin, model)
            keys = [twin(view) for view in views]
        return updated(optimizer, asked(first, keys[1]) + asked(second, keys[0]))

    return step


def plain_instdisc(job: Job, net: nn.Module, examples: int) -> Step:
    model = projected(net, nn.Linear(NETWORKS[job.network].features, DIM))
    bank = (2 * torch.rand(examples, DIM) - 1) / math.sqrt(DIM / 3)
    optimizer, constant = torch.optim.SGD(model.parameters(), LR), 0.0
    chance = NCE_DRAWS / examples  # how likely noise is to draw one of the negatives

    def step(views: list[Tensor], rows: Tensor) -> Tensor:
        nonlocal constant
        query = F.normalize(model(views[0]), dim=1)
        drawn = torch.randint(examples, (len(rows), NCE_DRAWS + 1))
        drawn[:, 0] = rows
        products = torch.bmm(bank[drawn.view(-1)].view(len(rows), -1, DIM), query[:, :, None]).squeeze(2)
        weights = (products / NCE_TEMPERATURE).exp()
        constant = constant or float(weights.detach().mean()) * examples
        weights = weights / constant
        is_data = (weights[:, 0] / (weights[:, 0] + chance)).log()
        is_noise = (chance / (weights[:, 1:] + chance)).log().sum(1)
        loss = updated(optimizer, -(is_data + is_noise).mean())
        bank[rows] = F.normalize(NCE_MOMENTUM * bank[rows] + (1 - NCE_MOMENTUM) * query.detach(), dim=1)
        return loss

    return step
