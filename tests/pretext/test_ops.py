"""Each operation against torchvision's, at the same parameters.

Tolerances are mean absolute differences of values in [0, 1], against torchvision on float tensors; a step of a byte is
1/255 = 0.0039. EXACT is float32 rounding: the same formulas in another order.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as reference

from lookalike.core.seeding import uniforms
from lookalike.pretext import ops

EXACT, PIL_BYTES = 2e-6, 0.6 / 255  # PIL rounds twice to bytes on its way: on average a quarter step each
QUICK = settings(max_examples=40, deadline=None)
SIZE = 24


def pictures(count, height=SIZE, width=SIZE, seed=0):
    """uint8 pictures with smooth parts, noise, saturated parts and gray ones."""
    noise = uniforms(seed, 0, torch.arange(count), 0, 3 * height * width).view(count, 3, height, width)
    ramp = torch.linspace(0, 1, width) * torch.linspace(0.5, 1.5, height)[:, None]
    mixed = (0.4 * noise + ramp * torch.tensor([1.0, 0.6, 0.2]).view(3, 1, 1)).clamp(0, 1)
    mixed[..., : height // 6, :] = (mixed[..., : height // 6, :] * 1.6 - 0.3).clamp(0, 1)
    mixed[..., -height // 6 :, :] = mixed[:, :1, -height // 6 :, :]
    return (mixed * 255).round().to(torch.uint8)


def planes_of(pixels):
    return (pixels.float() / 255).transpose(0, 1).contiguous()


def cropped(pixels, boxes, out, flip=None):
    return ops.cropped(pixels, ops.axes(boxes, pixels.shape[2:], out, flip))


def difference(planes, expected):
    return (planes.transpose(0, 1) - torch.stack(list(expected))).abs().mean().item()


# ---- crops ----

inside = (
    st.integers(1, 40)
    .flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))
    .flatmap(lambda pair: st.tuples(st.just(pair[0]), st.just(pair[1]), st.integers(0, pair[0] - pair[1])))
)


@QUICK
@given(rows=inside, columns=inside, out=st.integers(1, 40), flip=st.booleans())
def test_resize_is_torchvisions(rows, columns, out, flip):
    (height, tall, top), (width, wide, left) = rows, columns
    pixels = pictures(1, height, width)
    boxes = torch.tensor([[top, left, tall, wide]], dtype=torch.float32)
    ours = cropped(pixels, boxes, out, torch.tensor([flip]))
    expected = reference.resized_crop(pixels.float() / 255, top, left, tall, wide, [out, out], antialias=True)
    assert difference(ours, reference.horizontal_flip(expected) if flip else expected) < EXACT


@pytest.mark.parametrize(("height", "width"), [(140, 130), (128, 128)])
def test_large_pictures_take_another_way_to_the_same_result(height, width):
    pixels = pictures(2, height, width)
    boxes = torch.tensor([[3, 5, 70, 61], [0, 0, height, width]])
    expected = [
        reference.resized_crop(picture.float() / 255, *box, [40, 40], antialias=True)
        for picture, box in zip(pixels, boxes.tolist())
    ]
    assert difference(cropped(pixels, boxes.float(), 40), expected) < EXACT


def test_resize_is_pils_up_to_its_rounding():
    pixels = pictures(1, 40, 50)
    image = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
    ours = cropped(pixels, torch.tensor([[3.0, 5.0, 30.0, 41.0]]), SIZE)
    expected = reference.to_dtype(
        reference.pil_to_tensor(reference.resized_crop(image, 3, 5, 30, 41, [SIZE, SIZE])), torch.float32, scale=True
    )
    assert difference(ours, [expected]) < PIL_BYTES


@QUICK
@given(start=st.floats(0, 20), length=st.floats(0.05, 20), out=st.integers(1, 30), size=st.integers(40, 60))
def test_fractional_boxes_average_what_they_cover(start, length, out, size):
    boxes = torch.tensor([[0.0, start, 1.0, length]])
    weights = ops.resize_weights(ops.axes(boxes, (1, size), out))[1, 0]
    torch.testing.assert_close(weights.sum(1), torch.ones(out))
    used = weights.sum(0).nonzero()[:, 0]
    assert used.min() >= int(start) - 1e-4
    assert used.max() <= start + length + 1e-4
    ramp = torch.arange(size).float() + 0.5
    reach = max(1.0, length / out)
    middle = start + length * (torch.arange(out) + 0.5) / out
    deep = (middle - reach > start + 1) & (middle + reach < start + length - 1)
    torch.testing.assert_close((weights @ ramp)[deep], middle[deep], atol=0.13 * reach, rtol=0)


def test_a_squashed_canvas_gives_nearly_the_view_of_the_picture():
    picture = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 8), (120, 160), mode="bicubic").clamp(0, 1)
    canvas = reference.resize((picture * 255).round().to(torch.uint8), [96, 96], antialias=True)
    box, sizes = torch.tensor([[11.0, 23.0, 90.0, 101.0]]), torch.tensor([[120, 160]])
    ours = cropped(canvas, ops.on_canvas(box, sizes, (96, 96)), 32)
    expected = reference.resized_crop(picture, 11, 23, 90, 101, [32, 32], antialias=True)
    assert difference(ours, expected) < 1.5 / 255  # the canvas is a coarser picture, rounded to bytes


def oracle_box(size, draws, scale, ratio):
    """The loop of torchvision's RandomResizedCrop.get_params on our draws; None where no try fits."""
    stream = iter(draws.tolist())
    height, width = size
    for _ in range(10):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * next(stream))
        low, high = math.log(ratio[0]), math.log(ratio[1])
        aspect = math.exp(low + (high - low) * next(stream))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top, left = draws[20:22].tolist()
            return [int(top * (height - h + 1)), int(left * (width - w + 1)), h, w]
    return None


