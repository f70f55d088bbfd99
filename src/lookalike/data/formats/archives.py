"""Archives of pictures as a store: members are found by an index in memory, and read where they lie.

Tar shards may have WebDataset's layout: KEY.jpg with KEY.cls or KEY.json beside it. A key ends at the first dot of the
file name that words follow: ``v1.0.input.png`` is ``input.png`` of ``v1.0``. One row a key: its plain picture (KEY.jpg
before KEY.png), or else every picture among its members. Labels are the number or the word in KEY.cls, or a label named
in KEY.json; else folders, below one that may hold everything. Nothing is extracted or unpickled, and no link is
followed. Zip archives are found by their directory, and inflated one member at a time up to a limit.
"""

from __future__ import annotations

import bisect
import io
import os
import re
import stat
import struct
import tarfile
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain
from typing import Any, cast
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.core.files import json_in
from lookalike.data.decode import SUFFIXES, Unreadable
from lookalike.data.formats.disk import MAX_BYTES, Disk
from lookalike.data.formats.encoded import LABELS, Value, label_of, numbered
from lookalike.data.formats.files import (
    Names,
    by_folder,
    by_split,
    class_folder,
    class_names,
    is_hidden,
    is_thumbnail,
    one_form,
    outer_folder,
    printable,
    suffix_of,
    table_split,
    unread,
)

_LONGEST = 1 << 20  # bytes of a name or record in a tar, and of a .cls or .json
_CODE = (".pkl", ".pickle", ".pyd", ".pth", ".pt", ".npy", ".npz")  # what WebDataset's own reader may unpickle
_FIELDS = re.compile(r"(?<=.)(\.[A-Za-z_][^./]*)+$")  # of a sample: words behind dots
_LARGEST = 128 << 20  # bytes of one picture in a zip when inflated, which 130 KB can ask for
_HEADER = struct.Struct("<4s22xHH")  # of a member of a zip: mark, and lengths of name and extra field


class Archives:
    """The pictures of all archives. A picture without a label of its own has its class folder's, as in a folder."""

    def __init__(self, archives: Sequence[TarShard | Zip]) -> None:
        self._archives = archives
        self.starts = list(accumulate((len(archive.names) for archive in archives), initial=0))
        self.paths = Names(f"{archive.path}/{name}" for archive in archives for name in archive.names)
        self.unlisted = {path: reason for archive in archives for path, reason in archive.unlisted.items()}
        self.unlisted |= unread(sum((archive.others for archive in archives), Counter[str]()))
        outer = outer_folder(chain.from_iterable(archive.names for archive in archives))
        names = Names(name.removeprefix(outer) for archive in archives for name in archive.names)
        self.splits, below = self._divided(names)
        values = list(chain.from_iterable(archive.values for archive in archives))
        if all(value is None for value in values):
            values = class_folders(names, self.splits, below)
        self.labels, self.classes = numbered(values)

    def read(self, row: int) -> bytes:
        """The bytes of one picture; raises Unreadable."""
        archive = bisect.bisect_right(self.starts, row) - 1
        return self._archives[archive].read(row - self.starts[archive])

    def _divided(self, names: Sequence[str]) -> tuple[dict[str, list[int]], int]:
        """The rows of each split, by the archives' names, else by the first folder of ``names``; where classes lie."""
        by_archive = by_split([archive.path for archive in self._archives], table_split)
        if by_archive:
            numbers = {archive.path: i for i, archive in enumerate(self._archives)}
            rows = {
                name: [row for path in paths for row in range(*self.starts[numbers[path] :][:2])]
                for name, paths in by_archive.items()
            }
            return rows, 0
        rows = rows_by_folder(names)
        return rows, 1 if rows else 0


def rows_by_folder(names: Sequence[str]) -> dict[str, list[int]]:
    """The rows of each split by the first folder of their names; {} where these are not divided."""
    splits = {name: split for split, paths in by_folder(names).items() for name in paths}
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        if name in splits:
            rows.setdefault(splits[name], []).append(row)
    return rows


