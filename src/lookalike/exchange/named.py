"""A public model by its name: what network it is, how it sees pictures, and where its weights are.

``timm:NAME[.TAG]``, ``torchvision:NAME[.WEIGHTS]``, ``hf:FOLDER`` or the folder alone, a file of weights beside its
``config.json`` or with the name of its network. Nothing is downloaded unless asked, and no code is run.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

from PIL import Image

from lookalike.core.errors import BAD_DATA, UserError, meant
from lookalike.core.files import json_in, whole
from lookalike.data.preprocessing import Interpolation, Mode, Preprocessing
from lookalike.exchange.downloads import hub_file, web_file
from lookalike.exchange.weights import load_backbone
from lookalike.learn.dictionary import InBatch
from lookalike.learn.keys import EndToEnd
from lookalike.models.encoder import MLP, Encoder
from lookalike.models.hugging_face import HuggingFace, HuggingFacePictures
from lookalike.models.image import Timm
from lookalike.pretext.image import MOCO_V2, TwoViews
from lookalike.recipes.recipe import Model, Recipe
from lookalike.recipes.serialize import model_named
from lookalike.recipes.text import simcse_bert

LIBRARIES = ("timm", "torchvision", "hf")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # in a folder of timm's or transformers'
_SUFFIXES = (".safetensors", ".pth", ".pth.tar", ".pt", ".bin", ".ckpt")
_LARGEST = 4096  # px a side, for which no network is made
Say = Callable[[str], None]


class Named(NamedTuple):
    """A public model that was found."""

    name: str  # opens it again, from anywhere
    recipe: Recipe
    files: tuple[Path, ...]  # of its weights
    architecture: str | None = None  # where a file does not say what network it is of
    licence: str = ""  # where that is known

    def fill(self, encoder: Encoder) -> str:
        """Put its weights into the backbone, and say which of a file's were taken; raises UserError."""
        if isinstance(self.recipe.model, HuggingFace | HuggingFacePictures):
            return f"the weights in {self.recipe.model.folder}"  # which its build has read
        return load_backbone(encoder, self.files[0])

    def digest(self) -> str:
        """sha256 of the weights, file after file."""
        sha = hashlib.sha256()
        for path in self.files:
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    sha.update(block)
        return sha.hexdigest()


class _Known(NamedTuple):
    """What a library says of a network."""

    model: Model
    preprocessing: Preprocessing
    licence: str = ""


def is_named(model: str | Path) -> bool:
    """Whether this names a public model, rather than a run: by its form, and by what lies there."""
    if str(model).partition(":")[0] in LIBRARIES or str(model).endswith(_SUFFIXES):
        return True
    return (Path(model) / "config.json").is_file() and bool(_files(Path(model)))


def opened(
    model: str | Path, architecture: str | None = None, download: bool = False, say: Say = lambda _: None
) -> Named:
    """The public model of that name; ``architecture`` says what network a file holds. Raises UserError.

    ``download`` fetches what is not on this machine, and ``say`` hears how much that is before.
    """
    library, _, name = str(model).partition(":")
    if architecture is not None and (library in LIBRARIES or Path(model).is_dir()):
        raise UserError(f"{model} says itself which network it is: leave out --model {architecture}")
    if library == "timm":
        return _named(str(model), _of_timm(_timm_cfg(name), Timm(name)), hub_weights(name, download, say))
    if library == "torchvision":
        return _named(str(model), _of_torchvision(name), web_file(f"torchvision:{name}", _url(name), download, say))
    path = Path(name if library == "hf" else model)
    if path.is_dir():
        return _of_folder(path)
    if not path.is_file():
        raise UserError(f"{model} is no file: name a run, timm:NAME, torchvision:NAME, hf:FOLDER or a file of weights")
    return _of_file(path, architecture)


def _named(name: str, known: _Known, file: Path, architecture: str | None = None) -> Named:
    return Named(name, _recipe(architecture or name, known), (file,), architecture, known.licence)


def _recipe(name: str, known: _Known) -> Recipe:
    """The model as it is, with views that begin where its trainer's ended: its size, mean and std."""
    seen = known.preprocessing
    view = replace(MOCO_V2, size=seen.size, mean=seen.mean, std=seen.std)
    return Recipe(
        name,
        TwoViews(view),
        canvas=max(256, math.floor(seen.size / seen.share)),
        preprocessing=seen,
        model=known.model,
        head=MLP(()),
        keys=EndToEnd(),
        dictionary=InBatch(),  # which holds nothing
    )


