"""Text as material: tokens, views that counters decide, an encoder that padding does not reach, and STS."""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import Tensor

from lookalike.core.errors import UserError
from lookalike.data.text.loader import TextLoader, Tokenizer
from lookalike.data.text.source import find_text
from lookalike.metrics.agreement import ranked, spearman
from lookalike.models.decoder import Words
from lookalike.models.hugging_face import HuggingFace
from lookalike.models.text import CounterDropout, Packing, Transformer, table
from lookalike.pretext.text import Cloze, Pairs, SameSentence
from lookalike.recipes import RECIPES
from lookalike.recipes.modality import loader
from lookalike.types import FIRST, MASK, PAD, Tokens, View

pytest.importorskip("tokenizers", reason="tokenizers is not installed")

LINES = ["A man is playing a flute.", "A dog runs.", "Überall, 世界!", "a man a plan a canal", "the end"]
SMALL = Transformer(vocabulary=300, width=16, depth=2, heads=2)


@cache
def trained() -> Tokenizer:
    return Tokenizer.trained(LINES, 300, True)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return trained()


def material(*lengths: int, texts: int = 1) -> Tokens:
    """Texts of these lengths, of tokens from 3 on."""
    generator = torch.Generator().manual_seed(sum(lengths))
    tokens = torch.randint(3, 300, (len(lengths), texts, max(lengths)), generator=generator)
    tokens[:, :, 0] = FIRST
    return Tokens(tokens, torch.tensor(lengths)[:, None].expand(-1, texts))


def cut(view: View, rows: Sequence[int]) -> View:
    """Some of the examples, filled up no further than they need."""
    longest = 1 + int(view["attend"][rows].nonzero()[:, 1].max())
    return {name: part[rows][:, :longest] if part.dim() > 1 else part[rows] for name, part in view.items()}


# ---- tokens ----


def test_the_same_lines_give_the_same_tokenizer_byte_for_byte(tokenizer: Tokenizer) -> None:
    again = Tokenizer.trained(iter(LINES), 300, True)
    assert again.json == tokenizer.json
    assert Tokenizer(tokenizer.json).encoded(LINES, 32) == tokenizer.encoded(LINES, 32)


@given(st.text(max_size=60))
@settings(max_examples=50, deadline=None)
def test_any_text_has_tokens_and_is_cut(text: str) -> None:
    tokenizer = trained()
    (whole,), (short,) = tokenizer.encoded([text.replace("\0", "")], 512), tokenizer.encoded([text], 5)
    assert whole[0] == FIRST
    assert len(short) <= 5
    assert all(token not in (PAD, FIRST, MASK) and token < 300 for token in whole[1:])


def test_a_loader_gives_each_rows_tokens_whatever_else_is_in_the_batch(tokenizer: Tokenizer) -> None:
    texts = TextLoader(find_text(LINES).rows(None), tokenizer, 8)
    expected = tokenizer.encoded(LINES, 8)
    for rows in ([0], [3, 1], [4, 2, 0, 0]):
        (found,) = texts.batches([torch.tensor(rows)])
        for i, row in enumerate(rows):
            length = int(found.material.lengths[i, 0])
            assert found.material.tokens[i, 0, :length].tolist() == expected[row]
            assert not found.material.tokens[i, 0, length:].any()


def test_too_many_lines_that_are_no_text_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_bytes(b"good\n\xff\n" + b"good\n" * 18)
    source, heard = find_text(str(tmp_path)).rows(None), dict[str, str]()

    def note(bad: Mapping[str, str]) -> None:
        heard.update(bad)

    with pytest.raises(UserError, match=r"1 of 20 lines are no text, first a\.txt:2"):
        loader(RECIPES["simcse"].fitted(19, 0), source, tokenizer, max_bad=0.01, on_bad=note)
    assert heard == {"a.txt:2": "no valid UTF-8"}
    assert len(loader(RECIPES["simcse"].fitted(19, 0), source, tokenizer, max_bad=0.1)) == 19


