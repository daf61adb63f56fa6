"""Prompts to masks: frames, queries, label maps, refinement, everything mode."""

from __future__ import annotations

from typing import Any

import attrs
import numpy as np
import pytest

torch = pytest.importorskip("torch")
F = torch.nn.functional

from omlab.cases import Image  # noqa: E402
from omlab.errors import InputError, UsageError  # noqa: E402
from omlab.loading import options_of  # noqa: E402
from omlab.model import Context  # noqa: E402
from omlab.plugins import Registry  # noqa: E402
from omlab.prompts import from_json, make  # noqa: E402
from omlab.vocabulary import Kind  # noqa: E402
from omlab_sam_med2d.network import Decoder, Encoder, Sam  # noqa: E402
from omlab_sdk.golden import seed_module  # noqa: E402
from omlab_sdk.segment_anything.everything import everything, non_maximum  # noqa: E402
from omlab_sdk.segment_anything.frame import encoder_input, frame_of, nearest, normalise  # noqa: E402
from omlab_sdk.segment_anything.model import phantom  # noqa: E402
from omlab_sdk.segment_anything.predictor import Query, sigmoid, stability  # noqa: E402


class Engines(dict):
    """The torch networks as engines; what was asked of them is counted and kept."""

    def __init__(self) -> None:
        sam = Sam(embed_dim=24, depth=1, num_heads=2, global_attn_indexes=(0,)).eval()
        seed_module(sam)
        super().__init__(encoder=Encoder(sam), decoder=Decoder(sam))
        self.calls: list[tuple[str, dict[str, np.ndarray]]] = []

    def __getitem__(self, name: str) -> Any:
        network = super().__getitem__(name)
        names = ["image_embeddings"] if name == "encoder" else ["low_res_masks", "iou_predictions"]

        def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            self.calls.append((name, inputs))
            with torch.inference_mode():
                found = network(*(torch.from_numpy(array) for array in inputs.values()))
            found = found if isinstance(found, tuple) else (found,)
            return {n: tensor.numpy() for n, tensor in zip(names, found, strict=True)}

        return run


@pytest.fixture(scope="module")
def model():
    return Registry.discover().load(Kind.MODEL, "sam-med2d")


@pytest.fixture(scope="module")
def networks() -> Engines:
    return Engines()


@pytest.fixture
def engines(networks: Engines) -> Engines:
    networks.calls.clear()
    return networks


@pytest.fixture
def picture() -> Image:
    return Image(name="slice.png", pixels=phantom(120, 180))


def _context(model, engines, prompts=None, case=None, variant=None, **options) -> Context:
    filled = options_of(model.card, options)
    model.validate(filled, prompts)
    placed = prompts.on(case) if prompts is not None else None
    return Context(variant=model.card.variant(variant), engines=engines, options=filled, prompts=placed)


# --- frames -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(120, 180), (300, 256), (256, 256), (31, 700)])
@pytest.mark.parametrize("way", ["stretch", "evaluation", "longest"])
def test_there_and_back(shape, way) -> None:
    """Places keep their place, and restoring is what torch's two bilinear steps give."""
    frame = frame_of(shape, 256, way)
    corners = np.array([[0, 0], [shape[1], shape[0]]])
    low, high = frame.into(corners)
    assert np.allclose(high - low, [frame.inner[1], frame.inner[0]])
    logits = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0))
    up = F.interpolate(logits[None], (256, 256), mode="bilinear", align_corners=False)
    top, left = frame.offset
    cut = up[..., top : top + frame.inner[0], left : left + frame.inner[1]]
    expected = F.interpolate(cut, shape, mode="bilinear", align_corners=False)[0].numpy()
    assert np.abs(frame.restore(logits.numpy()) - expected).max() < 1e-4


