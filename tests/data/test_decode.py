"""Whatever bytes come in, a canvas or a reason goes out."""

from __future__ import annotations

import io
import struct
import sys
import threading
import tracemalloc
import warnings
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from lookalike.data import decode as decoding
from lookalike.data.decode import FINE, MAX_PIXELS, SUFFIXES, Canvas, Unreadable, decode, header

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def flag() -> Image.Image:
    """40 x 20, left half red, right half blue, top left corner green."""
    image = Image.new("RGB", (40, 20), RED)
    image.paste(BLUE, (20, 0, 40, 20))
    image.paste(GREEN, (0, 0, 10, 10))
    return image


def at(canvas: Canvas, y: int, x: int) -> tuple[int, ...]:
    return tuple(canvas.pixels[:, y, x].tolist())


def near(one: tuple[int, ...], other: tuple[int, ...], tolerance: int = 12) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(one, other, strict=True))


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header asks for more than it holds."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"])
def test_kinds(kind: str) -> None:
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    data = encoded(flag(), kind, **options)
    canvas = decode(data, 20)
    assert canvas.pixels.shape == (3, 20, 20)
    assert canvas.pixels.dtype == torch.uint8
    assert (canvas.height, canvas.width) == (20, 40)
    assert header(data)[:3] == (kind, 20, 40)
    tolerance = 30 if kind in ("JPEG", "AVIF") else 2
    assert near(at(canvas, 2, 1), GREEN, tolerance)
    assert near(at(canvas, 17, 5), RED, tolerance)
    assert near(at(canvas, 17, 16), BLUE, tolerance)


def test_the_canvas_has_the_size_of_the_picture() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    canvas = decode(encoded(Image.fromarray(noise)), 16)
    assert np.array_equal(canvas.pixels.permute(1, 2, 0).numpy(), noise)


def test_reduces_without_aliasing() -> None:
    board = Image.fromarray((np.indices((512, 512)).sum(0) % 2 * 255).astype(np.uint8))
    for kind in ("PNG", "JPEG"):
        canvas = decode(encoded(board, kind), 32)
        assert (canvas.pixels.float() - 127.5).abs().max() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_orientation(kind: str, orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100} if kind in ("JPEG", "WEBP", "AVIF") else {}
    data = encoded(flag(), kind, exif=exif, **options)
    upright = flag()
    upright.getexif()[0x0112] = orientation
    upright = ImageOps.exif_transpose(upright)
    canvas, wanted = decode(data, 20), decode(encoded(upright), 20)
    assert (canvas.height, canvas.width) == (wanted.height, wanted.width)
    assert header(data)[1:3] == (wanted.height, wanted.width)
    assert (canvas.pixels.float() - wanted.pixels.float()).abs().mean() < 8


