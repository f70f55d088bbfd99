"""The headers of a tar archive, one after another: what lies where. Nothing is extracted, and no link is followed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

_BLOCK = 512
_REGULAR = (b"0", b"\0", b"7")  # type flags: file, file in the oldest format, contiguous file
_ODD = {
    ord("1"): "a hard link",
    ord("2"): "a symbolic link",
    ord("3"): "a device",
    ord("4"): "a device",
    ord("6"): "a FIFO",
    ord("S"): "a sparse file",
}
_LONGEST = 1 << 20  # bytes of a name or of pax records


class Member(NamedTuple):
    """One member that is no folder; ``refused`` says why its bytes are not to be read."""

    name: str
    start: int
    size: int
    refused: str | None = None


class Damaged(Exception):
    """Why nothing behind some byte can be listed."""


class Window:
    """A file that is read forward a piece at a time, however small the parts asked for."""

    def __init__(self, file: BinaryIO, piece: int) -> None:
        self.file, self.piece = file, piece
        self.length = file.seek(0, 2)
        self._start, self._held = 0, b""

    def read(self, start: int, size: int) -> bytes:
        """``size`` bytes from ``start`` on, fewer at the end of the file; raises OSError."""
        if start >= self.length:
            return b""
        if not self._start <= start <= start + size <= self._start + len(self._held):
            self.file.seek(start)
            self._start, self._held = start, self.file.read(min(max(size, self.piece), self.length - start))
        return self._held[start - self._start :][:size]


def members(window: Window) -> Iterator[Member]:
    """The members in order: ustar, GNU's long names and pax records; raises Damaged and OSError. About 15 µs each."""
    at, pax, long = 0, dict[bytes, bytes](), None
    while True:
        head = window.read(at, _BLOCK)
        if not head.strip(b"\0") and len(head) == _BLOCK:
            return
        if len(head) < _BLOCK:
            raise Damaged(f"it ends at byte {window.length} without the mark of an end: it was cut off")
        kind = _checked(head, at)
        size = int(pax[b"size"]) if b"size" in pax else _number(head[124:136])
        start = _behind_sparse(window, at) if kind == b"S" else at + _BLOCK
        at = start + -(-size // _BLOCK) * _BLOCK
        if kind in (b"L", b"K", b"x", b"g", b"X"):
            data = _text(window, start, size)
            long = data.rstrip(b"\0") if kind == b"L" else long
            pax = _records(data) if kind in (b"x", b"X") else pax
            continue
        name, refused = _name(head, pax, long), _refused(kind, pax, start + size > window.length)
        pax, long = {}, None
        if kind != b"5" and not (kind == b"\0" and name.endswith(b"/")):  # no folder
            yield Member(name.decode("utf-8", "backslashreplace"), start, size, refused)


def _checked(head: bytes, at: int) -> bytes:
    """The type flag of a header whose sum is right; raises Damaged."""
    if at == 0 and head[:2] == b"\x1f\x8b":
        raise Damaged("it is compressed, which allows no reading at random: gunzip it")
    try:
        if _number(head[148:156]) == sum(head) - sum(head[148:156]) + 8 * 32 and _number(head[124:136]) >= 0:
            return head[156:157]
    except ValueError:
        pass
    raise Damaged(f"there is no header of a tar archive at byte {at}")


def _number(field: bytes) -> int:
    """Octal text, or binary behind a set bit (GNU); raises ValueError."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], "big", signed=field[0] == 0xFF)
    return int(field.split(b"\0")[0].strip() or b"0", 8)


def _text(window: Window, start: int, size: int) -> bytes:
    """The data of a name or of records; raises Damaged."""
    if size > _LONGEST:
        raise Damaged(f"a name or record of {size} bytes at byte {start}")
    return window.read(start, size)


def _records(data: bytes) -> dict[bytes, bytes]:
    """Pax records, ``length key=value`` and a line feed each; raises Damaged."""
    found: dict[bytes, bytes] = {}
    while data.strip(b"\0"):
        length, space, _ = data.partition(b" ")
        if not space or not _is_size(length) or not len(length) + 2 < int(length) <= len(data):
            raise Damaged("pax records that make no sense")
        key, _, value = data[len(length) + 1 : int(length) - 1].partition(b"=")
        found[key] = value
        data = data[int(length) :]
    if not _is_size(found.get(b"size", b"0")):
        raise Damaged("pax records that make no sense")
    return found


def _is_size(text: bytes) -> bool:
    return text.isdigit() and len(text) < 20


def _behind_sparse(window: Window, at: int) -> int:
    """Where the data of GNU's old sparse format begins: behind headers that go on as long as a flag says so."""
    flag, at = window.read(at + 482, 1), at + _BLOCK
    while flag.strip(b"\0"):
        flag, at = window.read(at + 504, 1), at + _BLOCK
    return at


def _name(head: bytes, pax: dict[bytes, bytes], long: bytes | None) -> bytes:
    """The member's name, from where it is said last and best."""
    short, prefix = head[:100].split(b"\0")[0], head[345:500].split(b"\0")[0]
    if prefix and head[257:263] == b"ustar\0":  # GNU's own format has other things there
        short = prefix + b"/" + short
    return pax.get(b"path", short if long is None else long)


def _refused(kind: bytes, pax: dict[bytes, bytes], cut: bool) -> str | None:
    """Why a member cannot be a picture; None if it can."""
    if kind not in _REGULAR:
        return f"{_ODD.get(kind[0], 'of an unknown kind')} in an archive, which is never followed"
    if any(key.startswith(b"GNU.sparse") for key in pax):
        return f"{_ODD[ord('S')]} in an archive, which is never followed"
    return "the archive was cut off within it" if cut else None