def test_small_pictures_are_padded_and_large_ones_resized_in_the_evaluation() -> None:
    small, large = phantom(100, 120), phantom(300, 200)
    padded = encoder_input(small, frame_of((100, 120), 256, "evaluation"), "evaluation")
    assert np.array_equal(padded[0, 0, 78:178, 68:188], normalise(small[:, :, ::-1])[:, :, 0])
    assert not padded[0, :, :78].any()  # zeros of the normalised picture, which are no black
    resized = encoder_input(large, frame_of((300, 200), 256, "evaluation"), "evaluation")
    assert resized.shape == (1, 3, 256, 256)
    coloured = large.copy()
    coloured[..., 0] = 255
    a, b = (encoder_input(coloured, frame_of((300, 200), 256, w), w) for w in ("evaluation", "stretch"))
    assert not np.allclose(a, b)  # blue first there, red first here


def test_nearest_looks_to_the_upper_left() -> None:
    line = np.arange(10).reshape(1, 10)
    assert nearest(line, (1, 4)).tolist() == [[0, 2, 5, 7]]
    assert nearest(line, (1, 20))[0, :4].tolist() == [0, 0, 1, 1]


def test_a_mask_becomes_shares_of_cells() -> None:
    mask = np.zeros((120, 180), bool)
    mask[30:60, 45:90] = True
    shares = frame_of((120, 180), 256).to_low(mask, 64)
    assert shares.shape == (64, 64)
    assert np.allclose(shares[16:32, 16:32], 1)
    assert shares.sum() == pytest.approx(16 * 16, rel=1e-5)
    padded = frame_of((120, 180), 256, "evaluation").to_low(mask, 64)
    assert padded.sum() == pytest.approx(30 * 45 / 16, rel=1e-5)


# --- prompts to masks -------------------------------------------------------------------------------------------------


def test_one_look_serves_all_labels(model, engines, picture) -> None:
    liver = {"label": "liver", "points": [[50, 60], [150, 20]], "point-labels": [1, 0]}
    prompts = from_json([liver, {"label": "spine", "boxes": [[80, 70, 110, 100]]}])
    result = model.predict(picture, _context(model, engines, prompts, picture))
    assert [name for name, _ in engines.calls] == ["encoder", "decoder"]
    assert result.labels.shape == (120, 180)
    assert [(s.value, s.name) for s in result.structures] == [(1, "liver"), (2, "spine")]
    assert set(result.measurements) == {
        "liver_predicted_iou", "liver_stability", "spine_predicted_iou", "spine_stability"
    }  # fmt: skip
    asked = engines.calls[1][1]
    assert asked["point_labels"].tolist() == [[1, 0, -1], [2, 3, -2]]  # padding without a box; absent where shorter
    assert np.allclose(asked["point_coords"][0, 0], [50 * 256 / 180, 60 * 256 / 120])
    assert np.allclose(
        asked["point_coords"][1, :2], [[80 * 256 / 180, 70 * 256 / 120], [110 * 256 / 180, 100 * 256 / 120]]
    )


def test_a_label_alone_is_what_it_is_among_others(model, engines, picture) -> None:
    """The greatest logit wins where labels claim the same pixel, and nowhere else does company change a mask."""
    a, b = {"label": "a", "points": [[50, 60]]}, {"label": "b", "boxes": [[20, 20, 150, 100]]}
    alone = [model.predict(picture, _context(model, engines, from_json([x]), picture)).labels > 0 for x in (a, b)]
    both = model.predict(picture, _context(model, engines, from_json([a, b]), picture))
    assert np.array_equal(both.labels > 0, alone[0] | alone[1])
    only = alone[0] & ~alone[1]
    assert (both.labels[only] == 1).all()


def test_several_boxes_are_asked_one_by_one(model, engines, picture) -> None:
    boxes = [[20, 20, 60, 60], [100, 60, 150, 110]]
    prompts = make(boxes=boxes, points=[(30, 30), (110, 70), (170, 10)], labels=(1, 0, 1))
    result = model.predict(picture, _context(model, engines, prompts, picture))
    kinds = engines.calls[1][1]["point_labels"].tolist()
    assert kinds == [[1, 2, 3], [0, 2, 3], [1, -1, -2]]  # each with its own points; the loose one by itself
    single = (
        make(box=boxes[0], point=(30, 30)), make(box=boxes[1], point=(110, 70), labels=0), make(point=(170, 10)),
    )  # fmt: skip
    parts = [model.predict(picture, _context(model, engines, p, picture)).labels > 0 for p in single]
    assert np.array_equal(result.labels > 0, parts[0] | parts[1] | parts[2])


