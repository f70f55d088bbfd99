"""The face in Python: typed keywords, parts of one's own, results that print short."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms
from torchvision.transforms import v2

import lookalike
from lookalike.core.errors import UserError
from lookalike.learn.dictionary import InBatch, Queue
from lookalike.learn.objective import InfoNCE
from lookalike.models.norm import GroupedBatchNorm2d
from lookalike.pretext.image import ImageView
from lookalike.recipes import RECIPES
from lookalike.recipes.parts import PARTS, Network, Transformed, part
from lookalike.recipes.serialize import from_plain, to_plain
from lookalike.train.run import read_recipe
from lookalike.types import Canvases
from tests.support.forks import digest

pytestmark = pytest.mark.any_precision

PICTURES = torch.rand(48, 3, 20, 20, generator=torch.Generator().manual_seed(0))
LIGHT = {"recipe": "tiny", "workers": 0, "quiet": True}


def network(width: int = 8) -> nn.Module:
    torch.manual_seed(0)
    stem = (nn.Conv2d(3, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU())
    return nn.Sequential(*stem, nn.AdaptiveAvgPool2d(1), nn.Flatten())


# Arguments


def test_a_wrong_argument_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"pretrain\(\) has no argument 'step'; did you mean steps\?"):
        lookalike.pretrain(PICTURES, tmp_path / "run", step=2)
    with pytest.raises(TypeError, match=r"embed\(\) has no argument 'worker'; did you mean workers\?"):
        lookalike.embed(tmp_path, PICTURES, worker=2)
    with pytest.raises(UserError, match=r"has no field 'optimizer.rl'; did you mean optimizer.lr\?"):
        lookalike.pretrain(PICTURES, tmp_path / "run", **LIGHT, settings={"optimizer.rl": 2})
    with pytest.raises(UserError, match=r"no field 'dictionary.size'; it is one of small, .*: --recipe small$"):
        lookalike.pretrain(PICTURES, tmp_path / "run", recipe="small_simclr", settings={"dictionary.size": 64})
    with pytest.raises(UserError, match="choose one of"):
        lookalike.pretrain(PICTURES, tmp_path / "run", steps=2, epochs=1)
    with pytest.raises(UserError, match="--workers must be at least 0"):
        lookalike.pretrain(PICTURES, tmp_path / "run", workers=-1)
    assert list(tmp_path.iterdir()) == []


def test_functions_have_their_signatures_for_completion() -> None:
    names = list(inspect.signature(lookalike.pretrain).parameters)
    assert names[:8] == ["data", "out", "recipe", "minutes", "steps", "epochs", "batch", "model"]
    assert list(inspect.signature(lookalike.supervised).parameters) == names
    assert inspect.signature(lookalike.pretrain).return_annotation.__name__ == "Finished"
    assert "queries" in inspect.signature(lookalike.search).parameters


def test_keywords_are_the_same_run_as_the_command_lines_flags(tmp_path: Path) -> None:
    settings = {"head.widths": (16,), "precision": "fp32", "objective": InfoNCE(0.3)}
    lookalike.pretrain(PICTURES, tmp_path / "a", **LIGHT, steps=2, batch=8, settings=settings)
    texts = {"batch": "8", "head.widths": "16", "objective.temperature": "0.3", "precision": "fp32"}
    lookalike.pretrain(PICTURES, tmp_path / "b", **LIGHT, steps=2, settings=texts)
    assert read_recipe(tmp_path / "a" / "recipe.json") == read_recipe(tmp_path / "b" / "recipe.json")
    first, second = (digest(tmp_path / name) for name in "ab")
    assert first == second


def test_a_recipe_as_a_value_is_fitted_to_the_data_as_its_name_is(tmp_path: Path) -> None:
    for number, recipe in enumerate(("small", RECIPES["small"])):
        run = tmp_path / str(number)
        lookalike.pretrain(PICTURES, run, recipe=recipe, steps=1, workers=0, quiet=True)
        assert read_recipe(run / "recipe.json").batch == 16
    assert read_recipe(tmp_path / "0" / "recipe.json") == read_recipe(tmp_path / "1" / "recipe.json")


def test_changes_of_what_a_person_set_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    light = {"model": "resnet18", "canvas": 32, "pretext.first.size": 32, "dictionary.size": 500}
    lookalike.pretrain(PICTURES, tmp_path / "run", recipe="moco_v2", steps=1, workers=0, settings=light)
    printed = capsys.readouterr().out
    assert "batches of 8, not 256 as moco_v2 has them: there are 48 examples" in printed
    assert "queue of 24 keys, not queue of 500 keys" in printed


def test_results_print_short(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = lookalike.pretrain("digits", run, **LIGHT, steps=2)
    assert repr(done) == "Finished(step 2 of 2)"
    assert repr(lookalike.load(run)) == "Trained(tiny, SmallResNet, step 2)"
    table = lookalike.embed(run, "digits")
    assert repr(table) == "Embeddings(1,797 rows of 16 features, all)"
    measured = lookalike.evaluate(run, "digits", "knn", k=5)
    assert repr(measured).startswith("kNN accuracy ")
    assert all(len(line) < 200 for line in repr(measured).splitlines())
    compared = lookalike.compare([run], "digits", "knn", trials=2, k=5)
    assert [line.split(":")[0] for line in repr(compared).splitlines()[1:]] == ["random", "run"]
    assert len(repr(lookalike.search(run, table.path[:1], top=2))) < 300


def test_training_with_labels_is_a_function_of_the_same_arguments(tmp_path: Path) -> None:
    lookalike.supervised("digits", tmp_path / "run", **LIGHT, steps=1)
    assert read_recipe(tmp_path / "run" / "recipe.json").name == "supervised_tiny"


# A network that is handed over


def test_a_module_is_a_backbone_and_opens_with_one_of_the_same_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = network()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    lookalike.pretrain(PICTURES, tmp_path / "run", **LIGHT, model=net, steps=2)
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in before.items())
    trained = lookalike.load(tmp_path / "run")
    assert any(isinstance(module, GroupedBatchNorm2d) for module in trained.encoder.modules())
    monkeypatch.setattr("lookalike.recipes.parts._networks", {})
    with pytest.raises(UserError, match=r"a network of your own, Sequential: .* lookalike\.load\(RUN, model=\.\.\.\)"):
        lookalike.load(tmp_path / "run")
    with pytest.raises(UserError, match="was trained with another backbone"):
        lookalike.load(tmp_path / "run", model=network(width=9))
    again = lookalike.load(tmp_path / "run", model=network())
    for name, tensor in trained.encoder.state_dict().items():
        assert torch.equal(again.encoder.state_dict()[name], tensor), name


def test_a_run_starts_from_the_weights_that_are_handed_over() -> None:
    net = network()
    backbone, features = Network.of(net).build(4)
    assert features == 8
    assert torch.equal(backbone[0].weight, net[0].weight)  # type: ignore[index]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Linear(3, 3), r"takes no pictures \(2, 3, 16, 16\)"),
        (nn.Conv2d(3, 8, 3), r"gives \(2, 8, 14, 14\) of two pictures, not \(2, F\)"),
        ("resnet51", "torchvision has no resnet51; did you mean resnet"),
        (3, "model cannot be 3: it is one of ResNet, "),
    ],
)
def test_what_is_no_backbone_is_refused_before_anything_is_written(model: object, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=reason):
        lookalike.pretrain(PICTURES, tmp_path / "run", **LIGHT, model=model)
    assert list(tmp_path.iterdir()) == []


def test_a_model_is_named_on_the_command_line(tmp_path: Path) -> None:
    lookalike.pretrain(PICTURES, tmp_path / "run", **LIGHT, model="timm:resnet10t", steps=1)
    assert read_recipe(tmp_path / "run" / "recipe.json").model.name == "resnet10t"


# A function that makes views


def test_a_transform_makes_views_that_repeat_and_its_run_opens_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    view = v2.Compose([v2.RandomResizedCrop(16), v2.RandomHorizontalFlip(), v2.RandomRotation(10)])
    for name in "ab":
        random.seed(name)
        lookalike.pretrain(PICTURES, tmp_path / name, **LIGHT, view=view, steps=2, settings={"precision": "fp32"})
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    lookalike.pretrain(PICTURES, tmp_path / "a", **LIGHT, view=view, steps=2, settings={"precision": "fp32"})
    other = v2.Compose([v2.RandomResizedCrop(16), v2.RandomRotation(10)])
    with pytest.raises(UserError, match=r"holds a run of other settings \(pretext\.first\.transform"):
        lookalike.pretrain(PICTURES, tmp_path / "a", **LIGHT, view=other, steps=2, settings={"precision": "fp32"})
    monkeypatch.setattr("lookalike.recipes.parts._transforms", {})
    assert len(lookalike.embed(tmp_path / "a", PICTURES)) == 48
    recipe = read_recipe(tmp_path / "a" / "recipe.json")
    with pytest.raises(UserError, match=r"made by a function of your own \(Compose"):
        recipe.pretext.first(CANVASES, torch.arange(2), 0, 0, 0)


CANVASES = Canvases(torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8), torch.tensor([[16, 16], [8, 16]]))


@pytest.mark.parametrize(
    "end",
    [
        [],
        [transforms.ToTensor()],
        [v2.PILToTensor()],
        [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)],
        [lambda picture: torch.from_numpy(np.array(picture)).permute(2, 0, 1)],
    ],
    ids=["PIL", "ToTensor", "uint8", "float", "by hand"],
)
def test_a_view_is_normalised_whatever_the_function_gives(end: list[Callable[[object], object]]) -> None:
    like = ImageView(mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    view = Transformed.of(v2.Compose([v2.Resize((8, 8)), *end]), like)
    assert view.size == 8
    made = view(CANVASES, torch.arange(2), 0, 0, 0)["pixels"]
    shift, scale = (torch.tensor(numbers)[:, None, None] for numbers in (like.mean, like.std))
    picture = Image.fromarray(CANVASES.pixels[0].permute(1, 2, 0).numpy())
    expected = torch.from_numpy(np.array(picture.resize((8, 8), Image.Resampling.BILINEAR))).permute(2, 0, 1) / 255
    torch.testing.assert_close(made[0] * scale + shift, expected, atol=2 / 255, rtol=0)


def test_a_view_sees_pictures_in_their_proportions() -> None:
    sizes: list[tuple[int, int]] = []

    def look(picture: Image.Image) -> Image.Image:
        sizes.append(picture.size)
        return picture.resize((4, 4))

    Transformed.of(look, ImageView())(CANVASES, torch.arange(2), 0, 0, 0)
    assert sizes[1:] == [(16, 16), (16, 8)]


def test_views_are_functions_of_the_counters_alone_and_draw_nothing_from_the_caller() -> None:
    def noisy(picture: Image.Image) -> Tensor:
        return torch.full((3, 4, 4), (random.random() + float(np.random.rand()) + float(torch.rand(()))) / 3)

    view, before = Transformed.of(noisy, ImageView()), (random.getstate(), torch.get_rng_state())
    rows = torch.tensor([5, 9])
    first = view.views(CANVASES, rows, 1, 2, [0, 1])
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    swapped = view(CANVASES, rows.flip(0), 1, 2, 1)["pixels"]
    assert torch.equal(swapped.flip(0), first[1]["pixels"])
    values = {float(part["pixels"][i, 0, 0, 0]) for part in first for i in range(2)}
    assert len(values) == 4


@pytest.mark.parametrize(
    ("view", "reason"),
    [
        (lambda picture: 3, "gives int, not a picture or a tensor"),
        (lambda picture: picture, r"gives \(3, 192, 256\), not three square planes"),
        (v2.Compose([v2.Resize((8, 8)), transforms.ToTensor(), v2.Normalize([0.5] * 3, [0.1] * 3)]), "leave out Norm"),
    ],
)
def test_what_makes_no_views_is_refused_before_anything_is_written(view: object, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=reason):
        lookalike.pretrain(PICTURES, tmp_path / "run", **LIGHT, view=view)
    assert list(tmp_path.iterdir()) == []


# Registered parts


@dataclass(frozen=True)
class Unregistered(InfoNCE):
    """An objective without a name in files."""


@part
@dataclass(frozen=True)
class Odd(InBatch):
    """A dictionary of a person's own."""

    words: tuple[str, ...] = ("a",)