def _of_file(path: Path, architecture: str | None) -> Named:
    where = os.path.abspath(path)
    if architecture is not None:
        library, _, name = architecture.partition(":")
        if library not in ("timm", "torchvision"):
            raise UserError(f"--model {architecture}: the network of a file is timm:NAME or torchvision:NAME")
        known = _of_timm(_timm_cfg(name), Timm(name)) if library == "timm" else _of_torchvision(name)
        return _named(where, known, path, architecture)
    if not (path.parent / "config.json").is_file():
        import timm

        own = path.name.partition(".")[0]
        hint = f"timm:{own}?" if timm.is_model(own) else "timm:NAME or --model torchvision:NAME"
        raise UserError(f"{path} does not say which network it is of: add --model {hint}", BAD_DATA)
    return _named(where, _of_config(path.parent), path)


def _of_folder(folder: Path) -> Named:
    where, config = os.path.abspath(folder), _json(folder / "config.json")
    files = _files(folder)
    if not files:
        raise UserError(f"{folder} holds no {' or '.join(_WEIGHTS)}: put the weights there", BAD_DATA)
    if "architecture" in config:
        return _named(where, _of_config(folder), files[0])
    if not (folder / "preprocessor_config.json").is_file():
        recipe = replace(simcse_bert, name=where, model=HuggingFace(where), head=MLP(()))
        return Named(where, recipe, files, licence=_licence(folder))
    model = HuggingFacePictures(where)
    known = _Known(model, _of_processor(folder, model.processor()), _licence(folder))
    return Named(where, _recipe(where, known), files, licence=known.licence)


def _files(folder: Path) -> tuple[Path, ...]:
    """The weights in a folder of timm's or transformers', which may be in shards."""
    one = tuple(folder / name for name in _WEIGHTS if (folder / name).is_file())[:1]
    return one or tuple(sorted(folder.glob("*.safetensors")))


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json_in(whole(path))
        if isinstance(content, dict):
            return content
        reason = "it holds no object"
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0][:100]
    raise UserError(f"{path} cannot be read ({reason})", BAD_DATA)


def _licence(folder: Path) -> str:
    """As the card of the Hub states it at the top of README.md."""
    try:
        card = whole(folder / "README.md").decode()[:5000]
    except (OSError, ValueError):
        return ""
    found = re.search(r"\A---\n.*?^license: *([\w.-]{1,60})", card, re.DOTALL | re.MULTILINE)
    return found[1] if found else ""


# ---- timm ----


def _timm_cfg(name: str) -> dict[str, Any]:
    """timm's pretrained_cfg of a name, with its tag or the default one; raises UserError."""
    import timm

    model_named(f"timm:{name.partition('.')[0]}")
    try:
        config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError:
        config = None
    if config is None:
        tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{name.partition('.')[0]}.*")]
        raise UserError(f"timm has no weights {name!r}; {meant(name.partition('.')[2], tags)}")
    return dict(asdict(config))


def hub_weights(name: str, download: bool, say: Say) -> Path:
    """The file of timm's weights of a name; raises UserError."""
    config = _timm_cfg(name)
    if config.get("hf_hub_id"):
        files = [file] if (file := config.get("hf_hub_filename")) else _WEIGHTS
        return hub_file(f"timm:{name}", str(config["hf_hub_id"]), files, download, say)
    if config.get("url"):
        return web_file(f"timm:{name}", str(config["url"]), download, say)
    raise UserError(f"timm has no weights for {name!r}; timm.list_pretrained() names them")


def _of_timm(config: Mapping[str, Any], model: Timm) -> _Known:
    """What a pretrained_cfg says, which may be anybody's; raises UserError."""
    from timm.data.config import resolve_data_config

    try:
        data = resolve_data_config({}, pretrained_cfg=dict(config))  # type: ignore[no-untyped-call]
        channels, height, width = data["input_size"]
        if channels != 3 or height != width:
            raise ValueError(f"as {channels}×{height}×{width}")
        how = data["crop_pct"], data["crop_mode"], data["interpolation"], data["mean"], data["std"]
        return _Known(model, _checked(height, *how), str(config.get("license") or ""))
    except (TypeError, ValueError, KeyError, AssertionError, AttributeError) as error:
        raise UserError(
            f"timm:{model.name} sees pictures in a way that is not known here ({error})", BAD_DATA
        ) from None


