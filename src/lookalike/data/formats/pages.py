"""The pages of one parquet column of bytes, so that memory does not grow with a row group, which may be a whole file.

A page is 1 MiB, or the 1,024 rows after which pyarrow looks at its size. What pyarrow has no call for is done here for
the layouts that pictures come in: flat columns, plain or dictionary encoding, pages of version 1 and 2
(apache/parquet-format: parquet.thrift, Encodings.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from lookalike.data.formats.tar import Window

CODECS = {"UNCOMPRESSED": None, "SNAPPY": "snappy", "GZIP": "gzip", "ZSTD": "zstd", "BROTLI": "brotli"}
_PLAIN, _DICTIONARIES = 0, (2, 8)  # encodings
_V1, _DICTIONARY, _V2 = 0, 2, 3  # kinds of page
_LARGEST, _MOST = 1 << 29, 1 << 24  # bytes of a page when decompressed, and rows
_DEEPEST = 4  # structs in a page's header


class Unknown(Exception):
    """A layout that only a whole parquet reader reads."""


class Damaged(OSError):
    """Bytes that are no parquet pages."""


class Page(NamedTuple):
    """Where one page's body lies, which rows it holds, and how."""

    first: int  # row of the column chunk; -1 for the dictionary
    rows: int
    start: int
    size: int  # in the file
    whole: int  # bytes when decompressed
    kind: int
    encoding: int
    levels: int  # bytes of definition levels before the values, version 2 only
    packed: bool


class Chunk(NamedTuple):
    """What the footer says of one column chunk."""

    start: int
    end: int
    rows: int
    codec: str | None
    depth: int  # definition level of a value that is there

    @classmethod
    def of(cls, meta: Any, group: int, column: int) -> Chunk:
        """From pyarrow's metadata; raises Unknown."""
        found, schema = meta.row_group(group).column(column), meta.schema.column(column)
        if found.compression not in CODECS or schema.max_repetition_level or found.physical_type != "BYTE_ARRAY":
            raise Unknown
        start = found.data_page_offset
        if found.has_dictionary_page and found.dictionary_page_offset:
            start = min(start, found.dictionary_page_offset)
        end = start + found.total_compressed_size
        return cls(start, end, found.num_values, CODECS[found.compression], schema.max_definition_level)


def pages(window: Window, chunk: Chunk) -> list[Page]:
    """Every page of a chunk, by its headers alone; raises Unknown, Damaged and OSError."""
    found, at, first = list[Page](), chunk.start, 0
    while first < chunk.rows:
        if at >= chunk.end:
            raise Damaged("its pages hold fewer rows than its footer says")
        header, length = _header(window, at)
        page = _page(header, first, at + length)
        if not all(isinstance(number, int) for number in page):
            raise Damaged("a page's header that makes no sense")
        if (
            not 0 <= page.size <= chunk.end - page.start
            or not 0 <= page.rows <= _MOST
            or not 0 <= page.whole <= _LARGEST
        ):
            raise Damaged("a page's header that makes no sense")
        if page.encoding != _PLAIN and page.encoding not in _DICTIONARIES:
            raise Unknown
        found.append(page)
        first, at = first + (page.rows if page.first >= 0 else 0), page.start + page.size
    return found


def _page(header: dict[int, Any], first: int, start: int) -> Page:
    """A page of whatever kind its header says; raises Unknown and Damaged."""
    kind, whole, size = header.get(1), header.get(2, 0), header.get(3, 0)
    try:
        if kind == _V1:
            return Page(first, header[5][1], start, size, whole, kind, header[5][2], 0, True)
        if kind == _V2:
            inside = header[8]
            if inside.get(6):
                raise Unknown  # levels of repetition
            return Page(first, inside[1], start, size, whole, kind, inside[4], inside[5], inside.get(7, True))
        if kind == _DICTIONARY:
            return Page(-1, header[7][1], start, size, whole, kind, _PLAIN, 0, True)
    except (KeyError, TypeError, AttributeError):
        raise Damaged("a page's header that makes no sense") from None
    raise Unknown


