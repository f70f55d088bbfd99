"""Views as a whole: what they are a function of, how often each change happens, and the named settings."""

import math
from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from lookalike.core.seeding import uniforms
from lookalike.pretext import image, ops
from lookalike.pretext.image import Draws, ImageView, TwoViews
from lookalike.types import Canvases

EVERYTHING = replace(image.MOCO_V3_SECOND, size=32, blur=0.5, solarize=0.5, gray=0.5, hue=0.4)
NAMED = [
    image.MOCO_V1,
    image.MOCO_V2,
    image.SIMCLR,
    image.MOCO_V3_FIRST,
    image.MOCO_V3_SECOND,
    image.MOCO_CIFAR,
    image.INSTDISC_CIFAR,
]


def canvases(count, side=40, square=True):
    pixels = (uniforms(5, 0, torch.arange(count), 0, 3 * side * side) * 256).to(torch.uint8).view(count, 3, side, side)
    sizes = torch.full((count, 2), side)
    if not square:
        sizes = (sizes * (1 + 2 * uniforms(6, 0, torch.arange(count), 0, 2))).long()
    return Canvases(pixels, sizes)


def pick(batch, index):
    return Canvases(batch.pixels[index], batch.sizes[index])


@pytest.mark.parametrize("size", [32, 31, 24])
@pytest.mark.parametrize("order", ["jitter first", "gray first"])
def test_a_view_does_not_depend_on_the_rest_of_its_batch(size, order):
    """Bit for bit, for any company, order and batch size, one example included."""
    view = replace(EVERYTHING, size=size, order=order)
    batch, rows = canvases(150, square=False), torch.arange(150) * 3
    whole = view(batch, rows, 0, 0, 0)["pixels"]
    for index in (torch.tensor([7]), torch.arange(149, -1, -1), torch.arange(40, 63), torch.tensor([3, 90])):
        assert torch.equal(view(pick(batch, index), rows[index], 0, 0, 0)["pixels"], whole[index])


def test_a_large_view_does_not_depend_on_its_batch_either():
    view, rows = replace(EVERYTHING, size=96), torch.arange(30)
    batch = canvases(30, side=130, square=False)
    whole = view(batch, rows, 0, 0, 0)["pixels"]
    for index in (torch.tensor([7]), torch.tensor([29, 3, 11])):
        assert torch.equal(view(pick(batch, index), rows[index], 0, 0, 0)["pixels"], whole[index])


@pytest.mark.parametrize("size", [31, 96])
def test_two_views_made_together_are_the_two_made_one_by_one(size):
    view, rows = replace(EVERYTHING, size=size), torch.arange(30) * 7
    batch = canvases(30, side=130, square=False)
    together = TwoViews(view)(batch, rows, 3, 4)
    for number, made in enumerate(together):
        assert torch.equal(made["pixels"], view(batch, rows, 3, 4, number)["pixels"])
        assert made["pixels"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("second", [None, replace(EVERYTHING, size=24)])
def test_several_pairs_are_further_views_of_the_same_rows(second):
    view, rows, batch = replace(EVERYTHING, size=32), torch.arange(10) * 7, canvases(10)
    first, other = TwoViews(view, second, pairs=3)(batch, rows, 4, 2)
    for pair in range(3):
        part = slice(10 * pair, 10 * (pair + 1))
        assert torch.equal(first["pixels"][part], view(batch, rows, 4, 2, 2 * pair)["pixels"])
        assert torch.equal(other["pixels"][part], (second or view)(batch, rows, 4, 2, 2 * pair + 1)["pixels"])
    assert first["pixels"].is_contiguous(memory_format=torch.channels_last)


def test_a_view_is_a_function_of_seed_epoch_row_and_number():
    batch, rows = canvases(8), torch.arange(8)
    pretext = TwoViews(image.MOCO_CIFAR)
    first, second = (v["pixels"] for v in pretext(batch, rows, 1, 2))
    again, _ = (v["pixels"] for v in pretext(batch, rows, 1, 2))
    assert torch.equal(first, again)
    others = [pretext(batch, r, s, e)[0]["pixels"] for r, s, e in ((rows, 2, 2), (rows, 1, 3), (rows + 8, 1, 2))]
    for other in (second, *others):
        assert not any(torch.equal(a, b) for a, b in zip(first, other))


def test_the_second_view_may_be_of_another_kind():
    batch, rows = canvases(4), torch.arange(4)
    two = TwoViews(image.MOCO_CIFAR, EVERYTHING)
    assert torch.equal(two(batch, rows, 0, 0)[1]["pixels"], EVERYTHING(batch, rows, 0, 0, 1)["pixels"])


@pytest.mark.parametrize("view", NAMED)
def test_named_settings_give_finite_normalised_channels_last_views(view):
    view = replace(view, size=32)
    out = view(canvases(12, square=False), torch.arange(12), 0, 0, 0)["pixels"]
    assert out.shape == (12, 3, 32, 32)
    assert out.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last)
    low = (0 - torch.tensor(view.mean)) / torch.tensor(view.std)
    high = (1 - torch.tensor(view.mean)) / torch.tensor(view.std)
    assert (out >= low.view(3, 1, 1) - 1e-4).all()
    assert (out <= high.view(3, 1, 1) + 1e-4).all()


def test_settings_are_values():
    assert replace(image.MOCO_V2) == image.MOCO_V2
    assert hash(TwoViews(image.MOCO_V2)) == hash(TwoViews(image.MOCO_V2))
    with pytest.raises(FrozenInstanceError):
        image.MOCO_V2.size = 3