def test_rounds_feed_the_mask_back(model, engines, picture) -> None:
    prompts = make(point=(50, 60))
    model.predict(picture, _context(model, engines, prompts, picture, rounds=3))
    decoder = [inputs for name, inputs in engines.calls if name == "decoder"]
    assert [inputs["has_mask_input"].tolist() for inputs in decoder] == [[0], [1], [1]]
    fed = decoder[1]["mask_input"]
    assert fed.min() >= 0  # probabilities, as SAM-Med2D was trained
    assert fed.max() <= 1


def test_the_choice_of_masks(model, engines, picture) -> None:
    session = model.open(picture, _context(model, engines, make(point=(50, 60)), picture))
    query = session.predictor.query([(50, 60)], [1])
    masks, qualities = session.predictor.decode([query])
    best = session.predictor.predict([query])
    assert np.array_equal(best.low[0], masks[0, 1 + qualities[0, 1:].argmax()])
    single = session.predictor.predict([query], multimask=False)
    assert np.array_equal(single.low[0], masks[0, 0])


def test_a_session_refines_its_last_mask(model, engines, picture) -> None:
    first = _context(model, engines, make(point=(50, 60)), picture)
    session = model.open(picture, first)
    session.answer(first)
    low = session.predictor.predict([session.predictor.query([(50, 60)], [1])]).low[0]
    engines.calls.clear()
    more = _context(model, engines, make(points=[(50, 60), (90, 90)], labels=(1, 0)), picture, refine=True)
    session.answer(more)
    (call,) = engines.calls
    assert call[0] == "decoder"  # the picture is not looked at again
    assert np.allclose(call[1]["mask_input"][0, 0], sigmoid(low), atol=1e-5)
    with pytest.raises(UsageError, match="'new' cannot be refined: the session gave 0 masks for it"):
        session.answer(_context(model, engines, make(point=(5, 6), label="new"), picture, refine=True))


def test_segment_anything_is_fed_logits(model, engines, picture) -> None:
    mask = np.zeros((120, 180))
    mask[30:60, 45:90] = 1
    for variant, low, high in (("base", 0, 1), ("sam", -9.3, 9.3)):
        chosen = model.card.variant(variant)
        chosen = attrs.evolve(chosen, config=dict(chosen.config) | {"side": 256})  # the small networks of this test
        context = attrs.evolve(_context(model, engines, make(mask=mask), picture), variant=chosen)
        engines.calls.clear()
        model.predict(picture, context)
        fed = engines.calls[1][1]
        assert fed["mask_input"].min() == pytest.approx(low, abs=0.1)
        assert fed["mask_input"].max() == pytest.approx(high, abs=0.1)
        assert fed["point_labels"].tolist() == [[-2]]  # a mask alone has no token


def test_the_threshold_decides(model, engines, picture) -> None:
    areas = [
        model.predict(picture, _context(model, engines, make(point=(50, 60)), picture, threshold=t)).counts()[1]
        for t in (0.3, 0.5, 0.7)
    ]
    assert areas[0] > areas[1] > areas[2]


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        (None, {}, "no prompt is given. Give --point, --box, --mask or --prompts, or --everything"),
        (make(point=(1, 2)), {"everything": True}, "exclude each other"),
        (make(point=(1, 2)), {"threshold": 1.0}, "'threshold' is between 0 and 1, found 1"),
        (make(point=(1, 2)), {"rounds": 0}, "'rounds' is from 1 to 64, found 0"),
        (None, {"everything": True, "grid": 0}, "'grid' is from 1 to 256, found 0"),
        (None, {"everything": True, "min-stability": 2.0}, "'min-stability' is from 0 to 1, found 2"),
    ],
)  # fmt: skip
def test_what_fits_no_picture_is_wrong_usage(model, prompts, options, message) -> None:
    with pytest.raises(UsageError, match=message):
        model.validate(options_of(model.card, options), prompts)


