"""The vision transformer: its parts of patches, positions and weights; and transformers of timm."""

import math

import pytest
import timm
import torch
from torch import Tensor, nn

from lookalike.core.errors import UserError
from lookalike.models.encoder import MLP, Encoder
from lookalike.models.image import Timm
from lookalike.models.vit import ViT, ViTBackbone, positions

SMALL = ViT(width=24, depth=2, heads=3, patch=4)


def built(spec: ViT = SMALL, seed: int = 0) -> nn.Module:
    """In fp64, with biases and a class token that are not zero, so that nothing is left out unseen."""
    torch.manual_seed(seed)
    net = spec.build(8)[0].double()
    for parameter in net.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter)
    return net


def pixels(batch: int = 3, height: int = 16, width: int = 16) -> Tensor:
    return torch.randn(batch, 3, height, width, dtype=torch.float64)


def in_order(batch: int, patches: int) -> Tensor:
    return torch.arange(patches).expand(batch, -1)


@pytest.mark.parametrize("pool", ["class", "mean"])
def test_keeping_every_patch_in_order_is_keeping_no_list(pool: str) -> None:
    net, x = built(ViT(24, 2, 3, 4, pool)), pixels()
    assert torch.equal(net(pixels=x), net(pixels=x, keep=in_order(3, 16)))


@pytest.mark.parametrize("pool", ["class", "mean"])
def test_the_order_of_keep_does_not_matter_but_its_members_do(pool: str) -> None:
    net, x = built(ViT(24, 2, 3, 4, pool)), pixels()
    keep = torch.stack([torch.randperm(16)[:6] for _ in range(3)])
    seen = net(pixels=x, keep=keep)
    torch.testing.assert_close(seen, net(pixels=x, keep=keep.flip(1)), rtol=1e-11, atol=1e-12)
    assert not torch.allclose(seen, net(pixels=x, keep=(keep + 1) % 16), atol=1e-3)


def test_what_is_not_kept_is_not_seen_in_each_example_by_itself() -> None:
    net, x = built(), pixels(2, 8, 12)
    keep = torch.tensor([[0, 4], [5, 2]])  # of 2 rows of 3 patches
    changed = x.clone()
    changed[0, :, :4, 4:] += 1  # patches 1 and 2
    changed[1, :, 4:, :8] += 1  # patches 3 and 4
    assert torch.equal(net(pixels=x, keep=keep), net(pixels=changed, keep=keep))
    changed[0, 0, 7, 7] += 1  # the last pixel of patch 4
    assert not torch.equal(net(pixels=x, keep=keep)[0], net(pixels=changed, keep=keep)[0])


def test_positions_are_the_formula_written_out() -> None:
    rows, columns, width = 3, 5, 16
    found = positions(rows, columns, width)
    for row in range(rows):
        for column in range(columns):
            expected = []
            for coordinate in (row, column):
                angles = [coordinate / 10_000 ** (i / 4) for i in range(4)]
                expected += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
            assert found[row * columns + column].tolist() == pytest.approx(expected, abs=1e-12)


def test_a_patch_has_the_same_position_in_a_larger_picture() -> None:
    small, large = positions(2, 3, 24).view(2, 3, -1), positions(5, 7, 24).view(5, 7, -1)
    assert torch.equal(small, large[:2, :3])
    net = built()
    corner = torch.zeros(1, 3, 24, 20, dtype=torch.float64)
    corner[:, :, :8, :12] = x = pixels(1, 8, 12)
    keep = torch.tensor([[0, 1, 2, 5, 6, 7]])  # of rows of five
    torch.testing.assert_close(net(pixels=x), net(pixels=corner, keep=keep), rtol=1e-12, atol=1e-12)


def timm_state(net: ViTBackbone, grid: int) -> dict[str, Tensor]:
    state = dict(net.state_dict())
    kernel, token = state.pop("patches.weight"), state.pop("token", None)
    where = positions(grid, grid, 24)
    if token is not None:
        where = torch.cat([torch.zeros(1, 24, dtype=torch.float64), where])
        state["cls_token"] = token.view(1, 1, -1)
    state["pos_embed"] = where[None]
    state["patch_embed.proj.weight"] = kernel.view(-1, 3, net.side, net.side)
    state["patch_embed.proj.bias"] = state.pop("patches.bias")
    return state


@pytest.mark.parametrize("pool", ["class", "mean"])
def test_equals_timm_with_the_same_weights_value_and_gradient(pool: str) -> None:
    net, x = built(ViT(24, 2, 3, 4, pool)), pixels()
    theirs = timm.models.vision_transformer.VisionTransformer(
        img_size=16,
        patch_size=4,
        embed_dim=24,
        depth=2,
        num_heads=3,
        num_classes=0,
        class_token=pool == "class",
        global_pool="token" if pool == "class" else "avg",
        fc_norm=False,
    ).double()
    theirs.load_state_dict(timm_state(net, 4))
    upstream = torch.randn(3, 24, dtype=torch.float64)
    ours, other = net(pixels=x), theirs(x)
    torch.testing.assert_close(ours, other, rtol=1e-10, atol=1e-11)
    ours.backward(upstream)
    other.backward(upstream)
    torch.testing.assert_close(
        net.blocks[0].attn.qkv.weight.grad, theirs.blocks[0].attn.qkv.weight.grad, rtol=1e-9, atol=1e-11
    )
    torch.testing.assert_close(
        net.patches.weight.grad, theirs.patch_embed.proj.weight.grad.flatten(1), rtol=1e-9, atol=1e-11
    )


