"""Datasets of the Hugging Face Hub: a snapshot of the repository in the Hub's own cache, read as any folder is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download

from lookalike.core.errors import BAD_DATA, IO, USAGE, UserError
from lookalike.data.image.decode import one_line

PREFIX = "hub:"
_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?P<folder>(/[\w.-]+)*)(@(?P<revision>[\w./-]+))?")


def snapshot(data: str, suffixes: Sequence[str]) -> Path:
    """The folder of ``hub:owner/name[/folder][@revision]``: fetched if need be, and only files of these suffixes.

    Files are data, no code in a repository is run. HF_HUB_OFFLINE=1 reads the cache alone. Raises UserError.
    """
    match = _NAME.fullmatch(data.removeprefix(PREFIX))
    if match is None or ".." in data:
        raise UserError(
            f"{data}: no name of a dataset; write hub:owner/name, hub:owner/name/folder or ...@revision", USAGE
        )
    folder = match["folder"].strip("/")
    patterns = [f"{folder}/*{suffix}" if folder else f"*{suffix}" for s in suffixes for suffix in (s, s.upper())]
    try:
        fetched = snapshot_download(
            match["name"], repo_type="dataset", revision=match["revision"], allow_patterns=patterns
        )
    except Exception as error:  # of HTTP, of the Hub and of the cache: a dozen classes that change with its versions
        raise UserError(f"{data} cannot be fetched ({one_line(error)})", IO) from None
    root = Path(fetched) / folder
    if not root.is_dir():
        raise UserError(f"{data}: there is no picture, table or archive in it; see its files on the Hub", BAD_DATA)
    return root