def class_folders(names: Sequence[str], splits: Mapping[str, Sequence[int]], below: int) -> list[Value | None]:
    """The folder that names the class of each picture, None outside of any; ``splits`` are the rows of each."""
    parts = [[names[row] for row in rows] for rows in splits.values()]
    classes = set(class_names(parts or [names], below))
    return [folder if (folder := class_folder(name, below)) in classes else None for name in names]


def plain(name: str) -> tuple[str | None, str | None]:
    """A member's name without ``./``, or None and why it is refused; both None for what a folder would hide."""
    parts = name.split("/")
    while parts[:1] == ["."]:
        parts.pop(0)
    if name.startswith("/") or ".." in parts or "\0" in name:
        return None, "its name leads out of the archive"
    if any(map(is_hidden, parts)) or is_thumbnail(name):
        return None, None
    return "/".join(parts), None


class TarShard:
    """One shard and its index: 16 bytes a row beside its name, by one walk over the headers at 50 µs each."""

    def __init__(self, disk: Disk, path: str) -> None:
        self.path, self._file, self._disk = printable(path), path, disk
        index = _TarIndex(self.path)
        try:
            with disk.file(path) as file, _Headers(cast(io.RawIOBase, file), disk.piece) as headers:
                index.walk(headers)
        except OSError as error:
            raise UserError(f"{disk.name(path)}: {error.strerror or error}; check the file", BAD_DATA) from None
        self.unlisted, self.others = index.unlisted, index.others  # members that are not read
        self.names = Names(_one_a_key(index.pictures))
        labels = _by_key(index.described) | _by_key(index.classes)
        self.values = [labels.get(name.rpartition(".")[0], labels.get(_keyed(name)[0])) for name in self.names]
        self._spans = array("q", (number for name in self.names for number in index.pictures[name]))

    def read(self, index: int) -> bytes:
        """The bytes of one picture; raises Unreadable."""
        start, size = self._spans[2 * index], self._spans[2 * index + 1]
        if size > MAX_BYTES:
            raise Unreadable(f"{size} bytes are more than the limit of {MAX_BYTES}")
        return self._disk.span(self._file, start, size)


class _DamagedTar(Exception):
    """Why nothing behind some byte can be listed."""


class _Headers(io.BufferedReader):
    """A tar that is read forward, a header at a time: no header makes anybody read more than a mebibyte.

    However many reads it is done in: newer Pythons read long names piece by piece.
    """

    left = _LONGEST  # bytes, until a new member is begun

    def read(self, size: int | None = -1, /) -> bytes:
        """``size`` bytes, fewer at the end of the file; raises OSError."""
        if size is None or not 0 <= size <= self.left:
            raise _DamagedTar("a name or record of more than a mebibyte")
        self.left -= size
        return super().read(size)


