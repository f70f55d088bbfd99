"""The three products, each as its documents say for runs that may be interrupted, and what starts and looks at runs.

ResNet-18 with random weights on 256 pictures of 32 pixels: 16 steps of 32 pictures, which is two epochs, no workers,
one thread, a checkpoint every second step. Only public interfaces of the peers are used.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

STEPS, BATCH, EVERY, SIZE = 16, 32, 2, 32
QUIET = {"LIGHTLY_TRAIN_EVENTS_DISABLED": "1", "NO_ALBUMENTATIONS_UPDATE": "1", "OMP_NUM_THREADS": "1"}
Case = dict[str, Any]


def lookalike(data: Path, out: Path, lr: float | None = None, load: Path | None = None, again: bool = True) -> None:
    from lookalike.cli.main import main

    words = ["pretrain", data, "--out", out, "--batch", BATCH]
    if os.environ.get("SURVIVAL_TINY"):  # a hundredth of the arithmetic, where the machine is busy
        words += ["--recipe", "tiny", "--model.widths", "4,8", "--head.widths", "16"]
    else:
        words += ["--recipe", "moco_v2", "--model", "resnet18", "--pretext.first.size", SIZE, "--canvas", SIZE]
    words += ["--steps", STEPS, "--save-every", EVERY, "--workers", 0, "--device", "cpu"]
    words += ["--optimizer.lr", lr] if lr else []
    words += ["--init-from", load] if load else []
    main([str(word) for word in words])


def lightning(data: Path, out: Path, lr: float | None = None, load: Path | None = None, again: bool = True) -> None:
    """The parts and settings of lightly's example, with Lightning's options for runs that are interrupted."""
    import pytorch_lightning as pl
    import torch
    import torchvision
    from lightly.data import LightlyDataset
    from lightly.loss import NTXentLoss
    from lightly.models.modules import MoCoProjectionHead
    from lightly.models.utils import deactivate_requires_grad, update_momentum
    from lightly.transforms import MoCoV2Transform
    from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

    class MoCo(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            nets = [torchvision.models.resnet18(), torchvision.models.resnet18()]
            self.query, self.key = (
                torch.nn.Sequential(*list(net.children())[:-1], torch.nn.Flatten(), MoCoProjectionHead(512, 512, 128))
                for net in nets
            )
            self.key.load_state_dict(self.query.state_dict())
            deactivate_requires_grad(self.key)
            self.criterion = NTXentLoss(memory_bank_size=(4096, 128))

        def training_step(self, batch: Any, index: int) -> Any:
            update_momentum(self.query, self.key, m=0.996)
            first, second = batch[0]
            loss = self.criterion(self.query(first), self.key(second).detach())
            self.log("train_loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=lr or 0.06)

    Loader = torch.utils.data.DataLoader
    if os.environ.get("SURVIVAL_STATEFUL"):  # what Lightning's warning asks for; the example has the loader of torch
        from torchdata.stateful_dataloader import StatefulDataLoader as Loader
    pl.seed_everything(0, workers=True)
    if load:
        MoCo.load_from_checkpoint(load)
    pictures = LightlyDataset(str(data), transform=MoCoV2Transform(input_size=SIZE))
    loader = Loader(pictures, batch_size=BATCH, shuffle=True, drop_last=True, num_workers=0)
    saves = ModelCheckpoint(
        out / "checkpoints", every_n_train_steps=EVERY, save_last=True, save_top_k=-1, save_on_exception=True
    )
    finite = EarlyStopping("train_loss", patience=10**9, check_finite=True)
    epochs = STEPS * BATCH // len(pictures) if len(pictures) >= 256 else 2
    trainer = pl.Trainer(
        max_epochs=epochs, devices=1, accelerator="cpu", callbacks=[saves, finite], default_root_dir=out,
        deterministic=True, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(MoCo(), loader, ckpt_path="last")


def lightly_train(data: Path, out: Path, lr: float | None = None, load: Path | None = None, again: bool = True) -> None:
    import lightly_train as library

    library.pretrain(
        out=out, data=data, model="torchvision/resnet18", method="simclr", epochs=2, batch_size=BATCH, num_workers=0,
        devices=1, accelerator="cpu", resume_interrupted=again and out.exists(), checkpoint=load,
        transform_args={"image_size": (SIZE, SIZE)}, optim_args={"lr": lr} if lr else None,
        callbacks={"model_checkpoint": {"every_n_train_steps": EVERY, "save_top_k": -1}},
        trainer_args={"deterministic": True},
    )  # fmt: skip


PRODUCTS = {f.__name__: f for f in (lookalike, lightning, lightly_train)}
IMPORTS = {"lookalike": "lookalike.cli.verbs", "lightning": "lightly.transforms", "lightly_train": "lightly_train"}


def pictures(folder: Path) -> Path:
    """256 pictures of discs and squares in many colours."""
    import numpy as np
    from PIL import Image

    chance, (y, x) = np.random.default_rng(0), np.mgrid[:SIZE, :SIZE]
    for i in range(256):
        path, centre, radius = folder / "ds"[i % 2] / f"{i:03}.png", chance.integers(8, 24, 2), chance.integers(4, 12)
        far = (abs(x - centre[0]), abs(y - centre[1]))
        inside = np.hypot(*far) < radius if i % 2 == 0 else np.maximum(*far) < radius
        ground, colour = chance.integers(0, 256, (2, 3))
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.where(inside[..., None], colour, ground).astype(np.uint8)).save(path)
    return folder


class Kit:
    """Starts runs of one product, each in its own folder, and looks at what they leave."""

    def __init__(self, product: str, work: Path) -> None:
        importlib.import_module(IMPORTS[product])
        self.product, self.work, self.count = product, work, 0
        self.data = pictures(work / "data")
        self.temporary = work / "tmp"
        self.temporary.mkdir(exist_ok=True)
        self.whole, began = self.folder(), time.monotonic()
        assert self.wait(self.begin(self.whole)) == 0, self.tail(self.whole)
        self.seconds, self.expected = time.monotonic() - began, self.weights(self.whole)
        assert self.step(self.newest(self.whole)) == STEPS

    def folder(self, inside: Path | None = None) -> Path:
        self.count += 1
        return (inside or self.work) / f"{self.product}-{self.count}"

    def begin(self, out: Path, data: Path | None = None, temporary: Path | None = None, **more: Any) -> int:
        """The process of a run; what it writes goes beside its folder."""
        sys.stdout.flush()
        if pid := os.fork():
            return pid
        code = 1
        try:
            tempfile.tempdir = str(temporary or self.temporary)
            file = os.open(self.log(out), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(file, 1), os.dup2(file, 2)
            PRODUCTS[self.product](data or self.data, out, **more)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)

    def wait(self, pid: int, seconds: float = 240) -> int | None:
        late = time.monotonic() + seconds
        while time.monotonic() < late:
            if (ended := os.waitpid(pid, os.WNOHANG))[0]:
                return os.waitstatus_to_exitcode(ended[1])
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return None  # it hung

    def log(self, out: Path) -> Path:
        return self.work / f"{out.name}.log"

    def tail(self, out: Path, count: int = 1500) -> str:
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.log(out).read_text(errors="replace")).replace("\r", "\n")
        lines = [line.strip() for line in text.splitlines() if not re.match(r"\s*($|Epoch |[┏┃┡│└├┬╷╵─]|isinst)", line)]
        return " | ".join(lines)[-count:]

    def checkpoints(self, out: Path) -> list[Path]:
        found = out.glob("checkpoints/step-*" if self.product == "lookalike" else "checkpoints/*.ckpt")
        return sorted(found, key=lambda path: (path.stat().st_mtime_ns, path.name.startswith("last")))

    def newest(self, out: Path) -> Path | None:
        """Where the product goes on: the newest folder, or the newest ``last.ckpt``."""
        found = self.checkpoints(out)
        found = found if self.product == "lookalike" else [path for path in found if path.name.startswith("last")]
        return found[-1] if found else None

    def read(self, checkpoint: Path) -> tuple[int, dict[str, Any]]:
        import torch
        from safetensors.torch import load_file

        if self.product == "lookalike":
            return int(checkpoint.name.split("-")[1]), load_file(checkpoint / "learner.safetensors")
        file = torch.load(checkpoint, weights_only=False)  # a pickle, but one that this process had written
        return file["global_step"], file["state_dict"]

    def step(self, checkpoint: Path | None) -> int:
        try:
            return self.read(checkpoint)[0] if checkpoint else 0
        except Exception:
            return -1  # it cannot be read

    def finite(self, checkpoint: Path) -> bool:
        return all(bool(value.isfinite().all()) for value in self.read(checkpoint)[1].values())

    def weights(self, out: Path) -> str | None:
        if (checkpoint := self.newest(out)) is None or self.step(checkpoint) < 0:
            return None
        digest = hashlib.sha256()
        for name, value in sorted(self.read(checkpoint)[1].items()):
            digest.update(name.encode() + value.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()

    def ended(self, pid: int) -> bool:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def until(self, out: Path, step: int, pid: int) -> bool:
        """Waits until a checkpoint of this step is there; no if the process ended before."""
        while not self.ended(pid):
            found = self.checkpoints(out)
            if self.product == "lookalike":
                reached = bool(found) and int(found[-1].name.split("-")[1]) >= step
            else:  # all are kept, and last.ckpt is written after its twin
                reached = len(found) > step // EVERY and found[-1].name.startswith("last")
            if reached:
                return True
            time.sleep(0.005)
        return False

    def killed(self, out: Path, step: int = 6, sign: int = signal.SIGKILL, **more: Any) -> int | None:
        """A run that got this far; its exit code."""
        pid = self.begin(out, **more)
        self.until(out, step, pid)
        os.kill(pid, sign)
        return self.wait(pid)

    def resumed(self, out: Path, **more: Any) -> Case:
        before = self.step(self.newest(out))
        self.log(out).unlink(missing_ok=True)
        code = self.wait(self.begin(out, **more))
        after = self.newest(out)
        return {
            "saved": before, "code": code, "step": self.step(after), "equal": self.weights(out) == self.expected,
            "says": self.tail(out),
        }  # fmt: skip
