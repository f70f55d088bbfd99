"""Folders of pictures with captions: COCO's files and tables, what names no picture, what is no text."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lookalike.core.errors import BAD_DATA, UserError
from lookalike.data.source import open_source
from lookalike.data.text.loader import Tokenizer, texts_of
from lookalike.data.text.source import MOST_CAPTIONS, find_captioned
from lookalike.recipes import RECIPES
from lookalike.recipes.modality import loader
from lookalike.recipes.recipe import meaningless
from lookalike.types import Canvases, Captioned

COCO = Path(__file__).resolve().parents[3] / "shared/data/coco_mini"


def picture(path: Path, colour: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((12, 12, 3), colour, np.uint8)).save(path)


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Three pictures, two of which a table speaks of."""
    for number, name in enumerate(("a", "b", "c")):
        picture(tmp_path / f"{name}.png", 60 * number)
    (tmp_path / "captions.csv").write_text('image,caption\nb.png,"second, and last"\na.png,first\nb.png,again\n')
    return tmp_path


def test_a_table_names_pictures_and_says_what_they_are(album: Path) -> None:
    source = open_source(album, find=find_captioned)
    assert list(source.paths) == ["a.png", "b.png"]
    texts = [source.texts(row) for row in range(2)]  # type: ignore[attr-defined]
    assert texts == [("first", "first"), ("second, and last", "again")]  # few captions repeat
    assert source.unlisted == {"c.png": "no caption"}
    assert int(source.example(1, 32).pixels[0, 0, 0]) == 60


def test_what_a_table_says_of_no_picture_or_not_in_words_is_left_out(album: Path) -> None:
    lines = ["image,caption", "../../etc/passwd,out", "/a.png,by its name", "nobody.png,nothing", "b.png,", "c.png,\0"]
    (album / "captions.csv").write_text("\n".join(lines))
    source = open_source(album, find=find_captioned)
    assert list(source.paths) == ["a.png"]


def test_of_many_captions_the_first_ones_are_read(album: Path) -> None:
    (album / "captions.csv").write_text("image,caption\n" + "\n".join(f"a.png,{i}" for i in range(20)))
    source = open_source(album, find=find_captioned)
    assert source.texts(0) == tuple(map(str, range(MOST_CAPTIONS)))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("captions.json", "{", "no JSON"),
        ("captions.json", '{"images": 1, "annotations": []}', "no lists of images and annotations"),
        ("captions.json", '{"images": [{"id": 1, "file_name": 5}, 3], "annotations": [{}, 4]}', "names a picture"),
        ("captions.csv", "picture,words\na.png,first\n", "no column 'image'"),
        ("captions.csv", "image,caption\nz.png,last\n", "names a picture"),
    ],
)
def test_a_file_of_captions_that_cannot_be_used_is_refused_in_one_line(
    name: str, text: str, words: str, album: Path
) -> None:
    (album / "captions.csv").unlink()
    (album / name).write_text(text)
    with pytest.raises(UserError, match=words) as refused:
        find_captioned(album)
    assert "\n" not in str(refused.value)


def test_cocos_files_divide_by_their_folders(tmp_path: Path) -> None:
    for split in ("train2017", "val2017"):
        images, said = [], []
        for number in range(3):
            picture(tmp_path / split / f"{number:03}.png", 80 * number)
            images.append({"id": number, "file_name": f"{number:03}.png"})
            said += [{"image_id": number, "caption": f"{split} {number} {again} "} for again in range(2)]
        (tmp_path / "annotations").mkdir(exist_ok=True)
        held = json.dumps({"images": images, "annotations": said, "info": {}})
        (tmp_path / f"annotations/captions_{split}.json").write_text(held)
    place = find_captioned(tmp_path)
    assert place.splits == ["train", "validation"]
    rows = place.rows("validation")
    assert list(rows.paths) == [f"val2017/{i:03}.png" for i in range(3)]
    assert rows.texts(2) == ("val2017 2 0", "val2017 2 1")


