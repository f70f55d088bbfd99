"""Published recipes are those of their papers' code: what that code does and a reader of the paper may miss."""

import pytest
import torch
from torch.nn import functional as F

from lookalike.core.errors import UserError
from lookalike.models.image import ResNet
from lookalike.models.vit import ViTBackbone
from lookalike.recipes import RECIPES


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_residual_branches_that_begin_at_zero_pass_nothing_on(name: str) -> None:
    torch.manual_seed(0)
    net = ResNet(name, zero_init=True).build(4)[0].train()
    block = net.net.layer2[1]  # type: ignore[union-attr,index]
    x = torch.randn(8, block.conv1.in_channels, 4, 4)  # type: ignore[union-attr]
    assert torch.equal(block(x), F.relu(x))  # type: ignore[operator]
    plain = ResNet(name).build(4)[0].train()
    assert not torch.equal(plain.net.layer2[1](x), F.relu(x))  # type: ignore[union-attr,index]


@pytest.mark.parametrize("zero_init", [False, True])
def test_a_network_that_is_no_resnet_is_refused_in_words(zero_init: bool) -> None:
    with pytest.raises(UserError, match="is not a ResNet of torchvision"):
        ResNet("vit_b_16", zero_init=zero_init).build(4)


def test_residual_branches_begin_at_zero_where_the_code_has_them_so() -> None:
    begin = {name for name in ("moco_v1", "moco_v2", "simclr", "nnclr", "moco_v3") if RECIPES[name].model.zero_init}
    assert begin == {"simclr", "nnclr", "moco_v3"}


def test_moco_v3_decays_as_its_config_says() -> None:
    """CONFIG.md: 1e-6 at 100 and 300 epochs, 1.5e-6 at 1,000 alone; and AdamW is given all parameters of the ViT."""
    recipe = RECIPES["moco_v3"]
    assert (recipe.length.epochs, recipe.optimizer.weight_decay) == (300, 1e-6)
    backbone = ViTBackbone(RECIPES["moco_v3_vit"].model)
    (group,) = RECIPES["moco_v3_vit"].optimizer.build(backbone, 4096).param_groups
    learning = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    assert group["weight_decay"] == 0.1
    assert {id(p) for p in group["params"]} == {id(p) for p in learning}


def test_supcons_loss_is_that_of_its_code_with_the_temperature_over_the_base_one() -> None:
    torch.manual_seed(0)
    views, label = F.normalize(torch.randn(16, 8, dtype=torch.float64), dim=1), torch.arange(8) % 3
    logits = (views @ views.T / 0.1).masked_fill(torch.eye(16, dtype=torch.bool), -torch.inf)
    log_p = logits - logits.logsumexp(1, keepdim=True)
    alike = (label.repeat(2)[:, None] == label.repeat(2)) & ~torch.eye(16, dtype=torch.bool)
    expected = -(0.1 / 0.07) * (log_p.masked_fill(~alike, 0).sum(1) / alike.sum(1)).mean()
    recipe = RECIPES["supcon"].fitted(50_000, 32)
    dictionary = recipe.dictionary.build(8, 100)
    pairs = [(views[:8], views[8:]), (views[8:], views[:8])]
    found = [recipe.objective(query, dictionary.look_up(query, key, label)) for query, key in pairs]
    torch.testing.assert_close(torch.stack(found).sum(), expected, rtol=1e-12, atol=1e-12)


def test_simcse_falls_in_a_straight_line() -> None:
    share = RECIPES["simcse_bert"].fitted(1_000_000, 0).schedule.share
    assert [share(progress) for progress in (0.0, 0.5, 1.0)] == [1, 0.5, 0]