XMP = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of these chunks."""
    whole = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"".join((b"\x89PNG\r\n\x1a\n", *whole))


def turned_png(kind: bytes, content: bytes, behind: bool) -> bytes:
    """The flag with one chunk more, before or behind the pixels."""
    pixels = zlib.compress(b"".join(b"\0" + row.tobytes() for row in np.asarray(flag())))
    head = b"IHDR", struct.pack(">IIBBBBB", 40, 20, 8, 2, 0, 0, 0)
    more, image = (kind, content), (b"IDAT", pixels)
    return png(head, *((image, more) if behind else (more, image)), (b"IEND", b""))


EXIF6 = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
MAGICK = b"Raw profile type exif\0\0" + zlib.compress(f"\nexif\n{len(EXIF6)}\n{EXIF6.hex()}\n".encode())


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize(
    ("kind", "content"),
    [(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP.encode()), (b"eXIf", EXIF6), (b"zTXt", MAGICK)],
)
def test_header_and_pixels_of_a_turned_png_agree(kind: bytes, content: bytes, behind: bool) -> None:
    data = turned_png(kind, content, behind)
    canvas = decode(data, 20)
    assert (canvas.height, canvas.width) == header(data)[1:3] == (40, 20)
    assert near(at(canvas, 2, 17), GREEN)
    with pytest.raises(Unreadable):  # the first bytes of a file do not tell: whoever reads them must read on
        header(data[:-30])


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "TIFF", "AVIF"])
def test_header_and_pixels_turned_by_xmp_agree(kind: str) -> None:
    options: dict[str, Any] = {"tiffinfo": {700: XMP.encode()}} if kind == "TIFF" else {"xmp": XMP.encode()}
    data = encoded(flag(), kind, **options)
    canvas = decode(data, 20)
    assert (canvas.height, canvas.width) == header(data)[1:3] == (40, 20)


def test_damaged_exif_does_not_spoil_a_picture() -> None:
    data = encoded(flag(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f" + b"\xff" * 40)
    assert (decode(data, 8).height, decode(data, 8).width) == (20, 40)


def test_alpha_is_put_on_white() -> None:
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert at(decode(encoded(clear), 4), 1, 1) == WHITE
    half = Image.new("RGBA", (8, 8), (255, 0, 0, 128))
    assert near(at(decode(encoded(half), 4), 1, 1), (255, 127, 127), 2)
    assert at(decode(encoded(Image.new("LA", (8, 8), (0, 0))), 4), 1, 1) == WHITE


def test_colour_under_alpha_does_not_bleed() -> None:
    image = Image.new("RGBA", (64, 64), (0, 255, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 32, 64))
    pixels = decode(encoded(image), 7).pixels
    assert (pixels[1].int() - pixels[2].int()).max() <= 2  # the hidden green is nowhere; white has as much blue


def test_palette_with_transparency() -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (4, 0, 8, 8))
    canvas = decode(encoded(image, "PNG", transparency=0), 8)
    assert (at(canvas, 4, 1), at(canvas, 4, 6)) == (WHITE, BLUE)
    assert at(decode(encoded(image), 8), 4, 1) == RED
    assert at(decode(encoded(image, "GIF", transparency=0), 8), 4, 1) == WHITE


@pytest.mark.parametrize(("side", "filter"), [(FINE - 1, Image.Resampling.BILINEAR), (FINE, Image.Resampling.BICUBIC)])
def test_large_canvases_are_resized_by_pillows_cubic_and_small_ones_by_its_line(side: int, filter: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 500, 3), dtype=np.uint8)
    found = decode(encoded(Image.fromarray(noise)), side).pixels.permute(1, 2, 0).numpy()
    wanted = np.asarray(Image.fromarray(noise).resize((side, side), filter))
    assert np.abs(found.astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bits_are_scaled(kind: str) -> None:
    ramp = np.linspace(0, 65535, 256, dtype=np.uint16)[None].repeat(256, 0)
    canvas = decode(encoded(Image.fromarray(ramp), kind), 256)
    wanted = torch.from_numpy((ramp / 257).round())
    assert (canvas.pixels[0] - wanted).abs().max() <= 1
    assert torch.equal(canvas.pixels[0], canvas.pixels[2])


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG2000"])
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_the_bits_of_16_that_a_picture_uses_are_its_range(kind: str, bits: int) -> None:
    ramp = np.linspace(0, 2**bits - 1, 256, dtype=np.uint16)[None].repeat(256, 0)
    options = {"irreversible": False} if kind == "JPEG2000" else {}
    found = decode(encoded(Image.fromarray(ramp), kind, **options), 256).pixels[0].numpy()
    assert np.abs(found - np.arange(256)).max() <= 1


def test_big_endian_samples_are_read_as_such() -> None:
    ramp = np.linspace(0, 4095, 256, dtype=np.uint16)[None].repeat(4, 0)
    tags = {256: (4, 256), 257: (4, 4), 258: (3, 16), 259: (3, 1), 262: (3, 1), 273: (4, 8), 278: (4, 4)}
    pixels, entries = ramp.astype(">u2").tobytes(), b""
    for tag, (kind, value) in {**tags, 279: (4, ramp.nbytes)}.items():
        entries += struct.pack(">HHI", tag, kind, 1) + struct.pack(">I" if kind == 4 else ">Hxx", value)
    data = b"MM\0*" + struct.pack(">I", 8 + len(pixels)) + pixels + struct.pack(">H", 8) + entries + bytes(4)
    assert np.abs(decode(data, 256).pixels[0, 0].numpy().astype(int) - np.arange(256)).max() <= 1


@pytest.mark.parametrize(("kind", "channels"), [(2, 3), (4, 2), (6, 4)])
@pytest.mark.parametrize("bits", [8, 12, 14, 16])
def test_colour_of_16_bits(kind: int, channels: int, bits: int) -> None:
    values = np.random.default_rng(0).integers(0, 2**bits, (8, 8, channels)).astype(np.uint16)
    values[0, 0, 0] = 2**bits - 1
    if kind & 4:
        values[..., -1] = 65535  # opaque
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", 8, 8, 16, kind, 0, 0, 0)
    data = png((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    wanted = (values[..., :-1] if kind & 4 else values) >> (bits - 8)
    assert np.array_equal(decode(data, 8).pixels.permute(1, 2, 0).numpy(), np.broadcast_to(wanted, (8, 8, 3)))


def test_what_is_no_number_is_black_and_moves_no_range() -> None:
    values = np.array([[np.nan, 100], [np.inf, 200]], np.float32)
    assert decode(encoded(Image.fromarray(values), "TIFF"), 2).pixels[0].tolist() == [[0, 0], [0, 255]]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_wide_gray_is_stretched(dtype: type) -> None:
    image = Image.fromarray(np.array([[-5, 0], [5, 15]], dtype=dtype))
    assert decode(encoded(image, "TIFF"), 2).pixels[0].tolist() == [[0, 64], [128, 255]]
    flat = Image.fromarray(np.full((4, 4), 7, dtype=dtype))
    assert not decode(encoded(flat, "TIFF"), 2).pixels.any()


def test_cmyk_and_two_colours() -> None:
    cmyk = decode(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"), 8)
    assert near(at(cmyk, 4, 4), RED)
    assert at(decode(encoded(Image.new("1", (16, 16), 1)), 8), 4, 4) == WHITE


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_animations_show_their_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, GREEN, BLUE)]
    canvas = decode(encoded(frames[0], kind, save_all=True, append_images=frames[1:]), 8)
    assert near(at(canvas, 4, 4), RED)


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1)])
def test_odd_shapes(size: tuple[int, int]) -> None:
    canvas = decode(encoded(Image.new("RGB", size, RED), "JPEG"), 16)
    assert (canvas.width, canvas.height) == size
    assert near(at(canvas, 8, 8), RED)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.9])
def test_truncated(kind: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    with pytest.raises(Unreadable) as caught:
        decode(data[: int(share * len(data))], 16)
    assert caught.value.reason
    assert "\n" not in caught.value.reason
    assert "0x" not in caught.value.reason


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"<!DOCTYPE html><html>not found</html>", b"\xff\xd8\xff", b"GIF89a", b"%!PS-Adobe-3.0 EPSF"]
)
def test_no_picture(data: bytes) -> None:
    for read in (header, lambda data: decode(data, 8)):
        with pytest.raises(Unreadable):
            read(data)


def test_a_kind_outside_of_the_allowlist_is_refused() -> None:
    for kind in ("EPS", "TGA", "ICO", "PCX"):
        with pytest.raises(Unreadable):
            decode(encoded(flag(), kind), 8)


@pytest.mark.parametrize("size", [(60_000, 60_000), (11_000, 10_000), (2**31 - 1, 1), (0, 5)])
def test_bombs_are_refused_by_their_header(size: tuple[int, int]) -> None:
    assert size[0] * size[1] > MAX_PIXELS or 0 in size
    tracemalloc.start()
    try:
        with pytest.raises(Unreadable):
            decode(bomb(*size), 32)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
    finally:
        tracemalloc.stop()


def test_no_warning_escapes_and_filters_are_restored() -> None:
    before = list(warnings.filters)
    data = [
        bomb(9_600, 9_600),
        encoded(flag(), "JPEG", exif=b"Exif\0\0II*\0\xff"),
        encoded(flag()),
    ]  # 92 million pixels

    def work() -> None:
        for _ in range(20):
            for one in data:
                header(one)  # Pillow warns of the first's size here already
            decode(data[2], 8)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"<!DOCTYPE html><html><body>403</body></html>", "a page of the web"),
        (b"\n<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"%PDF-1.7", "a PDF"),
    ],
)
def test_what_is_known_to_be_no_picture_is_named(data: bytes, reason: str) -> None:
    with pytest.raises(Unreadable, match=reason):
        decode(data, 8)


def test_neither_warnings_nor_logged_lines_of_damaged_files_are_shown(caplog: pytest.LogCaptureFixture) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\x01\0\0\0\x06"  # cut off
    assert decode(encoded(flag(), "JPEG", exif=exif), 8).pixels.shape == (3, 8, 8)
    tiff = encoded(flag(), "TIFF").replace(
        struct.pack("<HHIHxx", 277, 3, 1, 3), struct.pack("<HHIHxx", 277, 3, 1, 65535)
    )
    with pytest.raises(Unreadable):
        decode(tiff, 8)
    assert caplog.text == ""


def test_pictures_of_a_telephone() -> None:
    plugin = pytest.importorskip("pillow_heif")
    for orientation in (1, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        file = io.BytesIO()
        plugin.from_pillow(flag()).save(file, quality=100, exif=exif.tobytes())
        data = file.getvalue()
        canvas = decode(data, 20)
        assert header(data)[1:3] == (canvas.height, canvas.width) == ((20, 40) if orientation == 1 else (40, 20))
        assert near(at(canvas, 2, 1 if orientation == 1 else 17), GREEN, 30)
    assert {".heic", ".heif"} < set(SUFFIXES)


def test_jpeg_xl(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pillow_jxl")
    exif = Image.Exif()
    exif[0x0112] = 6  # which JPEG XL says in its own way, and else ignores
    for options in ({}, {"exif": exif.tobytes()}):
        data = encoded(flag(), "JXL", lossless=True, **options)
        canvas = decode(data, 20)
        assert header(data)[1:3] == (canvas.height, canvas.width) == (20, 40)
        assert at(canvas, 2, 1) == GREEN
    monkeypatch.setattr(decoding, "MAX_PIXELS", 799)
    with pytest.raises(Unreadable, match="40x20"):
        decode(data, 20)


@pytest.mark.parametrize("size", [(1, 1), (300, 200), (123, 77), (4000, 1), (1600, 900)])
def test_the_size_of_a_jpeg_xl_is_known_before_it_is_decoded(size: tuple[int, int]) -> None:
    pytest.importorskip("pillow_jxl")
    image = Image.new("RGB", size)
    for options in ({}, {"exif": Image.Exif().tobytes() + EXIF6, "use_container": True}):
        assert decoding._jxl_size(encoded(image, "JXL", **options)) == size


@pytest.mark.parametrize(
    ("data", "wants"),
    [(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200), "heif"), (b"\xff\x0a" + bytes(50), "jxl")],
)
def test_what_an_extra_would_read_is_named(data: bytes, wants: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, {"heif": "pillow_heif", "jxl": "pillow_jxl"}[wants], None)
    monkeypatch.setitem(sys.modules, "pillow_jxl.JpegXLImagePlugin", None)
    with pytest.raises(Unreadable, match=rf"pip install 'lookalike\[{wants}\]'"):
        decode(data, 8)


@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"BM", b"P6 "]),
)
@settings(max_examples=200, deadline=None)
def test_noise_never_raises_anything_else(data: bytes, magic: bytes) -> None:
    with suppress(Unreadable):
        decode(magic + data, 8)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF"])
def test_flipped_bytes_never_raise_anything_else(kind: str) -> None:
    data, rng = encoded(flag(), kind), np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 3):
            damaged[place] = int(rng.integers(0, 256))
        with suppress(Unreadable):
            canvas = decode(bytes(damaged), 8)
            assert (canvas.pixels.shape, canvas.pixels.dtype) == ((3, 8, 8), torch.uint8)


@pytest.mark.shared
def test_real_odd_files(shared: Path) -> None:
    read = 0
    files = [*sorted((shared / "pillow_images").rglob("*")), *sorted((shared / "pngsuite").rglob("*.png"))]
    for path in files:
        if path.is_file() and path.name.lower().endswith(SUFFIXES):
            try:
                canvas = decode(path.read_bytes(), 16)
            except Unreadable:
                continue
            found = header(path.read_bytes())
            assert (found.height, found.width) == (canvas.height, canvas.width), path
            read += 1
    assert read > 100


@pytest.mark.shared
def test_real_orientations_look_alike(shared: Path) -> None:
    canvases = [decode((shared / "exif_orientation" / f"Landscape_{i}.jpg").read_bytes(), 64) for i in range(1, 9)]
    for canvas in canvases[1:]:
        assert (canvas.height, canvas.width) == (canvases[0].height, canvases[0].width)
        assert (canvas.pixels.float() - canvases[0].pixels.float()).abs().mean() < 12


JPEGS = st.fixed_dictionaries(
    {
        "size": st.tuples(st.integers(1, 700), st.integers(1, 700)),
        "mode": st.sampled_from(["RGB", "L"]),
        "quality": st.sampled_from([30, 75, 95]),
        "progressive": st.booleans(),
        "subsampling": st.sampled_from([0, 1, 2]),
        "orientation": st.integers(0, 9),
        "side": st.sampled_from([8, 32, 128]),
    }
)


def without_the_short_way(data: bytes, side: int) -> Canvas:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "simplejpeg", None)
        return decode(data, side)


def alike(one: Canvas, other: Canvas) -> bool:
    return torch.equal(one.pixels, other.pixels) and one[1:] == other[1:]


@given(JPEGS)
@settings(max_examples=60, deadline=None)
def test_the_short_way_gives_what_pillow_gives(asked: dict[str, Any]) -> None:
    pytest.importorskip("simplejpeg", reason="without it there is no short way")
    width, height = asked["size"]
    noise = np.random.default_rng(0).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((width, height)).convert(asked["mode"])
    exif = Image.Exif()
    if asked["orientation"]:
        exif[0x0112] = asked["orientation"]
    options = {name: asked[name] for name in ("quality", "progressive", "subsampling")}
    data = encoded(image, "JPEG", exif=exif, **options)
    found = decoding.jpeg_frame(data)
    assert found is not None
    assert decoding.jpeg_pixels(data, found, asked["side"]) is not None
    assert alike(decode(data, asked["side"]), without_the_short_way(data, asked["side"]))


@pytest.mark.parametrize("damage", ["cut", "noise", "tail"])
def test_what_the_short_way_does_not_know_is_left_to_pillow(damage: str) -> None:
    data = encoded(flag(), "JPEG")
    data = {"cut": data[:-40], "noise": data[:-60] + b"\xff\xd8" + data[-58:], "tail": data + b"\0" * 99}[damage]
    try:
        wanted = without_the_short_way(data, 16)
    except Unreadable:
        with pytest.raises(Unreadable):
            decode(data, 16)
    else:
        assert alike(decode(data, 16), wanted)


def test_the_short_way_is_for_ordinary_photos() -> None:
    cmyk = encoded(Image.new("CMYK", (8, 8)), "JPEG")
    xmp = encoded(flag(), "JPEG", xmp=b"<x:xmpmeta/>")
    for data in (b"", b"\xff\xd8\xff", encoded(flag(), "PNG"), cmyk, xmp, b"\xff\xd8" + b"\xff\xe1\0\2" * 9):
        assert decoding.jpeg_frame(data) is None


@pytest.mark.shared
@pytest.mark.parametrize("folder", ["coco_mini", "clothing_small", "pillow_images"])
def test_real_photos_by_both_ways(shared: Path, folder: str) -> None:
    pytest.importorskip("simplejpeg", reason="without it there is no short way")
    short = 0
    for path in sorted((shared / folder).rglob("*.jp*g"))[:60]:
        data = path.read_bytes()
        try:
            wanted = without_the_short_way(data, 64)
        except Unreadable:
            continue
        assert alike(decode(data, 64), wanted), path
        short += decoding.jpeg_frame(data) is not None
    assert short > 5


def test_libtiff_writes_nothing_to_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    data = encoded(flag().convert("1"), "TIFF", compression="group4")
    for place in range(8, len(data)):
        with suppress(Unreadable):
            decode(data[:place] + b"\xff" + data[place + 1 :], 8)
    assert capfd.readouterr().err == ""