def test_a_changed_caption_is_noticed(album: Path) -> None:
    before = open_source(album, find=find_captioned).stamps()
    (album / "captions.csv").write_text((album / "captions.csv").read_text().replace("again", "anew!"))
    after = open_source(album, find=find_captioned).stamps()
    assert before.names == after.names
    assert not np.array_equal(before.tokens, after.tokens)


def test_data_without_captions_is_pictures_and_a_run_of_captions_wants_them(album: Path) -> None:
    (album / "captions.csv").unlink()
    recipe = RECIPES["moco_captions"].fitted(64, 12)
    source = open_source(album, find=find_captioned)
    material = next(loader(recipe, source, None, workers=0).batches([torch.tensor([0, 2])])).material
    assert isinstance(material, Canvases)
    assert recipe.pretext.evaluation(material)["pixels"].shape == (2, 3, recipe.pretext.whole, recipe.pretext.whole)  # type: ignore


def test_a_picture_that_cannot_be_read_gives_its_place_and_its_caption_to_the_next(album: Path) -> None:
    pytest.importorskip("tokenizers", reason="tokenizers is not installed")
    (album / "a.png").write_bytes(b"nothing")
    recipe = RECIPES["moco_captions"].fitted(64, 12)
    tokenizer = Tokenizer.trained(["first second and last again"], 300, True)
    source = open_source(album, find=find_captioned)
    for budget in (0, 1 << 30):  # decoded in each step, and kept
        reads = loader(recipe, source, tokenizer, budget, workers=0, max_bad=0.5)
        material = next(reads.batches([torch.tensor([0, 1])])).material
        assert isinstance(material, Captioned)
        assert torch.equal(material.pixels[0], material.pixels[1])
        assert torch.equal(material.tokens[0], material.tokens[1])
        assert reads.bad == {"a.png": reads.bad["a.png"], "c.png": "no caption"}


def test_which_caption_is_said_depends_on_epoch_and_row_alone() -> None:
    recipe = RECIPES["moco_captions"].fitted(64, 12)
    rows, lengths = torch.arange(40), torch.ones(40, 5, dtype=torch.long)
    tokens = torch.arange(5).repeat(40, 1)[..., None]
    material = Captioned(torch.zeros(40, 3, 12, 12, dtype=torch.uint8), torch.full((40, 2), 12), tokens, lengths)
    pretext = recipe.pretext

    def said(part: slice, epoch: int) -> torch.Tensor:
        some = Captioned(*(piece[part] for piece in material))
        return pretext(some, rows[part], 0, epoch)[1]["tokens"][:, 0]  # type: ignore[arg-type]

    every = said(slice(40), 0)
    assert set(every.tolist()) == set(range(5))
    assert torch.equal(said(slice(7, 19), 0), every[7:19])
    assert not torch.equal(said(slice(40), 1), every)


def test_what_makes_no_sense_is_refused_in_words() -> None:
    captions, small = RECIPES["moco_captions"].fitted(5000, 32), RECIPES["small"].fitted(5000, 32)
    assert meaningless(captions) is None
    for recipe, words in {
        replace(small, pretext=captions.pretext): "two towers",
        replace(small, model=captions.model): "two towers",
        replace(small, dictionary=captions.dictionary): "a queue for each direction needs two",
    }.items():
        assert words in (meaningless(recipe) or "")
    with pytest.raises(UserError, match=r"model\.text\.width 64 must be"):
        replace(captions, model=replace(captions.model, text=replace(captions.model.text, width=64))).build(64)  # type: ignore


@pytest.mark.skipif(not COCO.is_dir(), reason="coco_mini is not here")
def test_real_photos_with_their_captions() -> None:
    place = find_captioned(COCO)
    rows = place.rows("train")
    assert len(rows) == 80
    assert all(len(set(rows.texts(row))) >= 4 for row in range(80))
    assert len(place.rows("validation")) == 79


def test_pictures_as_data_in_python_have_no_captions() -> None:
    with pytest.raises(UserError, match="no text in this data") as refused:
        texts_of(open_source(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), find=find_captioned))
    assert refused.value.code == BAD_DATA
