"""Whatever bytes come in, a canvas or a reason goes out."""

from __future__ import annotations

import io
import struct
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
    for kind in ("EPS", "TGA", "ICO", "JPEG2000", "PCX"):
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
