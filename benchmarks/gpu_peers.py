"""MoCo v2 as the papers' code has it, in plain PyTorch, and lightly's; on the same card, one after the other."""

from __future__ import annotations

import copy
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torchvision
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import transforms

from benchmarks.gpu_speed import settled
from benchmarks.records import Record, Records, spread
from benchmarks.scenes import jpegs
from lookalike.data.pool import cores

DIM, QUEUE, TEMPERATURE, MOMENTUM = 128, 65536, 0.2, 0.999


class Plain(nn.Module):
    """moco/builder.py of facebookresearch/moco for one GPU, MLP head, in channels_last and bf16."""

    def __init__(self, network: str = "resnet50", queue: int = QUEUE) -> None:
        super().__init__()
        self.query, self.key = (torchvision.models.get_model(network, weights=None, num_classes=DIM) for _ in range(2))
        width = self.query.fc.in_features
        for net in (self.query, self.key):
            net.fc = nn.Sequential(nn.Linear(width, width), nn.ReLU(), net.fc)
        self.key.load_state_dict(self.query.state_dict())
        self.key.requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(DIM, queue), dim=0))
        self.register_buffer("place", torch.zeros(1, dtype=torch.long))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        query = F.normalize(self.query(first), dim=1)
        with torch.no_grad():
            for slow, fast in zip(self.key.parameters(), self.query.parameters()):
                slow.data = slow.data * MOMENTUM + fast.data * (1 - MOMENTUM)
            shuffled = torch.randperm(len(second), device=second.device)
            key = F.normalize(self.key(second[shuffled]), dim=1)[shuffled.argsort()]
        positive = torch.einsum("nc,nc->n", [query, key])[:, None]
        negative = torch.einsum("nc,ck->nk", [query, self.queue.clone().detach()])
        logits = torch.cat([positive, negative], dim=1) / TEMPERATURE
        self._absorb(key)
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))

    @torch.no_grad()
    def _absorb(self, key: Tensor) -> None:
        place = int(self.place)
        self.queue[:, place : place + len(key)] = key.T
        self.place[0] = (place + len(key)) % self.queue.shape[1]


def stepping(model: nn.Module, gpu: str, lowers: bool = True) -> Callable[[Tensor, Tensor], None]:
    """One step of SGD, as main_moco.py: no gradient is kept, and the loss is read each step for its meters."""
    optimizer = torch.optim.SGD(model.parameters(), 0.03, momentum=0.9, weight_decay=1e-4)

    def step(first: Tensor, second: Tensor) -> None:
        with torch.autocast(gpu, torch.bfloat16, enabled=lowers):
            loss = model(first, second)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def timed(step: Callable[[], None], batch: int, warmup: int, steps: int, seconds: float) -> Record:
    """Pairs a second in windows of some steps."""
    for _ in range(warmup):
        step()
    settled()
    rates, end = [], time.perf_counter() + seconds
    while not rates or (time.perf_counter() < end and len(rates) < 9):
        began = time.perf_counter()
        for _ in range(steps):
            step()
        settled()
        rates.append(steps * batch / (time.perf_counter() - began))
    memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {"pairs_per_second": spread(rates), "peak_bytes": memory}


# ---- the papers' views, by Pillow in workers ----


class Blur:
    def __call__(self, picture: Image.Image) -> Image.Image:
        return picture.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def view(size: int) -> transforms.Compose:
    """MoCo v2's, as in main_moco.py."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=(0.2, 1.0)),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.RandomApply([Blur()], p=0.5),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )


class Two(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Two views of each file, over and over."""

    def __init__(self, folder: Path, size: int, times: int) -> None:
        self.files, self.view, self.times = sorted(folder.rglob("*.jpg")), view(size), times

    def __len__(self) -> int:
        return len(self.files) * self.times

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        with Image.open(self.files[row % len(self.files)]) as file:
            picture = file.convert("RGB")
        return self.view(picture), self.view(picture)