@pytest.mark.parametrize("keep", [None, in_order(3, 5)], ids=["all", "some"])
def test_the_class_token_alone_is_what_it_is_among_all_tokens(keep: Tensor | None) -> None:
    """What a GPU computes of the last block, value and gradient."""
    net, x = built(), pixels()
    upstream = torch.randn(3, 24, dtype=torch.float64)
    results = []
    for first in (None, 1):
        found = net.pooled(net._last_layer(net._embedded(x, keep), first))
        results.append([found, *torch.autograd.grad(found, list(net.parameters()), upstream)])
    for ours, other in zip(*results):
        torch.testing.assert_close(ours, other, rtol=1e-9, atol=1e-10)


def test_frozen_patches_get_no_gradient_and_no_optimizer_while_all_else_does() -> None:
    net = ViT(24, 2, 3, 4, frozen_patches=True).build(8)[0]
    net(pixels=pixels().float()).square().sum().backward()
    frozen = {name for name, parameter in net.named_parameters() if parameter.grad is None}
    assert frozen == {"patches.weight", "patches.bias"}
    assert not any(parameter.requires_grad for name, parameter in net.named_parameters() if name in frozen)


def test_weights_start_as_in_moco_v3() -> None:
    torch.manual_seed(0)
    net, features = ViT(width=96, depth=1, heads=12, patch=8).build(32)
    assert features == 96
    for name, bound in {
        "patches": math.sqrt(6 / (3 * 64 + 96)),
        "blocks.0.attn.qkv": math.sqrt(6 / (96 + 96)),  # each of the three by itself
        "blocks.0.attn.proj": math.sqrt(6 / (96 + 96)),
        "blocks.0.mlp.fc1": math.sqrt(6 / (96 + 384)),
    }.items():
        layer = net.get_submodule(name).requires_grad_(False)
        assert 0.99 * bound < float(layer.weight.abs().max()) <= bound
        assert float(layer.weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.03)
        assert not layer.bias.any()
    assert 0 < float(net.token.detach().abs().max()) < 1e-5


def test_the_default_has_the_size_of_moco_v3s_vit_s() -> None:
    with torch.device("meta"):
        net, _ = ViT().build(32)
    assert (
        sum(parameter.numel() for parameter in net.parameters()) == 21_665_664 - 197 * 384
    )  # timm's, less its positions


def test_is_called_through_an_encoder_with_and_without_keep() -> None:
    backbone, features = SMALL.build(8)
    encoder = Encoder(backbone, MLP((16, 8)).build(features))
    x = pixels().float()
    assert encoder(pixels=x).shape == (3, 8)
    assert encoder.features(pixels=x, keep=in_order(3, 5)).shape == (3, 24)


@pytest.mark.parametrize("spec", [ViT(width=30, heads=3), ViT(width=64, heads=5)])
def test_impossible_shapes_are_refused(spec: ViT) -> None:
    with pytest.raises(UserError, match=r"^model\.width [^\n]*must be"):
        spec.build(8)


@pytest.mark.parametrize("size", [(18, 16), (16, 3)])
def test_pictures_that_do_not_divide_into_patches_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(UserError, match=r"^pictures of [^\n]*do not divide into patches of 4"):
        SMALL.build(8)[0](pixels=pixels(1, *size).float())


@pytest.mark.parametrize("side", [32, 128])
def test_a_vit_of_timm_takes_views_of_any_size_its_patches_divide(side: int) -> None:
    net, features = Timm("test_vit").build(8)
    assert net(pixels=torch.randn(2, 3, side, side)).shape == (2, features)
    with pytest.raises(UserError, match=r"^this model of timm cannot take pictures of 40 by 40 pixels [^\n]*$"):
        net(pixels=torch.randn(2, 3, 40, 40))


def test_vit_small_of_timm_takes_small_views() -> None:
    net, features = Timm("vit_small_patch16_224").build(8)
    assert net(pixels=torch.randn(1, 3, 32, 32)).shape == (1, features) == (1, 384)


def test_a_timm_model_of_one_size_is_made_for_a_size_or_refuses_it_in_one_line() -> None:
    name = "pit_ti_224"  # positions that timm cannot resample
    x = torch.randn(1, 3, 64, 64)
    with pytest.raises(UserError, match=r"cannot take pictures of 64 by 64 pixels [^\n]*--model\.size 64[^\n]*$"):
        Timm(name).build(8)[0](pixels=x)
    net, features = Timm(name, size=64).build(8)
    assert net(pixels=x).shape == (1, features)


def test_a_timm_model_without_sizes_refuses_one() -> None:
    with pytest.raises(UserError, match=r"^model\.size: resnet10t of timm is not made for one size"):
        Timm("resnet10t", size=64).build(8)
