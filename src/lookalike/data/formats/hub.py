"""Datasets of the Hugging Face Hub: a snapshot of the repository in the Hub's own cache, read as any folder is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from lookalike.core.errors import BAD_DATA, IO, USAGE, UserError

PREFIX = "hub:"
_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(?P<folder>(/[\w.-]+)*)(@(?P<revision>[\w./-]+))?")


def snapshot(data: str, suffixes: Sequence[str]) -> Path:
    """The folder of ``hub:owner/name[/folder][@revision]``: fetched if need be, and only files of these suffixes.

    Files are data, no code in a repository is run. HF_HUB_OFFLINE=1 reads the cache alone. Raises UserError.
    """
    found = _NAME.fullmatch(data.removeprefix(PREFIX))
    if found is None or ".." in data:
        raise UserError(
            f"{data}: no name of a dataset; write hub:owner/name, hub:owner/name/folder or ...@revision", USAGE
        )
    from huggingface_hub import snapshot_download

    folder = found["folder"].strip("/")
    wanted = [f"{folder}/*{suffix}" if folder else f"*{suffix}" for s in suffixes for suffix in (s, s.upper())]
    try:
        where = snapshot_download(found["name"], repo_type="dataset", revision=found["revision"], allow_patterns=wanted)
    except Exception as error:  # of HTTP, of the Hub and of the cache: a dozen classes that change with its versions
        reason = (str(error).splitlines() or [""])[0][:200]
        raise UserError(f"{data} cannot be fetched ({type(error).__name__}: {reason})", IO) from None
    root = Path(where) / folder
    if not root.is_dir():
        raise UserError(f"{data}: there is no picture, table or archive in it; see its files on the Hub", BAD_DATA)
    return root
