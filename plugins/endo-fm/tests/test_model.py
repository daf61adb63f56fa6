"""The pipelines around the networks, on videos that are written here."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

av = pytest.importorskip("av")

from omlab.cases import Video, read  # noqa: E402
from omlab.errors import InputError, UsageError  # noqa: E402
from omlab.model import Context  # noqa: E402
from omlab.plugins import Registry  # noqa: E402
from omlab.results import Classification, Scores  # noqa: E402
from omlab.vocabulary import InputKind, Kind  # noqa: E402
from omlab_endo_fm import boxes, clips  # noqa: E402

FRAMES, SIZE = 48, (80, 120)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of grey that grows from frame to frame, with a bright spot in frames 20 to 29."""
    path = tmp_path_factory.mktemp("video") / "tour.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = SIZE[1], SIZE[0], "yuv420p"
        for number in range(FRAMES):
            pixels = np.full((*SIZE, 3), 2 * number, np.uint8)
            if 20 <= number < 30:
                pixels[20:50, 40:80] = 250
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


class _Engine:
    """Answers by a function and keeps what it was given."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.given: list[dict[str, np.ndarray]] = []
        self.info = SimpleNamespace(device="cpu")

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.given.append(inputs)
        return self.answer(inputs)


def _setup(name: str, variant: str | None, engines: dict[str, Any], **options: Any) -> tuple[Any, Context]:
    registry = Registry.discover()
    model = registry.load(Kind.MODEL, name)
    filled = {option.name: option.default for option in model.card.options} | options
    return model, Context(variant=model.card.variant(variant), engines=engines, options=filled)


def _refused(name: str, **options: Any) -> None:
    """What a run does with options before it reads a case."""
    model, context = _setup(name, None, {}, **options)
    model.validate(context.options, None)


def _mean_logits(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    level = inputs["clip"].mean(axis=(1, 2, 3, 4))
    return {"logits": np.stack([-level, level], axis=1).astype(np.float32)}


def test_one_clip_is_classified_and_several_make_a_time_line(video: Path) -> None:
    engine = _Engine(_mean_logits)
    model, context = _setup("endo-fm", "polypdiag", {"classifier": engine})
    result = model.predict(read(video), context)
    assert isinstance(result, Classification)
    assert result.classes == ("normal", "abnormal")
    (given,) = engine.given
    assert given["clip"].shape == (1, 3, 8, 224, 224)
    # A clip spans 32 * 8 / 30 * 24 frames, more than there are: its end repeats the last frame.
    levels = (given["clip"].mean(axis=(0, 1, 3, 4)) * 0.225 + 0.45) * 255
    np.testing.assert_allclose(levels[[0, 2, 7]], [0, 94, 94], atol=18)
    model, context = _setup("endo-fm", "polypdiag", {"classifier": _Engine(_mean_logits)}, clips="all")
    line = model.predict(read(video), context)
    assert isinstance(line, Scores)
    assert list(line.columns) == ["clip", "start_frame", "start_s", "end_s", "normal", "abnormal"]
    assert line.columns["end_s"] == [2.0]
    assert line.measurements["highest_abnormal"] == pytest.approx(line.columns["abnormal"][0])
    for bad in ("some", "0", "-1"):
        with pytest.raises(UsageError, match="a number from 1 or 'all'"):
            _refused("endo-fm", clips=bad)


def test_embeddings_of_several_views(video: Path) -> None:
    engine = _Engine(lambda inputs: {"feature": np.full((1, 768), len(engine.given), np.float32)})
    model, context = _setup("endo-fm", "base", {"encoder": engine}, clips="3")
    result = model.predict(read(video), context)
    assert result.tokens.shape == (3, 768)
    np.testing.assert_allclose(result.vector, 2.0)
    assert _setup("endo-fm", "base", {"encoder": engine})[0].predict(
        read(video), _setup("endo-fm", "base", {"encoder": engine})[1]
    ).tokens is None  # fmt: skip


def test_a_single_frame_makes_a_clip(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    folder.mkdir()
    Pillow.fromarray(np.full((*SIZE, 3), 90, np.uint8)).save(folder / "1.png")
    engine = _Engine(_mean_logits)
    model, context = _setup("endo-fm", "polypdiag", {"classifier": engine})
    model.predict(read(folder, kind=InputKind.VIDEO), context)
    clip = engine.given[0]["clip"]
    np.testing.assert_allclose(clip, (90 / 255 - 0.45) / 0.225, atol=1e-5)


def _bright(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    shown = inputs["frames"]
    return {"logits": np.stack([np.zeros_like(shown[:, 0]), shown[:, 0] - 0.5], axis=1)}


def test_masks_lie_on_the_grid_of_the_frames(video: Path) -> None:
    engine = _Engine(_bright)
    model, context = _setup("endo-fm-seg", None, {"segmenter": engine}, clip=7)
    result = model.predict(read(video), context)
    assert result.labels.shape == (FRAMES, *SIZE)
    assert [len(g["frames"]) for g in engine.given] == [7] * 6 + [6]
    truth = np.zeros(SIZE, bool)
    truth[20:50, 40:80] = True
    found = result.labels[25] > 0
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.95
    assert result.found_in()[1] >= 10
    model, context = _setup("endo-fm-seg", None, {"segmenter": engine}, every=10)
    assert model.predict(read(video), context).frames.tolist() == [0, 10, 20, 30, 40]
    with pytest.raises(UsageError, match="option 'every' is at least 1, found 0"):
        _refused("endo-fm-seg", every=0)
    with pytest.raises(UsageError, match="option 'clip' is at least 0, found -1"):
        _refused("endo-fm-seg", clip=-1)


def test_the_whole_video_at_once_has_a_limit(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from omlab_endo_fm import segmenter

    engine = _Engine(_bright)
    model, context = _setup("endo-fm-seg", None, {"segmenter": engine}, clip=0)
    model.predict(read(video), context)
    assert [len(g["frames"]) for g in engine.given] == [FRAMES]
    monkeypatch.setattr(segmenter, "MOST", 20)
    with pytest.raises(InputError, match="has 48 frames to look at, at most 20"):
        model.predict(read(video), context)


def _maps(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A detector that sees brightness: certain of class 0 where the frame is bright, boxes of 80 pixels around it."""
    shown = inputs["frame"][0].mean(axis=0) + 117
    found: dict[str, np.ndarray] = {}
    for level, stride in ((3, 8), (4, 16), (5, 32), (6, 64), (7, 128)):
        side = 640 // stride
        small = shown[stride // 2 :: stride, stride // 2 :: stride]
        centre = np.full((1, 1, side, side), 4.0, np.float32)
        cls = np.where(small > 200, 4.0, -9.0) if level == 5 else np.full((side, side), -9.0)
        found |= {
            f"cls_tower{level}": np.full((1, 4, side, side), shown.mean(), np.float32),
            f"bbox_tower{level}": np.zeros((1, 4, side, side), np.float32),
            f"box{level}": np.full((1, 4, side, side), 40.0, np.float32), f"centerness{level}": centre,
            f"cls{level}": np.stack([cls, np.full_like(cls, -9.0)])[None].astype(np.float32),
        }  # fmt: skip
    return found


def _joined(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for level in range(3, 8):
        side = inputs[f"box{level}"].shape[-1]
        found[f"stft_cls{level}"] = np.full((1, 2, side, side), 4.0, np.float32)
        found[f"stft_box{level}"] = np.zeros((1, 4, side, side), np.float32)
    return found


def test_boxes_come_back_in_pixels_of_the_video(video: Path) -> None:
    frame, join = _Engine(_maps), _Engine(_joined)
    model, context = _setup("endo-fm-det", None, {"frame": frame, "join": join})
    result = model.predict(read(video), context)
    assert len(frame.given) == FRAMES  # every frame once
    assert len(join.given) == 10  # neighbours are looked at only where something may be
    assert set(result.frames.tolist()) == set(range(20, 30))
    assert result.classes == ("adenomatous polyp", "hyperplastic polyp")
    assert set(result.labels.tolist()) == {0}
    centres = (result.boxes[:, :2] + result.boxes[:, 2:]) / 2
    assert ((centres > (36, 16)) & (centres < (84, 54))).all()
    sizes = result.boxes[:, 2:] - result.boxes[:, :2]
    np.testing.assert_allclose(sizes, np.broadcast_to([80 * 120 / 640, 80 * 80 / 640], sizes.shape), rtol=1e-4)
    # Key frame and references: of frame 20 all from 11 to 29.
    tower = join.given[0]["cls_tower3"][:, 0, 0, 0]
    assert len(tower) == 11
    assert (tower[1:6] < tower[0]).all()
    again = model.predict(
        read(video), _setup("endo-fm-det", None, {"frame": _Engine(_maps), "join": _Engine(_joined)})[1]
    )
    np.testing.assert_array_equal(again.boxes, result.boxes)
    nothing = model.predict(
        read(video),
        _setup("endo-fm-det", None, {"frame": _Engine(_maps), "join": join}, every=40, threshold=0.5)[1],
    )
    assert nothing.boxes.shape == (0, 4)


@pytest.mark.parametrize(
    "option",
    [{"every": 0}, {"references": 0}, {"references": 10}, {"threshold": 1.0}, {"threshold": -0.1}, {"seed": -1}],
)
def test_options_of_the_detector_have_ranges(option: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"option '{next(iter(option))}'|, '{next(iter(option))}' from 0"):
        _refused("endo-fm-det", **option)


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    for name in ("endo-fm", "endo-fm-seg", "endo-fm-det"):
        model, context = _setup(name, None, {})
        with pytest.raises(InputError, match=f"{name} takes a video, found volume"):
            model.predict(SimpleNamespace(name="x", kind="volume"), context)
        folder = tmp_path / name
        folder.mkdir()
        Pillow.fromarray(np.zeros((20, 300), np.uint8)).save(folder / "1.png")
        with pytest.raises(InputError, match="frames of 20 x 300 pixels, expected at least 32"):
            model.predict(read(folder, kind=InputKind.VIDEO), context)


def test_frames_of_a_clip() -> None:
    sampling = clips.Sampling()
    assert clips.clip(300, 30.0, sampling, ticks=512.0).tolist() == [0, 36, 72, 109, 145, 182, 218, 255]
    assert clips.clip(10, 30.0, sampling, ticks=512.0).tolist() == [0, 9, 9, 9, 9, 9, 9, 9]
    # View 1 of 2 of 300 frames begins at (300 - 256) / 2.
    assert clips.clip(300, 30.0, sampling, view=1, views=2, ticks=512.0).tolist()[0] == 22
    assert clips.clip(300, 30.0, sampling, view=1, views=2).tolist() == [22, 58, 94, 131, 167, 204, 240, 277]
    assert clips.window(100, 32.3, view=1, views=2, ticks=1.0) == (33, 65)
    assert clips.window(100, 32.3, view=1, views=2, ticks=512.0) == (34, 65)
    every = clips.consecutive(600, 30.0, sampling)
    assert [int(c[0]) for c in every] == [0, 256, 512]
    assert every[-1].max() == 599
    assert len(clips.consecutive(1, 25.0, sampling)) == 1


@pytest.mark.parametrize("shape", [(40, 61), (61, 40), (32, 50), (300, 301)])
def test_the_resize_is_that_of_torch(shape: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    frames = np.random.default_rng(0).integers(0, 256, (2, *shape, 3), dtype=np.uint8)
    values = torch.from_numpy(((frames.astype(np.float32) / 255 - 0.45) / 0.225).transpose(3, 0, 1, 2))
    high, wide = clips.resized(*shape, 32)
    whole = torch.nn.functional.interpolate(values, (high, wide), mode="bilinear", align_corners=False).numpy()
    top, left = -(-(high - 32) // 2), -(-(wide - 32) // 2)
    found = clips.prepare(frames, size=32, crop=32, index=1)
    np.testing.assert_allclose(found, whole[:, :, top : top + 32, left : left + 32], atol=2e-5)


def test_a_flat_frame_is_no_division_by_zero() -> None:
    black = np.zeros((50, 60, 3), np.uint8)
    assert np.isfinite(clips.segmentation_input(black)).all()
    assert clips.rescaled(np.array([[10, 20, 30]], np.uint8)).tolist() == [[0, 127, 255]]
    np.testing.assert_allclose(clips.detection_input(black)[:, 0, 0], -clips.DETECTION_MEAN)


def test_references_lie_around_the_key_and_repeat() -> None:
    drawn = clips.references(50, 100, 5, 0)
    assert len(set(drawn.tolist())) == 10
    assert (drawn[:5] < 50).all()
    assert (drawn[5:] > 50).all()
    assert np.abs(drawn - 50).max() <= clips.REACH
    np.testing.assert_array_equal(drawn, clips.references(50, 100, 5, 0))
    assert any(not np.array_equal(drawn, clips.references(50, 100, 5, seed)) for seed in (1, 2, 3))
    assert clips.references(0, 1, 5, 0).tolist() == [0] * 10


def test_suppression_keeps_the_best_of_each_class() -> None:
    found = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [30, 30, 40, 40]], np.float32)
    assert boxes.suppress(found, np.array([0.5, 0.9, 0.1], np.float32), 0.6).tolist() == [1, 2]
    assert boxes.suppress(found[:0], np.zeros(0, np.float32), 0.6).tolist() == []
    level = {
        "cls": np.full((2, 1, 1), -20, np.float32), "centerness": np.zeros((1, 1, 1), np.float32),
        "pre_box": np.zeros((1, 4), np.float32), "stft_cls": np.zeros((2, 1, 1), np.float32),
        "stft_box": np.zeros((4, 1, 1), np.float32),
    }  # fmt: skip
    assert boxes.decode([level], (64, 64))[0].shape == (0, 4)


def test_long_videos_stream(video: Path) -> None:
    """Frames that were used are forgotten before the next are decoded."""
    from omlab_endo_fm.watching import stream

    case = read(video)
    assert isinstance(case, Video)
    wanted = [np.arange(start, start + 4) for start in range(0, 48, 4)]
    alive: list[int] = []

    def prepare(frame: np.ndarray) -> np.ndarray:
        alive.append(int(frame.mean()))
        return frame.transpose(2, 0, 1).astype(np.float32)

    for number, clip in enumerate(stream(case, wanted, prepare)):
        assert clip.shape == (3, 4, *SIZE)
        assert len(alive) == 4 * (number + 1)


def test_a_video_that_ends_early_has_no_clips_behind_its_end(tmp_path: Path) -> None:
    """A header that tells of more frames than there are: the time line ends where the frames do."""
    from omlab_endo_fm.watching import stream

    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(10):
        Pillow.fromarray(np.full((40, 40, 3), number, np.uint8)).save(folder / f"{number}.png")
    case = read(folder, kind=InputKind.VIDEO)
    for number in (2, 6, 7, 8, 9):
        (folder / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    wanted = [np.arange(0, 4), np.arange(4, 8), np.arange(8, 10)]
    found = list(stream(case, wanted, lambda frame: frame.transpose(2, 0, 1).astype(np.float32)))
    assert [clip[0, :, 0, 0].tolist() for clip in found] == [[0, 1, 1, 3], [4, 5, 5, 5]]
    assert len(case.source.warnings) == 6  # one a frame, and the rate