def test_without_the_extra_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name in ("tokenizers", "transformers"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'lookalike\[text\]'"):
        Tokenizer.trained(LINES, 300, True)


def test_a_file_that_is_no_tokenizer_is_refused() -> None:
    for text in ("", "{}", '{"model": {"type": "pickle"}}'):
        with pytest.raises(UserError, match="no tokenizer"):
            Tokenizer(text)


# ---- views ----

PRETEXTS = [SameSentence(), SameSentence(drop=0.3, shuffle=2), Pairs(), Cloze()]


@pytest.mark.parametrize("pretext", PRETEXTS)
def test_a_view_depends_on_its_row_and_the_counters_alone(pretext: SameSentence) -> None:
    texts, rows = material(9, 4, 7, 12, texts=2), torch.tensor([50, 3, 999, 8])
    every = pretext(texts, rows, 1, 2)
    some = [2, 1]
    few = pretext(Tokens(texts.tokens[some][:, :, :7], texts.lengths[some]), rows[some], 1, 2)
    for whole, part in zip(every, few):
        for name, expected in cut(whole, some).items():
            assert torch.equal(cut(part, [0, 1])[name][expected >= PAD], expected[expected >= PAD]), name
    other = pretext(texts, rows, 1, 3)
    assert not torch.equal(every[0]["noise"], other[0]["noise"])
    if not isinstance(pretext, Cloze):
        assert not torch.equal(every[0]["noise"], every[1]["noise"])


def test_tokens_are_left_out_and_moved_a_little_and_the_first_stays() -> None:
    texts, rows = material(*[30] * 400), torch.arange(400)
    view = SameSentence(length=30, drop=0.25)(texts, rows, 0, 0)[0]
    assert view["attend"][:, 0].all()
    assert abs(float(view["attend"][:, 1:].float().mean()) - 0.75) < 0.01  # 11,600 draws: four standard deviations
    numbered = Tokens(torch.arange(30).expand(400, 1, 30), texts.lengths)
    moved = SameSentence(length=30, shuffle=3)(numbered, rows, 0, 0)[0]["tokens"]
    assert torch.equal(moved.sort(1).values, numbered.tokens[:, 0])
    distance = (moved - torch.arange(30)).abs()
    assert distance[:, 0].max() == 0
    assert distance.max() == 3


def test_a_cloze_asks_for_some_tokens_and_hides_most_of_them() -> None:
    texts, rows = material(*[24] * 500), torch.arange(500)
    view, _ = Cloze()(texts, rows, 0, 0)
    targets, hidden = view["targets"] >= 0, view["tokens"] == MASK
    assert targets.any(1).all()
    assert not targets[:, 0].any()
    assert torch.equal(view["targets"][targets], texts.tokens[:, 0][targets])
    assert torch.equal(view["tokens"][~hidden], texts.tokens[:, 0][~hidden])
    assert abs(float(targets[:, 1:].float().mean()) - 0.15) < 0.015
    assert abs(float(hidden[targets].float().mean()) - 0.9) < 0.03
    assert Cloze()(material(2), torch.tensor([0]), 0, 0)[0]["targets"][0, 1] >= 0  # the only one there is


def test_evaluations_see_the_whole_first_text() -> None:
    for pretext in PRETEXTS:
        view = pretext.evaluation(material(5, 3, texts=2))
        assert view.keys() == {"tokens", "attend"}
        assert view["attend"].sum(1).tolist() == [5, 3]


# ---- encoders ----


def folder_of(config: Any, folder: Path, tokenizer: Tokenizer) -> str:
    from transformers import AutoModel

    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer.json)
    return str(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> HuggingFace:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BertConfig(vocab_size=300, **sizes)
    return HuggingFace(folder_of(config, tmp_path_factory.mktemp("bert"), tokenizer))


def encoders() -> list[Any]:
    return [SMALL, replace(SMALL, pool="first"), "bert"]


def built(spec: Any, request: pytest.FixtureRequest) -> torch.nn.Module:
    torch.manual_seed(1)
    chosen = request.getfixturevalue("bert") if spec == "bert" else spec
    net, width = chosen.build(0)
    assert width == 16
    assert isinstance(net, torch.nn.Module)
    return net.double().train()


@pytest.mark.parametrize("spec", encoders())
def test_padding_and_neighbours_change_nothing(spec: Any, request: pytest.FixtureRequest) -> None:
    net, pretext = built(spec, request), SameSentence(drop=0.2)
    view, _ = pretext(material(9, 4, 7, 12), torch.arange(4), 0, 0)
    whole = net(**view)
    for row in range(4):
        torch.testing.assert_close(net(**cut(view, [row]))[0], whole[row], rtol=0, atol=1e-12)
    rubbish = torch.where(view["attend"], view["tokens"], 299)
    torch.testing.assert_close(net(**view | {"tokens": rubbish}), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("spec", encoders())
def test_noise_decides_what_drops_out_and_without_it_nothing_does(spec: Any, request: pytest.FixtureRequest) -> None:
    net, pretext = built(spec, request), SameSentence()
    texts, rows = material(9, 4), torch.arange(2)
    first, second = pretext(texts, rows, 0, 0)
    torch.manual_seed(2)  # no generator is asked
    assert torch.equal(net(**first), net(**first))
    assert not torch.allclose(net(**first), net(**second))
    assert torch.equal(net(**pretext.evaluation(texts)), net.eval()(**pretext.evaluation(texts)))


def test_as_many_units_drop_out_as_asked_and_the_mean_stays() -> None:
    noise, attend = torch.arange(400) * 977, torch.ones(400, 20, dtype=torch.bool)
    dropped = CounterDropout.of(noise, Packing.of(attend), torch.arange(20).repeat(400), 0.1, 3)
    masks = [dropped(torch.ones(8000, 64), site) for site in range(3)]
    for mask in masks:
        assert abs(float((mask == 0).float().mean()) - 0.1) < 0.002  # of 512,000
        assert abs(float((mask == 0).float().mean(0).max()) - 0.1) < 0.02  # of any one unit
    assert abs(float(table(0.1, torch.device("cpu")).mean()) - 1) < 0.002
    both = ((masks[0] == 0) & (masks[1] == 0)).float().mean()
    assert abs(float(both) - 0.01) < 0.001  # places are independent
    tokens = masks[0].view(400, 20, 64)
    assert abs(float(((tokens[:, 0] == 0) & (tokens[:, 1] == 0)).float().mean()) - 0.01) < 0.003


def test_an_encoder_that_is_no_folder_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    with pytest.raises(UserError, match=r"--model\.folder"):
        HuggingFace().build(0)
    with pytest.raises(UserError, match=r"no config\.json"):
        HuggingFace(str(tmp_path)).build(0)
    (tmp_path / "config.json").write_text('{"model_type": "bert", "auto_map": {"AutoModel": "evil.Model"}}')
    (tmp_path / "evil.py").write_text("raise SystemExit('code of a folder was run')")
    (tmp_path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(UserError, match="no encoder that can be loaded"):
        HuggingFace(str(tmp_path)).build(0)


def test_the_decoder_of_words_weighs_texts_alike() -> None:
    torch.manual_seed(0)
    decoder = Words().build(16, 300).double()
    view, _ = Cloze()(material(20, 5, 9, 14), torch.arange(4), 0, 0)
    last = torch.randn(int(view["attend"].sum()), 16, dtype=torch.float64)
    parts, start = [], 0
    for row in range(4):
        length = int(view["attend"][row].sum())
        parts.append(decoder(last[start : start + length], **cut(view, [row])))
        start += length
    torch.testing.assert_close(torch.stack(parts).mean(), decoder(last, **view))
    assert abs(decoder(last, **view).item() - Words().chance_loss(300)) < 0.1


# ---- similarity ----

values = st.lists(st.integers(-3, 3) | st.floats(-1, 1), min_size=3, max_size=30)


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_spearman_is_scipys(data: st.DataObject) -> None:
    first = data.draw(values)
    second = data.draw(st.lists(st.integers(0, 5), min_size=len(first), max_size=len(first)))
    if len(set(first)) < 2 or len(set(second)) < 2:
        return
    expected = float(spearmanr(first, second).statistic)
    assert spearman(*(torch.tensor(some, dtype=torch.float64) for some in (first, second))) == pytest.approx(expected)


def test_equal_values_share_a_rank() -> None:
    found: Tensor = ranked(torch.tensor([3.0, 1.0, 3.0, 2.0]))
    assert found.tolist() == [2.5, 0.0, 2.5, 1.0]