@part
@dataclass(frozen=True)
class Gray(ImageView):
    """A view of a person's own."""


def test_a_part_that_could_not_be_loaded_is_refused_at_the_start(tmp_path: Path) -> None:
    for settings in ({"objective": Unregistered()}, {"model": "tiny", "objective": 3}):
        with pytest.raises(UserError, match=r"lookalike\.part|model"):
            lookalike.pretrain(PICTURES, tmp_path / "run", **LIGHT, settings=settings)
    recipe = lookalike.Recipe("mine", RECIPES["tiny"].pretext, objective=Unregistered(), batch=8)
    with pytest.raises(UserError, match=r"could not be opened again .*Unregistered.* @lookalike\.part"):
        lookalike.pretrain(PICTURES, tmp_path / "run", recipe=recipe)
    odd = {"dictionary": Odd(words=("a", 2.5))}  # type: ignore[arg-type]
    with pytest.raises(UserError, match="could not be opened again"):
        lookalike.pretrain(PICTURES, tmp_path / "run", **LIGHT, settings=odd)
    assert list(tmp_path.iterdir()) == []


def test_a_registered_dictionary_and_view_train_and_open(tmp_path: Path) -> None:
    settings = {"dictionary": Odd(words=("x", "y"))}
    lookalike.pretrain(PICTURES, tmp_path / "run", **LIGHT, steps=1, view=Gray(size=16), settings=settings)
    recipe = lookalike.load(tmp_path / "run").recipe
    assert (recipe.dictionary, recipe.pretext.first) == (Odd(words=("x", "y")), Gray(size=16))
    assert type(recipe.pictures.crops()) is ImageView


