"""Zip archives of pictures: found by the central directory, inflated one member at a time and only up to a limit."""

from __future__ import annotations

import stat
import struct
import zlib
from array import array
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.data.formats.archives import plain
from lookalike.data.formats.disk import Disk
from lookalike.data.formats.encoded import Value
from lookalike.data.formats.files import printable
from lookalike.data.image.decode import SUFFIXES, Unreadable

_LARGEST = 128 << 20  # bytes of one picture when inflated, which 130 KB can ask for
_HEADER = struct.Struct("<4s22xHH")  # of a member: mark, and lengths of name and extra field


class Zip:
    """One archive and its index: 40 bytes a row beside its name."""

    def __init__(self, disk: Disk, path: str) -> None:
        """Raises UserError where there is no central directory to read."""
        self.path, self._file, self._disk = printable(path), path, disk
        self.unlisted: dict[str, str] = {}
        found: dict[str, ZipInfo] = {}
        try:
            with disk.file(path) as file, ZipFile(file) as archive:
                for info in archive.infolist():
                    self._sort(info, found)
        except (OSError, ValueError, BadZipFile, NotImplementedError, struct.error) as error:
            reason = str(error) or type(error).__name__
            raise UserError(
                f"{disk.name(path)}: no zip archive that can be read ({reason}); fetch it again", BAD_DATA
            ) from None
        self.names = list(found)
        self.values: list[Value | None] = [None] * len(found)
        self._members = array("q", (number for info in found.values() for number in _numbers(info)))

    def read(self, index: int) -> bytes:
        """The bytes of one picture; raises Unreadable."""
        at, packed, size, crc, method = self._members[5 * index : 5 * index + 5]
        mark, name, extra = _HEADER.unpack(self._disk.span(self._file, at, _HEADER.size))
        if mark != b"PK\3\4":
            raise Unreadable("the archive's directory leads to no member")
        data = self._disk.span(self._file, at + _HEADER.size + name + extra, packed)
        if method == ZIP_DEFLATED:
            data = _inflated(data, size)
        if len(data) != size or zlib.crc32(data) != crc:
            raise Unreadable("damaged in the archive: size or checksum is not what the directory says")
        return data

    def _sort(self, info: ZipInfo, found: dict[str, ZipInfo]) -> None:
        """One member, to where it belongs; of members of one name the last counts."""
        name, refused = plain(info.filename)
        if info.is_dir() or not info.filename.lower().endswith(SUFFIXES):
            return
        refused = refused or (_refused(info) if name else None)
        if refused is not None:
            self.unlisted[f"{self.path}/{info.filename}"] = refused
        elif name:
            found[name] = info


def _refused(info: ZipInfo) -> str | None:
    """Why a member is not read."""
    if stat.S_ISLNK(info.external_attr >> 16):
        return "a symbolic link in an archive, which is never followed"
    if info.flag_bits & 1:
        return "it is encrypted"
    if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        return f"compressed by method {info.compress_type}: stored and deflated members are read"
    if max(info.file_size, info.compress_size) > _LARGEST:
        return f"{info.file_size} bytes are more than the limit of {_LARGEST}"
    return None


def _numbers(info: ZipInfo) -> tuple[int, int, int, int, int]:
    return info.header_offset, info.compress_size, info.file_size, info.CRC, info.compress_type


def _inflated(data: bytes, size: int) -> bytes:
    """At most one byte more than ``size``, whatever the data asks for; raises Unreadable."""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
    except zlib.error:
        raise Unreadable("damaged in the archive: it cannot be inflated") from None
