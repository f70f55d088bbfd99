"""The pictures of records as a source, so that a loader caches or decodes them as it does any other."""

from __future__ import annotations

from functools import partial

from lookalike.data.annotations.record import Annotated
from lookalike.data.fingerprint import stamps_of_files
from lookalike.data.formats.disk import Local
from lookalike.data.formats.encoded import Encoded
from lookalike.data.formats.files import printable


class _Files:
    """Pictures by name."""

    def __init__(self, found: Annotated) -> None:
        self._disk, self._files = Local(found.root), [scene.path for scene in found.scenes]
        self.paths = [printable(path) for path in self._files]
        self.labels, self.classes = [-1] * len(self.paths), list[str]()
        self.unlisted, self.starts = dict[str, str](), None

    def read(self, row: int) -> bytes:
        """The bytes of one file; raises Unreadable."""
        return self._disk.whole(self._files[row])


def pictures_of(found: Annotated) -> Encoded:
    """A row a scene."""
    files = [scene.path for scene in found.scenes]
    return Encoded(_Files(found), partial(stamps_of_files, Local(found.root).file, files))