def endless(folder: Path, size: int, batch: int, workers: int, gpu: str) -> Iterator[tuple[Tensor, Tensor]]:
    dataset = Two(folder, size, 1000)
    loader = torch.utils.data.DataLoader(
        dataset, batch, shuffle=True, num_workers=workers, pin_memory=gpu == "cuda", drop_last=True
    )
    for first, second in loader:
        yield tuple(part.to(gpu, non_blocking=True).to(memory_format=torch.channels_last) for part in (first, second))  # type: ignore[misc]


def peers(records: Records, gpu: str, deadline: float, toy: bool, **_: Any) -> None:
    """Their step alone, on views that lie on the GPU already; then with views from JPEG files in workers."""
    torch.backends.cudnn.benchmark = True  # as main_moco.py
    size, network, queue = (32, "resnet18", 64) if toy else (224, "resnet50", QUEUE)
    for batch in (8,) if toy else (256, 512):
        guarded(records, f"plain PyTorch, batch {batch}, views ready on the GPU", deadline,
                lambda: ready(Plain(network, queue), gpu, batch, size, toy))  # noqa: B023  # fmt: skip
    guarded(records, f"lightly, batch {8 if toy else 256}, views ready on the GPU", deadline,
            lambda: ready(lightly(network, queue), gpu, 8 if toy else 256, size, toy))  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        jpegs(Path(folder), 16 if toy else 2000, 1 if toy else cores())
        workers, batch = (0, 8) if toy else (cores(), 256)
        label = f"plain PyTorch, batch {batch}, 500 x 375 JPEG, Pillow in {workers} workers"
        guarded(records, label, deadline, lambda: from_files(Plain(network, queue), gpu, Path(folder), size, toy))


def guarded(records: Records, label: str, deadline: float, work: Callable[[], Record]) -> None:
    if time.time() > deadline:
        return records.add(label, skipped="no time left")
    try:
        records.add(label, **work())
    except ImportError as error:
        records.add(label, skipped=f"not installed: {error}")
    except Exception as error:
        records.add(label, failed=f"{type(error).__name__}: {error}"[:500])
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return None


def ready(model: nn.Module, gpu: str, batch: int, size: int, toy: bool) -> Record:
    model = model.to(gpu).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    views = [torch.randn(batch, 3, size, size, device=gpu).to(memory_format=torch.channels_last) for _ in range(2)]
    step = stepping(model, gpu, not toy)
    return timed(lambda: step(*views), batch, *((1, 1, 0.0) if toy else (12, 8, 6.0)))


def from_files(model: nn.Module, gpu: str, folder: Path, size: int, toy: bool) -> Record:
    model = model.to(gpu).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    batch, step = 8 if toy else 256, stepping(model, gpu, not toy)
    views = endless(folder, size, batch, 0 if toy else cores(), gpu)
    return timed(lambda: step(*next(views)), batch, *((1, 1, 0.0) if toy else (4, 3, 12.0)))


def lightly(network: str, queue: int) -> nn.Module:
    """examples/pytorch/moco.py of lightly, its loss and its bank."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum

    class MoCo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            resnet = torchvision.models.get_model(network, weights=None)
            width = resnet.fc.in_features
            self.backbone = nn.Sequential(*list(resnet.children())[:-1])
            self.projection_head = MoCoProjectionHead(width, width, DIM)
            self.backbone_momentum = copy.deepcopy(self.backbone)
            self.projection_head_momentum = copy.deepcopy(self.projection_head)
            deactivate_requires_grad(self.backbone_momentum)
            deactivate_requires_grad(self.projection_head_momentum)
            self.criterion = NTXentLoss(temperature=TEMPERATURE, memory_bank_size=(queue, DIM))

        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            update_momentum(self.backbone, self.backbone_momentum, m=MOMENTUM)
            update_momentum(self.projection_head, self.projection_head_momentum, m=MOMENTUM)
            query = self.projection_head(self.backbone(first).flatten(start_dim=1))
            with torch.no_grad():
                key = self.projection_head_momentum(self.backbone_momentum(second).flatten(start_dim=1))
            loss: Tensor = self.criterion(query, key.detach())
            return loss

    return MoCo()


SECTIONS = {"peers": peers}