def _checked(size: Any, share: Any, mode: Any, interpolation: Any, mean: Any, std: Any) -> Preprocessing:
    """A preprocessing; raises ValueError or TypeError for what no picture could be made into."""
    (r, g, b), scale = map(float, mean), tuple(map(float, std))
    seen = Preprocessing(size, float(share), mode, interpolation, (r, g, b), (scale[0], scale[1], scale[2]))
    whole = type(size) is int and 1 <= size <= _LARGEST and 0.1 <= seen.share <= 1
    coloured = len(scale) == 3 and all(map(math.isfinite, (*seen.mean, *scale))) and min(scale) > 0
    if not whole or not coloured or interpolation not in get_args(Interpolation) or mode not in get_args(Mode):
        raise ValueError(str(seen))
    return seen


def _of_config(folder: Path) -> _Known:
    """timm's config.json, as ``timm.models.save_for_hf`` writes it; raises UserError."""
    import timm

    file, config = folder / "config.json", _json(folder / "config.json")
    name, cfg, options = config.get("architecture"), config.get("pretrained_cfg", {}), config.get("model_args") or {}
    known = isinstance(name, str) and timm.is_model(name)
    if not known or not isinstance(cfg, dict) or not isinstance(options, dict):
        raise UserError(f"{file} names no architecture that timm has", BAD_DATA)
    size, pool = options.get("img_size"), options.get("global_pool", config.get("global_pool"))
    unknown = options.keys() - {"img_size", "global_pool", "num_classes", "in_chans"}
    if unknown or not isinstance(size, int | None) or not isinstance(pool, str | None):
        raise UserError(f"{file}: model_args {sorted(unknown) or options} are not known here", BAD_DATA)
    found = _of_timm(cfg, Timm(str(name), size, pool))
    return found._replace(licence=found.licence or _licence(folder))


# ---- torchvision ----


def _weights(name: str) -> Any:
    """torchvision's entry of a name, the default one or that of the tag; raises UserError."""
    import torchvision

    own, _, tag = name.partition(".")
    model_named(f"torchvision:{own}")
    entries = torchvision.models.get_model_weights(own)
    if tag and tag not in entries.__members__:
        raise UserError(f"torchvision has no weights {name!r}; {meant(tag, entries.__members__)}")
    return entries[tag] if tag else entries.DEFAULT


def _url(name: str) -> str:
    return str(_weights(name).url)


def _of_torchvision(name: str) -> _Known:
    model, shown = model_named(f"torchvision:{name.partition('.')[0]}"), _weights(name).transforms()
    if not hasattr(shown, "crop_size"):
        raise UserError(f"torchvision:{name} is no classification model: take another")
    size, short = shown.crop_size[0], shown.resize_size[0]
    colours = shown.mean, shown.std
    share = Preprocessing.share_of(size, short)
    return _Known(model, _checked(size, share, "center", shown.interpolation.value, *colours))


# ---- transformers ----


def _of_processor(folder: Path, processor: Any) -> Preprocessing:
    """What an image processor does, whose numbers may be anybody's; raises UserError."""
    try:
        get: Callable[..., Any] = processor.to_dict().get
        size: dict[str, Any] = dict(get("size"))
        crop: dict[str, Any] = dict(get("crop_size") or {}) if get("do_center_crop") else {}
        resized: int = size.get("shortest_edge") or size["height"]
        side, mode = crop.get("height", resized), "center_floor" if size.get("shortest_edge") else "squash"
        sides = {size.get("height"), size.get("width")}, {crop.get("height"), crop.get("width")}
        square = max(map(len, sides)) == 1 and bool(crop or mode == "squash" or get("crop_pct"))
        if not square or not get("do_resize") or abs(float(get("rescale_factor", 1)) * 255 - 1) > 1e-6:
            raise ValueError(f"size {size}, crop {crop}, rescale_factor {get('rescale_factor')}")
        if mode == "center_floor" and (share := get("crop_pct")):  # ConvNeXt's, which crops below 384 px
            resized, mode = (int(side / share), mode) if side < 384 else (side, "squash")
        how: Any = Image.Resampling(get("resample")).name.lower()
        mean, std = (get("image_mean"), get("image_std")) if get("do_normalize") else ((0.0,) * 3, (1.0,) * 3)
        return _checked(side, Preprocessing.share_of(side, resized), mode, how, mean, std)
    except (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError) as error:
        reason = (str(error).splitlines() or ["?"])[0][:200]
        raise UserError(f"{folder} sees pictures in an unknown way ({reason})", BAD_DATA) from None
