"""Heads: what they build, and BatchNorm in groups within them."""

import pytest
import torch
from torch import nn

from lookalike.core.errors import UserError
from lookalike.models.encoder import MLP
from lookalike.models.norm import GroupedBatchNorm1d
from lookalike.recipes import RECIPES


@pytest.mark.parametrize("widths", [(128,), (2048, 128), (32, 16, 8)])
def test_without_norm_it_is_plain_layers_with_the_weights_of_their_seed(widths: tuple[int, ...]) -> None:
    torch.manual_seed(3)
    head = MLP(widths).build(64)
    torch.manual_seed(3)
    layers: list[nn.Module] = []
    for before, after in zip((64, *widths[:-1]), widths, strict=True):
        layers += [nn.ReLU(), nn.Linear(before, after)]
    plain = nn.Sequential(*layers[1:])
    assert [type(layer) for layer in head] == [type(layer) for layer in plain]
    assert head.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in head.state_dict().items())


def test_hidden_norms_stand_before_each_relu() -> None:
    head = MLP((32, 16, 8), "hidden").build(64, 4)
    assert [type(layer) for layer in head] == [*(nn.Linear, GroupedBatchNorm1d, nn.ReLU) * 2, nn.Linear]
    assert [layer.bias is not None for layer in head if isinstance(layer, nn.Linear)] == [False, False, True]
    assert [layer.group for layer in head if isinstance(layer, GroupedBatchNorm1d)] == [4, 4]


def test_all_norms_end_in_one_without_scale_and_shift_as_in_moco_v3() -> None:
    """Three layers of the published projector written out, on each group."""
    torch.manual_seed(0)
    head = MLP((32, 32, 8), "all").build(16, 4).double()
    plain = nn.Sequential(
        nn.Linear(16, 32, bias=False),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Linear(32, 32, bias=False),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Linear(32, 8, bias=False),
        nn.BatchNorm1d(8, affine=False),
    ).double()
    plain.load_state_dict(head.state_dict())
    x = torch.randn(12, 16, dtype=torch.float64)
    expected = torch.cat([plain(part) for part in x.split(4)])
    torch.testing.assert_close(head(x), expected, rtol=1e-10, atol=1e-11)


def test_moco_v3s_predictor_has_no_bias_and_simcses_head_ends_in_tanh() -> None:
    predictor = RECIPES["moco_v3"].predictor
    assert predictor is not None
    assert all(layer.bias is None for layer in predictor.build(256, 4) if isinstance(layer, nn.Linear))
    head = RECIPES["simcse_bert"].head.build(768)
    assert [type(layer) for layer in head] == [nn.Linear, nn.Tanh]
    assert head[0].bias is not None


@pytest.mark.parametrize("group", [None, 1])
def test_norms_need_a_group_of_two_or_more(group: int | None) -> None:
    with pytest.raises(UserError, match=r"^head\.norm 'all' [^\n]*group must be at least 2"):
        MLP((8,), "all").build(4, group)