@pytest.mark.parametrize("field", ["objective", "model", "keys", "pretext"])
def test_a_part_is_no_part_of_another_kind(field: str) -> None:
    plain = to_plain(RECIPES["tiny"]) | {field: to_plain(Gray())}
    with pytest.raises(UserError, match=f"{field} of Recipe cannot be"):
        from_plain(plain)


def test_only_frozen_dataclasses_are_parts_and_names_are_taken_once() -> None:
    with pytest.raises(UserError, match="no frozen dataclass"):
        part(type("Plain", (), {}))
    with pytest.raises(UserError, match="no frozen dataclass"):
        part(dataclass(type("Loose", (), {"__annotations__": {}})))
    again = dataclass(frozen=True)(type("Odd", (InBatch,), {"__module__": __name__, "__qualname__": "Odd"}))
    before = PARTS["Odd"]
    assert part(again) is again is PARTS["Odd"]  # the cell of a notebook that runs again
    part(before)
    with pytest.raises(UserError, match="another part of the name Odd"):
        part(dataclass(frozen=True)(type("Odd", (Queue,), {"__module__": "elsewhere"})))


def test_a_part_with_the_name_of_a_packages_part_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lookalike.recipes.parts.PARTS", dict(PARTS))
    mine = part(dataclass(frozen=True)(type("DCL", (InfoNCE,), {"__module__": __name__})))
    with pytest.raises(UserError, match="has the name of one of the package"):
        lookalike.pretrain(PICTURES, tmp_path / "run", recipe=replace(RECIPES["tiny"], objective=mine()))
    assert list(tmp_path.iterdir()) == []