def by_torchvision(pixels, size, draws, view):
    """One view through torchvision's functions, one picture at a time, from the same draws."""
    height, width = pixels.shape[1:]
    box = ops.crop_boxes(torch.tensor([[height, width]]), draws[None, Draws.CROP], view.scale, view.ratio)
    out = reference.resized_crop(pixels / 255, *box[0].int().tolist(), [size, size], antialias=True).clamp(0, 1)
    if draws[Draws.FLIP] < view.flip:
        out = reference.horizontal_flip(out)

    def jittered(out):
        between = lambda low, high, at: low + (high - low) * draws[Draws.FACTORS][at].item()  # noqa: E731
        spread = (view.brightness, view.contrast, view.saturation)
        values = [between(max(0, 1 - s), 1 + s, i) for i, s in enumerate(spread)]
        values.append(between(-view.hue, view.hue, 3))
        names = ("brightness", "contrast", "saturation", "hue")
        for number in draws[Draws.ORDER].argsort().tolist():
            out = getattr(reference, f"adjust_{names[number]}")(out, values[number])
        return out

    def gray(out):
        return reference.rgb_to_grayscale(out, 3) if draws[Draws.GRAY] < view.gray else out

    def jitter(out):
        return jittered(out) if draws[Draws.JITTER] < view.jitter else out

    out = gray(jitter(out)) if view.order == "jitter first" else jitter(gray(out))
    if draws[Draws.BLUR] < view.blur:
        sigma = view.sigma[0] + (view.sigma[1] - view.sigma[0]) * draws[Draws.SIGMA].item()
        out = reference.gaussian_blur(out, [2 * view.radius() + 1] * 2, [sigma, sigma])
    if draws[Draws.SOLARIZE] < view.solarize:
        out = reference.solarize(out, 0.5)
    return reference.normalize(out, view.mean, view.std)


@pytest.mark.parametrize("view", [*NAMED, replace(EVERYTHING, order="gray first")])
def test_whole_views_are_torchvisions_chain(view):
    """Within a thousandth of a byte step on average: float32 rounding along the whole chain."""
    view, batch, rows = replace(view, size=32), canvases(24), torch.arange(24)
    ours = view(batch, rows, 3, 1, 0)["pixels"]
    draws = uniforms(3, 1, rows, 0, Draws.COUNT)
    theirs = torch.stack([by_torchvision(p, 32, d, view) for p, d in zip(batch.pixels, draws)])
    assert (ours - theirs).abs().mean() < 0.001 / 255 / min(view.std)


def test_changes_happen_as_often_as_asked():
    view, count = EVERYTHING, 20_000
    draws = uniforms(0, 0, torch.arange(count), 0, Draws.COUNT)
    plan = view.plan(draws, torch.full((count, 2), 32), (32, 32))
    rates = {
        "flip": plan.flip, "gray": plan.gray, "blur": plan.blur, "solarize": plan.solarize, "jitter": plan.group != 4,
    }  # fmt: skip
    for name, happened in rates.items():
        asked = getattr(view, name)
        assert abs(happened.float().mean() - asked) < 5 * math.sqrt(asked * (1 - asked) / count), name
    for spread, factor in zip((0.4, 0.4, 0.2), plan.factors.T):
        assert factor.min() >= 1 - spread - 1e-6
        assert factor.max() <= 1 + spread + 1e-6
        assert abs(factor.mean() - 1) < 0.01
    assert plan.factors[:, 3].abs().max() <= view.hue + 1e-6
    orders = torch.cat([plan.kinds, plan.group[:, None]], 1)[plan.group != 4].unique(dim=0, return_counts=True)
    assert len(orders[0]) == 24
    assert orders[1].min() > 0.8 * orders[1].float().mean()


def test_hue_zero_and_no_change_at_all():
    plain = ImageView(size=40, scale=(1, 1), ratio=(1, 1), flip=0)
    batch = canvases(5)
    assert torch.equal(plain.displayable(plain(batch, torch.arange(5), 0, 0, 0)), batch.pixels)
    still = replace(plain, jitter=1.0)
    assert torch.equal(still.displayable(still(batch, torch.arange(5), 0, 0, 0)), batch.pixels)


def test_evaluation_is_torchvisions_centre_view():
    view = replace(image.MOCO_CIFAR, size=16)
    pixels = canvases(70).pixels[:, :, :, :30]  # pictures 40 high, 30 wide, not squashed
    out = view.evaluation(Canvases(pixels, torch.tensor([[40, 30]]).expand(70, 2)))["pixels"]
    expected = reference.resize(reference.center_crop(pixels / 255, [30, 30]), [16, 16], antialias=True)
    torch.testing.assert_close(out, reference.normalize(expected, view.mean, view.std), atol=1e-4, rtol=0)
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_evaluation_of_a_square_picture_is_the_whole_of_it():
    view, batch = ImageView(size=40), canvases(3)
    assert torch.equal(view.displayable(view.evaluation(batch)), batch.pixels)
    part = replace(view, size=20).evaluation(batch, share=0.5)
    assert torch.equal(view.displayable(part), batch.pixels[:, :, 10:30, 10:30])


def test_new_operations_cannot_move_old_draws():
    """The columns are a file format of sorts: a run resumed by a later version must see the same views."""
    columns = {name: value for name, value in vars(Draws).items() if not name.startswith("_")}
    assert columns == {
        "CROP": slice(0, 22), "FLIP": 22, "JITTER": 23, "ORDER": slice(24, 28), "FACTORS": slice(28, 32),
        "GRAY": 32, "BLUR": 33, "SIGMA": 34, "SOLARIZE": 35, "COUNT": 36,
    }  # fmt: skip
    rows = torch.arange(3)
    assert torch.equal(uniforms(0, 0, rows, 0, 36), uniforms(0, 0, rows, 0, 40)[:, :36])