@QUICK
@given(
    height=st.integers(1, 600),
    width=st.integers(1, 600),
    low=st.sampled_from([0.08, 0.2, 0.9, 1.0]),
    seed=st.integers(0, 1000),
)
def test_crop_boxes_follow_torchvisions_rule(height, width, low, seed):
    draws = uniforms(seed, 0, torch.arange(16), 0, 22)
    scale, ratio = (low, 1.0), (3 / 4, 4 / 3)
    boxes = ops.crop_boxes(torch.tensor([[height, width]]).expand(16, 2), draws, scale, ratio)
    for box, drawn in zip(boxes.tolist(), draws):
        expected = oracle_box((height, width), drawn, scale, ratio)
        if expected is None:
            # The fallback has no randomness, so torchvision shows it when no crop can ever fit.
            image = torch.zeros(1, height, width)
            expected = list(RandomResizedCrop.get_params(image, [50.0, 50.0], list(ratio)))
        assert box == expected


@pytest.mark.parametrize("size", [(500, 500), (375, 500), (500, 100), (33, 400)])
def test_crops_are_spread_as_asked(size):
    count, scale = 4000, (0.2, 1.0)
    sizes = torch.tensor([size]).expand(count, 2)
    boxes = ops.crop_boxes(sizes, uniforms(7, 0, torch.arange(count), 0, 22), scale, (3 / 4, 4 / 3))
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= sizes).all()
    area = boxes[:, 2:].prod(1) / (size[0] * size[1])
    drawn = (boxes[:, 3] / boxes[:, 2]).log().abs() <= torch.tensor(4 / 3).log() + 0.05
    assert drawn.all()
    if size == (500, 500):
        assert area.min() > 0.195
        theirs = [RandomResizedCrop.get_params(torch.zeros(1, *size), list(scale), [3 / 4, 4 / 3]) for _ in range(2000)]
        expected = torch.tensor([h * w for _, _, h, w in theirs]).double() / (size[0] * size[1])
        assert abs(area.mean() - expected.mean()) < 0.03
        assert abs(boxes[:, 0].mean() - torch.tensor([t[0] for t in theirs]).double().mean()) < 10


@QUICK
@given(height=st.integers(1, 900), width=st.integers(1, 900), canvas=st.sampled_from([(32, 32), (224, 96)]))
def test_centre_squares_are_torchvisions_and_lie_on_the_canvas(height, width, canvas):
    sizes = torch.tensor([[height, width]])
    box = ops.centre_squares(sizes)
    side = min(height, width)
    expected = reference.center_crop(torch.arange(height * width).view(1, height, width), [side, side])
    top, left = divmod(int(expected[0, 0, 0]), width)
    assert box.tolist() == [[top, left, side, side]]
    placed = ops.on_canvas(box, sizes, canvas)
    assert (placed[0, :2] + placed[0, 2:] <= torch.tensor(canvas) + 1e-9).all()
    assert torch.equal(ops.on_canvas(box, sizes, (height, width)), box)


# ---- colour ----

factors = st.lists(st.floats(0, 2.5, width=32), min_size=3, max_size=3)


