"""Two moments of one video: where they lie in time, which frames are read for them, and that a clip is seen as one."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from lookalike.core.errors import UserError
from lookalike.data.example import Rows
from lookalike.data.loader import GIB, Loader
from lookalike.data.order import order_of
from lookalike.data.source import open_source
from lookalike.data.video.source import Timeline, pieces
from lookalike.models.image import SmallVideoResNet, VideoResNet
from lookalike.pretext.image import MOCO_V2, ImageView
from lookalike.pretext.video import TwoClips, TwoFrames
from lookalike.recipes import RECIPES, recipe_named
from lookalike.recipes.modality import loader, only_pictures
from lookalike.recipes.recipe import Recipe, meaningless
from lookalike.recipes.serialize import from_plain, to_plain
from lookalike.train.loop import batches
from lookalike.train.trained import Checkup, PartFeatures
from lookalike.types import Canvases
from tests.support.films import SIDE, film, number_in, picture

VIEW = replace(MOCO_V2, size=16)
PLAIN = ImageView(size=SIDE, scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, mean=(0.0,) * 3, std=(1.0,) * 3)


def films(gaps: list[list[float]]) -> Timeline:
    """One video for each list of seconds between its frames."""
    every = [[0.0, *torch.tensor(part).cumsum(0).tolist()] for part in gaps]
    return Timeline.of([f"{i}#t={time:.6f}" for i, times in enumerate(every) for time in times])


GAPS = st.lists(st.lists(st.sampled_from([0.04, 0.04, 0.1, 1.0]), min_size=1, max_size=12), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(GAPS, st.integers(0, 3), st.floats(-1, 15))
def test_the_frame_at_a_time_is_the_nearest_of_its_video(gaps: list[list[float]], which: int, time: float) -> None:
    found = films(gaps)
    row = min(which, len(gaps) - 1) and int(found.first.unique()[min(which, len(gaps) - 1)])
    mine = range(int(found.first[row]), int(found.last[row]) + 1)
    nearest = min(mine, key=lambda other: (abs(float(found.times[other]) - time), other))
    at = int(found.nearest(torch.tensor([row]), torch.tensor([time], dtype=torch.float64)))
    assert abs(float(found.times[at]) - time) <= abs(float(found.times[nearest]) - time) + 1e-9
    assert at in mine


@settings(max_examples=40, deadline=None)
@given(GAPS, st.floats(0, 2), st.floats(0, 3), st.integers(0, 5))
def test_the_other_moment_lies_as_far_away_as_is_asked(
    gaps: list[list[float]], near: float, more: float, epoch: int
) -> None:
    found, pretext = films(gaps), TwoFrames(VIEW, near=near, far=near + more)
    rows = torch.arange(len(found.times))
    draws = torch.rand(len(rows), 2, generator=torch.Generator().manual_seed(epoch))
    times = pretext.other_moments(found, rows, draws)
    for row, time in zip(rows.tolist(), times.tolist(), strict=True):
        here, begin, end = (float(found.times[i]) for i in (row, found.first[row], found.last[row]))
        assert begin <= time <= end
        if max(here - begin, end - here) >= near:
            assert near - 1e-9 <= abs(time - here) <= near + more + 1e-9
        else:
            assert abs(time - here) == max(here - begin, end - here)


def test_distances_are_drawn_evenly_on_both_sides() -> None:
    found = films([[0.01] * 2000])
    rows = torch.full((4000,), 1000)
    draws = torch.rand(4000, 2, generator=torch.Generator().manual_seed(0))
    away = TwoFrames(VIEW, near=2.0, far=4.0).other_moments(found, rows, draws) - 10
    assert abs(float((away > 0).double().mean()) - 0.5) < 0.03  # three deviations
    counts = torch.histc(away.abs(), 4, 2.0, 4.0)
    assert bool(((counts - 1000).abs() < 90).all())
    anywhere = TwoFrames(VIEW, far=None).other_moments(found, rows, draws)
    assert float(anywhere.min()) < 0.1
    assert float(anywhere.max()) > 19.9


def test_a_stated_distance_is_that_many_frames() -> None:
    found = films([[0.04] * 20, [0.04] * 30])
    rows = torch.arange(len(found.times))
    reads = TwoFrames(VIEW, near=0.2, far=0.2).training_rows(found, rows, 0, 3)
    assert torch.equal(reads[: len(rows)], rows)
    assert ((reads[len(rows) :] - rows).abs() == 5).all()
    assert torch.equal(found.first[reads[len(rows) :]], found.first)


def test_clips_lie_in_their_video_and_follow_each_other_where_they_are_evaluated() -> None:
    found, clips = films([[0.04] * 20, [0.04] * 2]), TwoClips(VIEW, frames=4, every=0.08)
    reads = clips.training_rows(found, torch.tensor([0, 18, 21]), 0, 0).view(2, 3, 4)
    assert reads[0].tolist() == [[0, 2, 4, 6], [14, 16, 18, 20], [21, 23, 23, 23]]
    for clip in reads[1].tolist():
        assert clip[1] - clip[0] in (1, 2)
        assert len({int(found.first[row]) for row in clip}) == 1
    asked = clips.examples(found)
    assert asked.tolist() == [0, 8, 21]
    assert clips.whole_rows(found, asked).view(3, 4).tolist() == [[0, 2, 4, 6], [8, 10, 12, 14], [21, 23, 23, 23]]


def test_all_frames_of_a_clip_are_cropped_and_coloured_alike_and_two_clips_are_not() -> None:
    picture = torch.randint(0, 256, (1, 3, 24, 24), dtype=torch.uint8)
    same = Canvases(picture.expand(2 * 2 * 4, -1, -1, -1), torch.full((16, 2), 24))
    first, second = TwoClips(VIEW, frames=4)(same, torch.tensor([5, 9]), 0, 0)
    clips = torch.cat([first["pixels"], second["pixels"]])
    assert clips.shape == (4, 3, 4, 16, 16)
    assert clips[:2].is_contiguous(memory_format=torch.channels_last_3d)
    for clip in clips:
        assert all(torch.equal(clip[:, 0], clip[:, frame]) for frame in range(4))
    assert len({clip[:, 0].sum().item() for clip in clips}) == 4


def recipe(name: str, **fields: object) -> Recipe:
    made = recipe_named(name, 64, SIDE)
    return replace(made, canvas=SIDE, batch=16, group=8, **fields)  # type: ignore[arg-type]


@pytest.fixture
def videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for i in range(4):
        film(tmp_path / "data" / "ab"[i % 2] / f"{i}.mp4", 16, first=16 * i, gop=5)
    return tmp_path / "data"


@pytest.mark.parametrize("name", ["video_moco", "video_moco_clips"])
def test_steps_are_equal_for_any_workers_cached_or_read_anew(videos: Path, name: str) -> None:
    source, spec = open_source(videos), recipe(name)
    order = order_of(source, spec.batch, 0, None)

    def seen(memory: int, workers: int, start: int = 0) -> list[Tensor]:
        made = batches(Loader(source, SIDE, memory, workers), spec, order, start, 3)
        return [part for batch in made for part in (batch.index, batch.first["pixels"], batch.second["pixels"])]

    expected = seen(GIB, 0)
    for found in (seen(0, 0), seen(0, 1), seen(0, 2)):
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(seen(0, 0, 2), expected[6:], strict=True))


def test_what_is_drawn_is_what_is_seen(videos: Path) -> None:
    """With views that change nothing the frames tell their numbers."""
    source, plain = open_source(videos), TwoFrames(PLAIN, near=0.16, far=0.16)
    spec = recipe("video_moco", pretext=plain)
    for batch in batches(Loader(source, SIDE, workers=0), spec, order_of(source, 16, 0, None), 0, 4):
        for row, first, second in zip(batch.index.tolist(), *(view["pixels"] for view in (batch.first, batch.second))):
            own, other = number_in(255 * first.numpy()), number_in(255 * second.numpy())
            assert own == number_in(source.example(row, SIDE).pixels.numpy())
            assert (abs(other - own), other // 16) == (4, own // 16)


def test_a_recipe_for_videos_refuses_pictures_in_one_line(tmp_path: Path) -> None:
    Image.fromarray(picture(0)).save(tmp_path / "a.png")
    loader = Loader(open_source(tmp_path), SIDE, workers=0)
    with pytest.raises(UserError, match="name video files or frames:FOLDER"):
        next(batches(loader, recipe("video_moco"), order_of(loader.source, 1, 0, None), 0, 1))


def test_what_is_made_for_single_pictures_takes_frames_and_refuses_clips_and_text() -> None:
    for name in ("small", "video_moco"):
        only_pictures(recipe(name), "fine-tuning")
    for name, examples in (("video_moco_clips", "clips"), ("simcse", "sentences"), ("text_pairs", "pairs")):
        with pytest.raises(UserError, match=f"fine-tuning is for pictures, and {name} is for {examples}"):
            only_pictures(recipe(name), "fine-tuning")


def test_frames_that_cannot_be_read_are_called_frames(videos: Path) -> None:
    source = open_source(videos)
    for path in videos.rglob("*.mp4"):
        path.unlink()
    for name in ("video_moco", "video_moco_clips"):
        with pytest.raises(UserError, match="64 of 64 frames cannot be read"):
            loader(recipe(name), source, None, workers=0)


def test_a_checkup_holds_whole_videos_out(videos: Path) -> None:
    loader = Loader(open_source(videos), SIDE, workers=0)
    found = Checkup.of(loader, recipe("video_moco"))
    assert sorted(found.rows.tolist()) == list(range(64))
    assert found.queries == 16
    assert not set((found.rows[:16] // 16).tolist()) & set((found.rows[16:] // 16).tolist())


def test_a_piece_of_a_video_is_the_mean_of_its_unit_features() -> None:
    paths = [f"{video}#t={i / 4:.6f}" for video in "ab" for i in range(6)] + ["picture.jpg"]
    features = torch.nn.functional.normalize(torch.randn(13, 5), dim=1)
    part = PartFeatures(features, torch.tensor([0] * 6 + [1] * 6 + [2]), paths)
    assert part.in_clips(None) is part
    found = part.in_clips(1.0)
    assert found.paths == ["a#t=0,1", "a#t=1,2", "b#t=0,1", "b#t=1,2", "picture.jpg"]
    assert found.labels.tolist() == [0, 0, 1, 1, 2]
    torch.testing.assert_close(found.features[1], torch.nn.functional.normalize(features[4:6].mean(0), dim=0))
    assert part.in_clips(math.inf).paths == ["a", "b", "picture.jpg"]
    assert pieces([f"a#t={i * 0.1:.6f}" for i in range(10)], 0.1)[1].tolist() == list(range(10))


def test_some_rows_of_videos_are_videos_of_fewer_frames(videos: Path) -> None:
    some = Rows(open_source(videos), torch.arange(0, 64, 4))
    found = Timeline.of(some.paths)
    assert found.first.tolist() == [0] * 4 + [4] * 4 + [8] * 4 + [12] * 4


def test_recipes_read_back_and_refuse_what_does_not_fit() -> None:
    for name in ("video_moco", "video_moco_clips", "video_moco_r3d"):
        made = RECIPES[name].fitted(2700, 64)
        assert from_plain(to_plain(made)) == made
        assert meaningless(made) is None
    clips = recipe("video_moco_clips")
    assert "encoders of videos" in str(meaningless(replace(clips, model=recipe("small").model)))
    assert "pretext.near" in str(meaningless(replace(clips, pretext=TwoClips(VIEW, near=2.0, far=1.0))))
    with pytest.raises(UserError, match=r"frames .* at least 2"):
        TwoClips(VIEW, frames=1)


@pytest.mark.parametrize("spec", [SmallVideoResNet((4, 8, 8), slow=1), VideoResNet()])
def test_encoders_of_videos_see_the_order_of_frames(spec: SmallVideoResNet | VideoResNet) -> None:
    torch.manual_seed(0)
    net, width = spec.build(4)
    clips = torch.randn(2, 3, 4, 16, 16)
    with torch.inference_mode():
        forward, backward = net.eval()(pixels=clips), net(pixels=clips.flip(2))
    assert forward.shape == (2, width)
    assert not torch.allclose(forward, backward, atol=1e-3 * float(forward.abs().max()))