class _TarIndex:
    """What one walk over a shard finds; of members of one name the last counts, as in any tar."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.pictures: dict[str, tuple[int, int]] = {}  # first byte, and how many
        self.classes: dict[str, Value] = {}  # by name without .cls
        self.described: dict[str, Value] = {}  # by name without .json
        self.unlisted: dict[str, str] = {}
        self.others, self.code = Counter[str](), Counter[str]()  # by suffix

    def walk(self, file: _Headers) -> None:
        """Sort every member; raises OSError."""
        length = file.seek(0, io.SEEK_END)
        try:
            for member in _members(file, length):
                self.sort(member, file, length)
        except _DamagedTar as damaged:
            self.unlisted[self.path] = str(damaged)
        for suffix, count in self.code.items():
            self.unlisted[f"{self.path}/*{suffix}"] = f"{count} members may hold code, and are never read"

    def sort(self, member: tarfile.TarInfo, file: _Headers, length: int) -> None:
        if member.isdir():
            return
        shown = printable(member.name)
        name, refused = plain(shown)
        refused = refused or (_refused_in_tar(member, length) if name else None)
        if refused is not None:
            self.unlisted[f"{self.path}/{shown}"] = refused
        elif name:
            stem, suffix = name.rpartition(".")[0], suffix_of(name)
            if suffix in SUFFIXES:
                self.pictures[name] = member.offset_data, member.size
            elif suffix in _CODE:
                self.code[suffix] += 1
            elif suffix == ".cls" and (label := _written(_data(member, file))) is not None:
                self.classes[stem] = label
            elif suffix == ".json" and (label := _described(_data(member, file))) is not None:
                self.described[stem] = label
            else:
                self.others[suffix] += 1


def _members(file: _Headers, length: int) -> Iterator[tarfile.TarInfo]:
    """The members in order; raises _DamagedTar, also where the mark of the end is missing, and OSError."""
    file.seek(0)
    if file.peek(2)[:2] == b"\x1f\x8b":
        raise _DamagedTar("it is compressed, which allows no reading at random: gunzip it")
    at = 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while at < length and (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]  # it would keep a kilobyte a member
                file.left = _LONGEST
                if member.size < 0 or archive.offset <= at:  # or it would go round and round
                    break
                yield member
                at = archive.offset
    except (_DamagedTar, OSError):
        raise
    except Exception as error:  # tarfile has half a dozen for headers that lie
        if 0 < at < length:
            raise _DamagedTar(f"it is damaged behind byte {at} ({error})") from None
    file.seek(min(at, length))
    file.left = _LONGEST
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise _DamagedTar(f"it ends at byte {length} without the mark of an end: it was cut off")
    if block.strip(b"\0"):
        raise _DamagedTar(f"there is no header of a tar archive at byte {at}")


def _refused_in_tar(member: tarfile.TarInfo, length: int) -> str | None:
    kinds = {
        tarfile.LNKTYPE: "a hard link",
        tarfile.SYMTYPE: "a symbolic link",
        tarfile.CHRTYPE: "a device",
        tarfile.BLKTYPE: "a device",
        tarfile.FIFOTYPE: "a FIFO",
    }
    sparse = member.issparse() or any(name.startswith("GNU.sparse") for name in member.pax_headers)
    if sparse or not member.isreg():
        kind = "a sparse file" if sparse else kinds.get(member.type, "of an unknown kind")
        return f"{kind} in an archive, which is never followed"
    return "the archive was cut off within it" if member.offset_data + member.size > length else None


def _data(member: tarfile.TarInfo, file: _Headers) -> bytes:
    """The bytes of a small member; of one that is no label, nothing."""
    file.seek(member.offset_data)
    data = file.read(member.size) if member.size <= _LONGEST else b""
    file.left = _LONGEST
    return data


def _keyed(name: str) -> tuple[str, str]:
    """The key of a sample, with its folder, and the rest of the name in lower case: the words behind dots at its end.

    A part that begins with a digit belongs to the key, as does all before it: names such as ``v1.0.png`` hold dots.
    """
    folder, slash, base = name.rpartition("/")
    match = _FIELDS.search(base)
    start = match.start() if match else len(base)
    return folder + slash + base[:start], base[start:].lower()


def _by_key(labels: Mapping[str, Value]) -> dict[str, Value]:
    """Labels by the whole name of their file, and by its key where that has no other label."""
    keyed: dict[str, set[Value]] = {}
    for name, label in labels.items():
        keyed.setdefault(_keyed(f"{name}.cls")[0], set()).add(label)
    return {key: next(iter(some)) for key, some in keyed.items() if len(some) == 1} | dict(labels)


def _one_a_key(names: Iterable[str]) -> list[str]:
    plain_ones: dict[str, tuple[int, str]] = {}
    for name in names:
        key, suffix = _keyed(name)
        if suffix in SUFFIXES:
            best = (SUFFIXES.index(suffix), name)
            plain_ones[key] = min(best, plain_ones.get(key, best))
    return [name for name in names if plain_ones.get(_keyed(name)[0], (0, name))[1] == name]


def _written(data: bytes) -> Value | None:
    """The number or the word that a .cls holds as text, else None; 01 is a word, since it is not 1."""
    text = one_form(os.fsdecode(data[:200].strip()))
    number = text.removeprefix("-")
    if number.isascii() and number.isdigit() and (number == "0" or number[0] != "0"):
        return int(text) if len(text) < 20 else None
    return text if text.isprintable() else None


def _described(data: bytes) -> Value | None:
    """The first label that a .json names: a whole number, a word, or yes and no; else None."""
    try:
        description: Any = json_in(data)
    except ValueError:
        return None
    values = [description.get(name) for name in ("cls", *LABELS)] if isinstance(description, dict) else []
    values.sort(key=lambda value: isinstance(value, bool))  # yes and no only where nothing else is said
    return next((label for value in values if (label := label_of(value)) is not None), None)


class Zip:
    """One archive and its index: 40 bytes a row beside its name."""

    def __init__(self, disk: Disk, path: str) -> None:
        self.path, self._file, self._disk = printable(path), path, disk
        self.unlisted, self.others = dict[str, str](), Counter[str]()
        members: dict[str, ZipInfo] = {}
        try:
            with disk.file(path) as file, ZipFile(file) as archive:
                for info in archive.infolist():
                    self._sort(info, members)
        except (OSError, ValueError, BadZipFile, NotImplementedError, struct.error) as error:
            reason = str(error) or type(error).__name__
            raise UserError(
                f"{disk.name(path)}: no zip archive that can be read ({reason}); fetch it again", BAD_DATA
            ) from None
        self.names = Names(members)
        self.values: list[Value | None] = [None] * len(members)
        self._members = array("q")
        for info in members.values():
            self._members.extend((info.header_offset, info.compress_size, info.file_size, info.CRC, info.compress_type))

    def read(self, index: int) -> bytes:
        """The bytes of one picture; raises Unreadable."""
        at, packed, size, crc, method = self._members[5 * index : 5 * index + 5]
        mark, name, extra = _HEADER.unpack(self._disk.span(self._file, at, _HEADER.size))
        if mark != b"PK\3\4":
            raise Unreadable("the archive's directory leads to no member")
        data = self._disk.span(self._file, at + _HEADER.size + name + extra, packed)
        if method == ZIP_DEFLATED:
            try:  # at most one byte more than the directory says, whatever the data asks for
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
            except zlib.error:
                raise Unreadable("damaged in the archive: it cannot be inflated") from None
        if len(data) != size or zlib.crc32(data) != crc:
            raise Unreadable("damaged in the archive: size or checksum is not what the directory says")
        return data

    def _sort(self, info: ZipInfo, members: dict[str, ZipInfo]) -> None:
        """One member, to where it belongs; of members of one name the last counts."""
        name, refused = plain(info.filename)
        if info.is_dir() or not info.filename.lower().endswith(SUFFIXES):
            self.others[suffix_of(info.filename)] += not info.is_dir() and name is not None
            return
        refused = refused or (_refused_in_zip(info) if name else None)
        if refused is not None:
            self.unlisted[f"{self.path}/{info.filename}"] = refused
        elif name:
            members[name] = info


def _refused_in_zip(info: ZipInfo) -> str | None:
    if stat.S_ISLNK(info.external_attr >> 16):
        return "a symbolic link in an archive, which is never followed"
    if info.flag_bits & 1:
        return "it is encrypted"
    if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        return f"compressed by method {info.compress_type}: stored and deflated members are read"
    if max(info.file_size, info.compress_size) > _LARGEST:
        return f"{info.file_size} bytes are more than the limit of {_LARGEST}"
    return None