@QUICK
@given(factors=factors, kind=st.sampled_from([ops.BRIGHTNESS, ops.CONTRAST, ops.SATURATION]))
def test_brightness_contrast_saturation_are_torchvisions(factors, kind):
    adjust = [reference.adjust_brightness, reference.adjust_contrast, reference.adjust_saturation][kind]
    pixels = pictures(3)
    planes = planes_of(pixels)
    expected = [adjust(picture / 255, factor) for picture, factor in zip(pixels, factors)]
    ops.adjust(planes, ops.blend_weights(torch.full((3,), kind), torch.tensor(factors)))
    assert difference(planes, expected) < EXACT


def test_a_batch_may_mix_the_kinds():
    pixels, factor = pictures(3), 1.4
    planes = planes_of(pixels)
    kinds = torch.tensor([ops.SATURATION, ops.BRIGHTNESS, ops.CONTRAST])
    ops.adjust(planes, ops.blend_weights(kinds, torch.full((3,), factor)))
    theirs = (reference.adjust_saturation, reference.adjust_brightness, reference.adjust_contrast)
    assert difference(planes, [adjust(p / 255, factor) for adjust, p in zip(theirs, pixels)]) < EXACT


@QUICK
@given(turns=st.lists(st.floats(-0.5, 0.5, width=32), min_size=4, max_size=4))
def test_hue_is_torchvisions(turns):
    pixels = pictures(4)
    planes = planes_of(pixels)
    ops.shift_hue(planes, ops.hue_offsets(torch.tensor(turns)))
    assert difference(planes, [reference.adjust_hue(p / 255, t) for p, t in zip(pixels, turns)]) < EXACT


def test_hue_of_every_corner_of_the_colour_cube():
    levels = torch.tensor([0.0, 0.25, 0.5, 1.0])
    cube = torch.cartesian_prod(levels, levels, levels).T.reshape(3, 1, 8, 8)
    for turns in (-0.5, -1 / 3, -1 / 6, 0.0, 0.1, 1 / 6, 1 / 3, 0.5):
        planes = cube.clone()
        ops.shift_hue(planes, ops.hue_offsets(torch.tensor([turns])))
        torch.testing.assert_close(planes[:, 0], reference.adjust_hue(cube[:, 0], turns), atol=1e-5, rtol=0)


def test_gray_and_solarize_are_torchvisions():
    pixels = pictures(4)
    planes = planes_of(pixels)
    assert difference(ops.grayed(planes), reference.rgb_to_grayscale(pixels / 255, 3)) < EXACT
    images = [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in pixels]
    solarized = [reference.pil_to_tensor(ImageOps.solarize(image)) / 255 for image in images]
    assert difference(ops.solarized(planes), solarized) < EXACT


# ---- blur ----


@QUICK
@given(sigmas=st.lists(st.floats(0.125, 3, width=32), min_size=3, max_size=3), radius=st.integers(0, SIZE - 1))
def test_blur_is_torchvisions(sigmas, radius):
    pixels = pictures(3)
    expected = [reference.gaussian_blur(p / 255, [2 * radius + 1] * 2, [s, s]) for p, s in zip(pixels, sigmas)]
    assert difference(ops.blurred(planes_of(pixels), torch.tensor(sigmas), radius), expected) < EXACT


@pytest.mark.parametrize(("sigma", "tolerance"), [(0.3, 5 / 255), (1.0, 1 / 255), (2.0, 1 / 255)])
def test_blur_is_nearly_pils_away_from_the_border(sigma, tolerance):
    """PIL approximates a Gaussian by three boxes; under half a pixel they blur more than taps do."""
    pixels = pictures(1, 64, 64)
    image = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
    expected = reference.pil_to_tensor(image.filter(ImageFilter.GaussianBlur(sigma))) / 255
    ours = ops.blurred(planes_of(pixels), torch.tensor([sigma]), 6)[:, 0]
    assert (ours - expected)[:, 8:-8, 8:-8].abs().mean() < tolerance


def test_a_picture_smaller_than_the_blur():
    flat = torch.full((3, 2, 4, 4), 0.25)
    torch.testing.assert_close(ops.blurred(flat, torch.tensor([0.1, 2.0]), 6), flat)


# ---- in and out ----


def test_normalised_is_channels_last_and_comes_back():
    pixels = pictures(2)
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    view = ops.normalised(planes_of(pixels), mean, std).permute(0, 3, 1, 2)
    assert view.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(view, reference.normalize(pixels / 255, mean, std))
    assert torch.equal(ops.displayable(view, mean, std), pixels)
