"""The libraries that models leave for, by the names of ``lookalike export --to``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.core.files import write_json
from lookalike.exchange.export import Checked, Subject, Target, compared, difference
from lookalike.exchange.onnx import ONNX
from lookalike.models.image import ResNet, Timm, VideoResNet
from lookalike.models.vit import ViT, ViTBackbone, positions
from lookalike.recipes.recipe import Recipe

WEIGHTS, PTH = "model.safetensors", "model.pth"
WHITENING = "whitening/whitening.safetensors"  # timm before 1.0.31 stumbles over two such files in a folder


def _write_tensors(subject: Subject, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """The backbone, and beside it the whitening that the form itself cannot hold."""
    save_file({name: part.clone().contiguous() for name, part in tensors.items()}, folder / WEIGHTS, {"format": "pt"})
    if (whitening := subject.encoder.whitening) is not None:
        (folder / WHITENING).parent.mkdir()
        save_file({"mean": whitening.mean, "map": whitening.map}, folder / WHITENING)


def _features_differ(subject: Subject, net: nn.Module) -> float:
    pixels = subject.pixels()
    with torch.no_grad():
        return difference(net.eval()(pixels), subject.raw(pixels))


def _misfit(recipe: Recipe) -> str:
    """Why a library has no such network, in words."""
    if isinstance(recipe.model, ResNet) and recipe.model.stem == "small":
        return "a ResNet whose first convolution is 3×3 with no pooling after it"
    return f"a network that it does not have ({getattr(recipe.model, 'name', type(recipe.model).__name__)})"


# ---- timm, and transformers, which wraps it ----


def _in_timm(subject: Subject) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """``timm.create_model(architecture, num_classes=0, **arguments)``, and its tensors."""
    model, net = subject.recipe.model, subject.net
    if isinstance(model, ViT) and isinstance(net, ViTBackbone):
        same = {"embed_dim": model.width, "depth": model.depth, "num_heads": model.heads, "patch_size": model.patch}
        pool = {"class_token": model.pool == "class", "global_pool": "token" if model.pool == "class" else "avg"}
        arguments = {"img_size": subject.shown.size, **same, **pool, "fc_norm": False}
        return "vit_small_patch16_224", arguments, _vit_tensors(net, subject.shown.size // model.patch)
    assert isinstance(model, ResNet | Timm)
    arguments = {"dynamic_img_size": True} if getattr(net, "dynamic_img_size", False) else {}
    if (size := getattr(model, "size", None)) is not None:
        arguments |= {"img_size": size}
    return model.name.split(".")[0], arguments, dict(net.state_dict())


def _vit_tensors(net: ViTBackbone, across: int) -> dict[str, Tensor]:
    """Rows of patches as the kernel that they are, and fixed positions as weights; the class token has none."""
    tensors = dict(net.state_dict())
    weight, where = tensors.pop("patches.weight"), positions(across, across, len(tensors["norm.weight"])).float()
    if (token := tensors.pop("token", None)) is not None:
        tensors["cls_token"], where = token[None, None], torch.cat([torch.zeros_like(where[:1]), where])
    tensors["patch_embed.proj.weight"] = weight.view(len(weight), 3, net.side, net.side)
    tensors["patch_embed.proj.bias"] = tensors.pop("patches.bias")
    return tensors | {"pos_embed": where[None]}


def _not_in_timm(recipe: Recipe) -> str | None:
    fits = isinstance(recipe.model, Timm | ViT) or (isinstance(recipe.model, ResNet) and recipe.model.stem != "small")
    return None if fits else _misfit(recipe)


def _write_timm(subject: Subject, folder: Path) -> None:
    architecture, arguments, tensors = _in_timm(subject)
    _write_tensors(subject, tensors, folder)
    known = timm.get_pretrained_cfg(architecture, allow_unregistered=True)
    layers = {name: getattr(known, name, None) for name in ("first_conv", "classifier", "fixed_input_size")}
    fixed = bool(layers["fixed_input_size"]) and not arguments.get("dynamic_img_size", False)
    own = {"tag": "lookalike", "num_classes": 0, "pool_size": None, "fixed_input_size": fixed}
    width = subject.raw(subject.pixels(1)).shape[1]
    about = {"architecture": architecture, "num_classes": 0, "num_features": width, "model_args": arguments}
    write_json(folder / "config.json", about | {"pretrained_cfg": subject.shown.timm() | layers | own})


def _check_timm(subject: Subject, folder: Path) -> Checked:
    net = timm.create_model(f"local-dir:{folder}", pretrained=True)
    equal = compared(net.state_dict(), _in_timm(subject)[2])
    return _features_differ(subject, net), f"timm {timm.__version__}: {equal}"


class _Pooled(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: Tensor) -> Any:
        return self.net(pixel_values=pixels).pooler_output


def _check_transformers(subject: Subject, folder: Path) -> Checked:
    """By both libraries, and that transformers reads the same of what a picture becomes."""
    import transformers
    from transformers.utils import logging

    safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    loud = logging.get_verbosity()
    logging.set_verbosity_error()  # it has much to say of backends
    logging.disable_progress_bar()
    try:
        net = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, **safe)
        read = transformers.AutoImageProcessor.from_pretrained(folder, **safe).data_config
    finally:
        logging.set_verbosity(loud)
    shown = subject.shown.timm()
    if wrong := [name for name in ("input_size", "mean", "std") if [*read[name]] != shown[name]]:
        raise UserError(f"transformers reads another {', '.join(wrong)} of pictures: nothing was kept", BAD_DATA)
    equal = compared(net.timm_model.state_dict(), _in_timm(subject)[2])
    worst, words = _check_timm(subject, folder)
    return max(
        worst, _features_differ(subject, _Pooled(net))
    ), f"transformers {transformers.__version__}: {equal}; {words}"


# ---- torchvision ----


def _name(recipe: Recipe) -> str:
    """What torchvision calls the network, of which timm has the ResNets with the same tensors; "" for no such one."""
    model = recipe.model
    if not isinstance(model, ResNet | VideoResNet | Timm) or getattr(model, "stem", "") == "small":
        return ""
    name = model.name.split(".")[0]
    fits = name in torchvision.models.list_models() and (not isinstance(model, Timm) or "resne" in name)
    return name if fits else ""


def _not_in_torchvision(recipe: Recipe) -> str | None:
    return None if _name(recipe) else _misfit(recipe)


def _torchvision(recipe: Recipe, tensors: Mapping[str, Tensor]) -> nn.Module:
    """torchvision's network with them; raises UserError where anything but its classifier is missing."""
    net: nn.Module = torchvision.models.get_model(_name(recipe), weights=None)
    missing, unexpected = net.load_state_dict(tensors, strict=False)
    if {*missing} != {"fc.weight", "fc.bias"} or unexpected:
        raise UserError(f"torchvision finds {missing} missing, {unexpected} unknown: nothing was kept", BAD_DATA)
    net.fc = nn.Identity()
    return net