def test_too_many_points(model, engines, picture) -> None:
    prompts = make(points=[(5, 5)] * 127)
    with pytest.raises(UsageError, match="has 127 points, at most 126 are possible"):
        model.predict(picture, _context(model, engines, prompts, picture))


def test_another_kind_of_case_is_refused(model, engines) -> None:
    case = attrs.make_class("Case", {"name": attrs.field(default="x"), "kind": attrs.field(default="volume")})()
    with pytest.raises(InputError, match="takes a picture, found volume"):
        model.open(case, Context(variant=model.card.variant(), engines=engines))


def test_queries_check_themselves(model, engines, picture) -> None:
    with pytest.raises(ValueError, match="1 points have 2 labels"):
        Query([[1, 2]], [1, 0])
    session = model.open(picture, _context(model, engines, make(point=(1, 2)), picture))
    with pytest.raises(ValueError, match="no point, no box and no mask"):
        session.predictor.decode([Query()])


# --- everything -------------------------------------------------------------------------------------------------------


class Blobs:
    """A decoder that sees a disc wherever it is asked inside of one, and a worse, a shaky and an empty alternative."""

    discs = ((64.0, 64.0, 30.0), (180.0, 160.0, 40.0))

    def __call__(self, inputs):
        y, x = np.meshgrid(np.arange(64) * 4 + 2, np.arange(64) * 4 + 2, indexing="ij")
        masks, qualities = [], []
        for place in inputs["point_coords"][:, 0]:
            disc = next((d for d in self.discs if np.hypot(place[0] - d[0], place[1] - d[1]) < d[2]), None)
            if disc is None:
                masks.append(np.full((4, 64, 64), -9, np.float32))
                qualities.append([0, 0.1, 0.1, 0.1])
                continue
            depth = (disc[2] - np.hypot(x - disc[0], y - disc[1])).astype(np.float32)
            masks.append(np.stack([depth, 6 * depth, depth / 40, depth - 5]))
            qualities.append([1, 0.97 - abs(float(place[0]) - disc[0]) / 1e4, 0.99, 0.5])
        return {"low_res_masks": np.float32(masks), "iou_predictions": np.float32(qualities)}


def test_everything_finds_each_thing_once(model, picture) -> None:
    frame = frame_of((512, 512), 256)
    from omlab_sdk.segment_anything.predictor import Predictor

    told = []
    predictor = Predictor(Blobs(), frame, np.zeros((1, 256, 16, 16), np.float32))
    found = everything(predictor, grid=16, tell=lambda done, total: told.append((done, total)))
    assert [round(one.area / (np.pi * r * r * 4), 1) for one, r in zip(found, (40, 30), strict=True)] == [1.0, 1.0]
    assert all(one.quality > 0.96 and one.stability > 0.95 for one in found)  # the shaky one is better and dropped
    assert np.allclose(found[1].box, [68, 68, 187, 187], atol=3)
    assert told[-1] == (256, 256)
    assert everything(predictor, grid=16, min_quality=0.98, min_stability=0.99) == []


def test_everything_is_a_label_map(model, engines, picture) -> None:
    context = _context(model, engines, everything=True, grid=3, min_quality=-1e6, min_stability=0.0)
    result = model.predict(picture, context)
    assert result.measurements["segments"] == len(result.structures) > 0
    assert result.structures[0].name == "segment 1"
    assert 0 < len(np.unique(result.labels)) <= len(result.structures) + 1
    assert sum(inputs["point_coords"].shape[0] for name, inputs in engines.calls if name == "decoder") == 9


def test_of_overlapping_boxes_the_best_stays() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60], [0, 0, 4, 4]])
    assert non_maximum(boxes, np.float32([0.5, 0.9, 0.4, 0.8]), 0.7) == [1, 3, 2]
    assert non_maximum(np.zeros((0, 4), int), np.zeros(0, np.float32), 0.7) == []


def test_stability() -> None:
    logits = np.float32([[-3, -0.5, 0.5, 3]])
    assert stability(logits[None])[0] == pytest.approx(1 / 3)
    assert stability(np.full((1, 2, 2), -9, np.float32))[0] == 0