def values(data: bytes, page: Page, chunk: Chunk, dictionary: list[bytes]) -> list[bytes | None]:
    """The rows of a page whose body is ``data``; raises Damaged, OSError and pa.ArrowException."""
    try:
        levels, body = data[: page.levels], data[page.levels :]
        if chunk.codec is not None and page.packed:
            body = pa.decompress(body, page.whole - page.levels, chunk.codec, asbytes=True)
        if page.kind == _V1 and chunk.depth:
            length = int.from_bytes(body[:4], "little")
            levels, body = body[4 : 4 + length], body[4 + length :]
        there = [True] * page.rows
        if page.kind != _DICTIONARY and chunk.depth:
            there = [level == chunk.depth for level in _hybrid(levels, chunk.depth.bit_length(), page.rows)]
        count = sum(there)
        if page.encoding == _PLAIN:
            found = iter(_plain(body, count))
        else:
            found = iter([dictionary[i] for i in _hybrid(body[1:], body[0], count)])
        return [next(found) if is_there else None for is_there in there]
    except (IndexError, ValueError, OverflowError, StopIteration):
        raise Damaged("a page that cannot be read") from None


def _plain(body: bytes, count: int) -> list[bytes]:
    """Values behind their lengths; raises ValueError."""
    found, at = list[bytes](), 0
    for _ in range(count):
        end = at + 4 + int.from_bytes(body[at : at + 4], "little")
        if end > len(body) or at + 4 > len(body):
            raise ValueError
        found.append(body[at + 4 : end])
        at = end
    return found


def _hybrid(data: bytes, bits: int, count: int) -> list[int]:
    """``count`` numbers of ``bits`` bits in runs that are repeated or packed; raises IndexError and ValueError."""
    if bits > 32:
        raise ValueError
    found, at, width = list[int](), 0, (bits + 7) // 8
    while len(found) < count:
        head, at = _varint(data, at)
        if head & 1:
            size = (head >> 1) * bits
            packed, mask = int.from_bytes(data[at : at + size], "little"), (1 << bits) - 1
            length = min((head >> 1) * 8, count - len(found))
            if (size and at + (length * bits + 7) // 8 > len(data)) or not length:
                raise ValueError
            found += _unpacked(packed, bits, mask, length)
            at += size
        else:
            length = min(head >> 1, count - len(found))
            if at + width > len(data) or not length:
                raise ValueError
            found += [int.from_bytes(data[at : at + width], "little")] * length
            at += width
    return found


def _unpacked(packed: int, bits: int, mask: int, length: int) -> Iterator[int]:
    """Numbers from one long number, 64 at a time, since each shift of it costs its length."""
    for start in range(0, length, 64):
        part = packed >> (start * bits) & ((1 << (64 * bits)) - 1)
        for i in range(min(64, length - start)):
            yield part >> (i * bits) & mask


def _header(window: Window, at: int) -> tuple[dict[int, Any], int]:
    """A page's header and its length; it may hold statistics as large as pictures. Raises Damaged and OSError."""
    for size in (256, 16 << 10, 1 << 20):
        try:
            return _struct(window.read(at, size), 0, _DEEPEST)
        except IndexError:
            continue
    raise Damaged(f"no page's header at byte {at}")


def _struct(data: bytes, at: int, deep: int) -> tuple[dict[int, Any], int]:
    """A struct in Thrift's compact protocol, by field number; raises IndexError where it ends early, and Damaged."""
    fields, last = dict[int, Any](), 0
    while data[at]:
        kind, last, at = data[at] & 15, last + (data[at] >> 4), at + 1
        if not data[at - 1] >> 4:
            last, at = _zigzag(data, at)
        if kind in (1, 2):
            fields[last] = kind == 1
        elif kind in (4, 5, 6):
            fields[last], at = _zigzag(data, at)
        elif kind == 8:
            length, at = _varint(data, at)
            at += length
        elif kind == 12 and deep:
            fields[last], at = _struct(data, at, deep - 1)
        else:
            raise Damaged("a page's header that makes no sense")
    return fields, at + 1


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        number |= (data[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if not data[at - 1] & 128:
            return number, at
        if shift > 63:
            raise Damaged("a number without an end")


def _zigzag(data: bytes, at: int) -> tuple[int, int]:
    number, at = _varint(data, at)
    return number >> 1 ^ -(number & 1), at