def _write_torchvision(subject: Subject, folder: Path) -> None:
    _write_tensors(subject, subject.net.state_dict(), folder)


def _check_torchvision(subject: Subject, folder: Path) -> Checked:
    tensors = load_file(folder / WEIGHTS)
    net, equal = _torchvision(subject.recipe, tensors), compared(tensors, subject.net.state_dict())
    return _features_differ(subject, net), f"torchvision {torchvision.__version__}: {equal}"


# ---- detectron2 ----


def detectron2_name(name: str) -> str:
    """What detectron2 calls a tensor of torchvision's ResNets, as its tools/convert-torchvision-to-d2.py has it."""
    name = re.sub(r"^layer(\d)", lambda stage: f"res{int(stage[1]) + 1}", name)
    name = name if name.startswith("res") else f"stem.{name}"
    name = name.replace("downsample.0.", "shortcut.").replace("downsample.1.", "shortcut.norm.")
    return re.sub(r"\bbn(\d)\.", r"conv\1.norm.", name)


def _not_in_detectron2(recipe: Recipe) -> str | None:
    fits = not isinstance(recipe.model, VideoResNet) and "resne" in _name(recipe)
    return None if fits else _misfit(recipe)


def _in_detectron2(subject: Subject) -> dict[str, Tensor]:
    """Weights and statistics; how many batches were counted it does not keep."""
    state = subject.net.state_dict().items()
    return {detectron2_name(name): part for name, part in state if not name.endswith("num_batches_tracked")}


def _write_detectron2(subject: Subject, folder: Path) -> None:
    tensors = {name: part.clone() for name, part in _in_detectron2(subject).items()}
    _write_tensors(subject, tensors, folder)
    torch.save({"model": tensors, "__author__": "lookalike", "matching_heuristics": True}, folder / PTH)


def _check_detectron2(subject: Subject, folder: Path) -> Checked:
    """By torchvision, with the names turned back: detectron2 is on few machines."""
    ours, held = _in_detectron2(subject), torch.load(folder / PTH, weights_only=True)["model"]
    compared(load_file(folder / WEIGHTS), ours)
    back = {detectron2_name(name): name for name in subject.net.state_dict()}
    net = _torchvision(subject.recipe, {back[name]: part for name, part in held.items()})
    words = f"torchvision {torchvision.__version__}, from detectron2's names: {compared(held, ours)}"
    return _features_differ(subject, net), words


_TIMM = (
    'net = timm.create_model("local-dir:FOLDER", pretrained=True)  # num_classes=10 adds a classifier\n'
    "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(net))"
)
_TRANSFORMERS = (
    'net = transformers.AutoModel.from_pretrained("FOLDER")\n'
    'processor = transformers.AutoImageProcessor.from_pretrained("FOLDER")\n'
    "features = net(**processor(picture)).pooler_output"
)
_TORCHVISION = (
    "net = torchvision.models.NAME()  # whose classifier, fc, stays as it begins\n"
    'net.load_state_dict(safetensors.torch.load_file("FOLDER/model.safetensors"), strict=False)'
)
_DETECTRON2 = (
    'cfg.MODEL.WEIGHTS = "FOLDER/model.pth"  # PIXEL_MEAN and PIXEL_STD: 255 times those below\n'
    'cfg.MODEL.RESNETS.STRIDE_IN_1X1, cfg.INPUT.FORMAT = False, "RGB"'
)
TARGETS = {
    target.name: target
    for target in (
        Target("timm", "timm", _not_in_timm, _write_timm, _check_timm, _TIMM, preprocesses=True),
        Target(
            *("huggingface", "timm", _not_in_timm, _write_timm, _check_transformers, f"{_TRANSFORMERS}\n{_TIMM}"),
            *(("transformers",), "text"),
            preprocesses=True,
        ),
        Target("torchvision", "torchvision", _not_in_torchvision, _write_torchvision, _check_torchvision, _TORCHVISION),
        ONNX,
        Target("detectron2", "detectron2", _not_in_detectron2, _write_detectron2, _check_detectron2, _DETECTRON2),
    )
}
"""By the names that --to takes."""
