"""Weights where torch and the Hub's client keep them: found there, or fetched there when a person asks for it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.request import urlopen

import torch

from lookalike.core.errors import IO, UserError, of_timm

Say = Callable[[str], None]


def web_file(model: str, url: str, download: bool, say: Say) -> Path:
    """A file of torchvision's or of another address, whose name ends in the first letters of its sha256."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if path.is_file():
        return path
    if not download:
        raise UserError(f"{model} is not on this machine: add --download, or put {url} at {path}")
    stated = re.search(r"-([0-9a-f]{8,64})\.", path.name)
    try:
        with urlopen(url) as answer:
            say(f"{url}: {_size(answer.headers.get('Content-Length'))}")
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), stated[1] if stated else None, progress=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{url} cannot be fetched ({_reason(error)}); or put it at {path}", IO) from None
    return path


def hub_file(model: str, repo: str, names: Sequence[str], download: bool, say: Say) -> Path:
    """The first of these files that the Hub has of ``repo``, checked by the hash that it states."""
    hub = of_timm("huggingface_hub")
    for name in names:
        if isinstance(path := hub.try_to_load_from_cache(repo, name), str):
            return Path(path)
    if not download:
        place = hub.constants.HF_HUB_CACHE
        raise UserError(
            f"{model} is not on this machine: add --download, or put huggingface.co/{repo} into {place} "
            f"(hf download {repo}), or name a file with --model {model}"
        )
    return _from_hub(repo, names, say)


def _from_hub(repo: str, names: Sequence[str], say: Say) -> Path:
    hub = of_timm("huggingface_hub")
    try:
        name = next((name for name in names if hub.file_exists(repo, name)), names[-1])
        about = hub.get_hf_file_metadata(hub.hf_hub_url(repo, name))
        say(f"huggingface.co/{repo}, {name}: {_size(about.size)}")
        path = Path(hub.hf_hub_download(repo, name))
        _check(path, about.etag)
    except Exception as error:  # of HTTP, of the Hub and of the cache, as in models/hugging_face.py
        raise UserError(f"huggingface.co/{repo} cannot be fetched ({_reason(error)})", IO) from None
    return path


def _check(path: Path, etag: str | None) -> None:
    """Raise ValueError, and forget the file, where its content is not what the Hub states."""
    if not re.fullmatch(r"[0-9a-f]{64}", etag or ""):
        return  # a small file, which git has hashed in its own way
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != etag:
        path.resolve().unlink()
        path.unlink(missing_ok=True)
        raise ValueError(f"its sha256 is {found[:12]}…, not {etag[:12] if etag else ''}…")


def _size(count: object) -> str:
    return f"{int(str(count)) / 1e6:,.1f} MB" if str(count).isdigit() else "of unknown size"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
