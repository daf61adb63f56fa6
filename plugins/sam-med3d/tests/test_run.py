"""From weights file and scan to files, as a user runs it: command line, sessions, evaluation, training, bad input. On a
small name-seeded network of the published shape outside of the encoder."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import omlab  # noqa: E402
from omlab.cli.main import main  # noqa: E402
from omlab.errors import InputError, UsageError, WeightsError  # noqa: E402
from omlab.geometry import Geometry  # noqa: E402
from omlab_sam_med3d import checkpoint, evaluation, network  # noqa: E402
from omlab_sam_med3d.losses import DiceCELoss  # noqa: E402
from omlab_sam_med3d.model import phantom  # noqa: E402
from omlab_sam_med3d.network import Sam3d  # noqa: E402
from omlab_sam_med3d.training import EPOCHS, ClickLoss, example, optimiser, schedule  # noqa: E402
from omlab_sdk.golden import seed_module  # noqa: E402

BRATS = Path(__file__).resolve().parents[4] / "shared" / "data" / "brats_flair"
TINY = {"img_size": 32, "prompt_dim": 48, "dec_mlp": 48, "embed_dim": 24, "depth": 1, "num_heads": 2}
SIZE = {"embed_dim": 24, "depth": 2, "num_heads": 2, "global_attn_indexes": (1,)}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home of omlab with a weights file in the container of upstream's training, of a network that is quick."""
    root = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        _small(patch, root)
        content = {
            "epoch": 3, "model_state_dict": seed_module(Sam3d.of_size()).state_dict(), "losses": [0.5],
            "args": argparse.Namespace(lr=8e-4), "best_dice": 0.8, "used_datas": ["x"],
        }  # fmt: skip
        torch.save(content, root / "sam_med3d_turbo.pth")
        assert main(["pull", "sam-med3d", "--file", f"net={root / 'sam_med3d_turbo.pth'}"]) == 0
    return root


def _small(patch: pytest.MonkeyPatch, root: Path) -> None:
    patch.setenv("OMLAB_HOME", str(root))
    patch.delenv("OMLAB_WEIGHTS", raising=False)
    patch.setitem(network.SIZES, "vit_b_ori", SIZE)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    _small(monkeypatch, home)


def _save(path: Path, voxels: np.ndarray, spacing=(1.5, 1.5, 1.5), signs=(1, 1, 1)) -> Path:
    affine = np.diag([*(s * f for s, f in zip(spacing, signs, strict=True)), 1.0])
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return path


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head on an anisotropic grid that is flipped and whose slices are thick."""
    head = phantom(96)[:, 8:-8, ::4]
    return _save(tmp_path_factory.mktemp("scans") / "head.nii.gz", head.astype(np.int16), (2, 2, 6), (-1, 1, -1))


def _run(capsys, *arguments) -> tuple[int, dict, str]:
    code = main(["run", "sam-med3d", *map(str, arguments), "--engine", "torch", "--threads", "1", "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if captured.out else {}, captured.err


def test_command_line(tmp_path: Path, scan: Path, capsys) -> None:
    """Clicks, a mask, several structures; the result lies on the scan's grid."""
    rough = np.zeros((96, 80, 24), np.uint8)
    rough[50:62, 40:52, 10:16] = 3
    mask = tmp_path / "rough.nii.gz"
    nibabel.save(nibabel.Nifti1Image(rough, nibabel.load(scan).affine), mask)
    prompts = {
        "objects": [
            {"label": "a", "points": [[48, 40, 12], [20, 20, 5]], "point-labels": [1, 0]},
            {"label": "b", "mask": {"file": "rough.nii.gz", "value": 3}},
            {"label": "c", "points": [[-120.0, 60, -70]], "space": "ras-mm"},
        ]
    }
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    code, _, error = _run(capsys, scan, "--prompts", tmp_path / "prompts.json", "-o", tmp_path / "out")
    assert code == 0, error
    record = json.loads((tmp_path / "out" / "head" / "result.json").read_text())
    assert [s["name"] for s in record["result"]["structures"]] == ["a", "b", "c"]
    assert set(record["result"]["measurements"]) == {f"{n}_predicted_iou" for n in "abc"}
    assert record["stages"]["network"]["seconds"] > 0
    written = nibabel.load(next((tmp_path / "out" / "head").glob("*.nii.gz")))
    assert written.shape == (96, 80, 24)
    assert np.allclose(written.affine, nibabel.load(scan).affine)
    assert set(np.unique(np.asarray(written.dataobj))) >= {0, 1, 3}
    assert (tmp_path / "out" / "head" / "overview.png").stat().st_size > 10_000


def test_flipped_files_give_the_same_mask(tmp_path: Path, scan: Path) -> None:
    """The same head, its axes stored the other way round."""
    model = omlab.load("sam-med3d", engine="torch", threads=1)
    image = nibabel.load(scan)
    voxels = np.asarray(image.dataobj)
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, 0] * 95
    affine[:3, 0] *= -1
    other = tmp_path / "other.nii.gz"
    nibabel.save(nibabel.Nifti1Image(voxels[::-1].transpose(1, 0, 2), affine[:, [1, 0, 2, 3]]), other)
    first = model(scan, prompts={"objects": [{"points": [[41, 45, 12]]}]}).labels
    second = model(other, prompts={"objects": [{"points": [[45, 54, 12]]}]}).labels
    assert (first != second.transpose(1, 0, 2)[::-1]).mean() < 1e-3
    assert 0 < first.mean() < 1


def test_a_session_looks_once(scan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Further clicks near the first need no encoder; refining equals giving the clicks one after another."""
    model = omlab.load("sam-med3d", engine="torch", threads=1)
    session = model.open(scan)
    first = session(point=(48, 40, 12), label="x")
    shown = len(session._session._predictors)
    session(point=(50, 42, 13), label="x")
    assert len(session._session._predictors) == shown == 1
    session(point=(48, 40, 12), label="x")
    refined = session(point=(30, 30, 9), labels=0, label="x", refine=True)
    whole = model(
        scan, prompts={"objects": [{"label": "x", "points": [[48, 40, 12], [30, 30, 9]], "point-labels": [1, 0]}]}
    )
    assert np.array_equal(refined.labels, whole.labels)
    assert not np.array_equal(refined.labels, first.labels)
    at_once = model(
        scan, prompts={"objects": [{"label": "x", "points": [[48, 40, 12], [30, 30, 9]], "point-labels": [1, 0]}]},
        one_by_one=False,
    )  # fmt: skip
    assert not np.array_equal(at_once.labels, whole.labels)
    with pytest.raises(UsageError, match="'y' cannot be refined"):
        session(point=(48, 40, 12), label="y", refine=True)


def test_windows_reach_farther(tmp_path: Path) -> None:
    """The centre is as before; what lies within 48 mm around the cube is added."""
    model = omlab.load("sam-med3d", engine="torch", threads=1)
    large = np.pad(phantom(64), ((70, 70), (0, 0), (0, 0))).astype(np.float32) + 1
    path = _save(tmp_path / "large.nii.gz", large)
    asked = {"objects": [{"points": [[100, 32, 32]]}]}
    cube, wide = model(path, prompts=asked).labels, model(path, prompts=asked, extent="windows").labels
    assert np.array_equal(cube[36:164], wide[36:164])
    assert not cube[:36].any() and wide[4:36].any() and not wide[:4].any()


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([{"points": [[96, 0, 0]]}], {}, "lies outside of the 96 x 80 x 24 voxels"),
        ([{"points": [[5, 5]]}], {}, "3 were expected"),
        ([{"points": [[48, 40, 12]], "point-labels": [0]}], {}, "only points that do not belong"),
        ([{"boxes": [[1, 1, 1, 9, 9, 9]]}], {}, "takes no box as a prompt"),
        ([{"points": [[48, 40, 12]]}], {"threshold": 1.0}, "between 0 and 1"),
        ([{"points": [[48, 40, 12]]}], {"refine": True}, "cannot be refined"),
        ([{"points": [[48, 40, 12]] * 128}], {}, "at most 127"),
        (None, {}, "no prompt is given"),
    ],
)
def test_wrong_prompts(scan: Path, prompts, options, message: str) -> None:
    model = omlab.load("sam-med3d", engine="torch", threads=1)
    with pytest.raises((UsageError, InputError), match=message):
        model(scan, prompts=prompts and {"objects": prompts}, **options)


def test_odd_scans(tmp_path: Path) -> None:
    model = omlab.load("sam-med3d", engine="torch", threads=1)
    asked = {"objects": [{"points": [[0, 0, 0]]}]}
    tiny = _save(tmp_path / "tiny.nii.gz", np.arange(1, 28, dtype=np.int16).reshape(3, 3, 3))
    assert model(tiny, prompts=asked).labels.shape == (3, 3, 3)
    flat = _save(tmp_path / "flat.nii.gz", np.arange(1, 401, dtype=np.float32).reshape(20, 20, 1), (1, 1, 8))
    assert model(flat, prompts=asked).labels.shape == (20, 20, 1)
    for name, voxels in (("zeros", np.zeros((9, 9, 9), np.int16)), ("below", np.full((9, 9, 9), -40, np.int16))):
        with pytest.raises(InputError, match="no voxels above 0 that differ"):
            model(_save(tmp_path / f"{name}.nii.gz", voxels), prompts=asked)
    far = _save(tmp_path / "far.nii.gz", np.ones((300, 9, 9), np.int16))
    with pytest.raises(InputError, match="lie 362 mm apart, the network sees 192 mm"):
        model(far, prompts={"objects": [{"points": [[0, 0, 0], [240, 0, 0]]}]})
    endless = _save(tmp_path / "endless.nii.gz", np.ones((300, 9, 9), np.int16), (20, 1, 1))
    with pytest.raises(InputError, match="6 m long by its spacing"):
        model(endless, prompts=asked)
    colours = np.zeros((9, 9, 9), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    rgb = tmp_path / "rgb.nii.gz"
    nibabel.save(nibabel.Nifti1Image(colours, np.eye(4)), rgb)
    with pytest.raises(InputError):
        model(rgb, prompts=asked)


def test_evaluation(tmp_path: Path, capsys) -> None:
    """On upstream's folders, with label maps on the scans' grids."""
    folder = tmp_path / "data" / "brain" / "mr_x"
    (folder / "imagesTr").mkdir(parents=True)
    (folder / "labelsTr").mkdir()
    head = phantom(48)
    labels = np.zeros(head.shape, np.uint8)
    labels[20:30, 20:30, 20:30] = 1
    labels[30:36, 20:30, 20:30] = 4
    _save(folder / "imagesTr" / "a.nii.gz", head, (3, 3, 3))
    _save(folder / "labelsTr" / "a.nii.gz", labels, (3, 3, 3))
    out = tmp_path / "out"
    assert evaluation.main([str(tmp_path / "data"), "--clicks", "2", "--engine", "torch", "-o", str(out)]) == 0
    report = json.loads((out / "report.json").read_text())
    (case,) = report["cases"].values()
    assert set(case) == {"1", "4"}
    assert all(len(scored["by_click"]) == 2 and 0 <= scored["dice"] <= 1 for scored in case.values())
    assert report["summary"]["undefined"] == 0
    assert nibabel.load(next(out.glob("*/*.nii.gz"))).shape == head.shape
    assert evaluation.main([str(tmp_path / "nothing"), "-o", str(tmp_path / "x")]) == 1
    assert "holds no folder 'imagesTr'" in capsys.readouterr().err


def _tiny_engines():
    sam = seed_module(Sam3d(**TINY)).eval()
    names = ("image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input")

    @torch.inference_mode()
    def encode(inputs):
        return {"image_embeddings": network.Encoder(sam)(torch.from_numpy(inputs["image"])).numpy()}

    @torch.inference_mode()
    def decode(inputs):
        masks, qualities = network.Decoder(sam)(*(torch.from_numpy(inputs[name]) for name in names))
        return {"low_res_masks": masks.numpy(), "iou_predictions": qualities.numpy()}

    return encode, decode


@pytest.mark.parametrize(("rule", "windows"), [("newest", False), ("newest", True), ("validation", False)])
def test_evaluation_of_the_real_scan(rule: str, windows: bool) -> None:
    """At 6 mm with a tiny network: the best click counts, windows reach farther than the cube."""
    pytest.importorskip("scipy")
    if not BRATS.is_dir():
        pytest.skip("needs data/brats_flair in the folder shared beside the project")
    image, labels = (next(BRATS.glob(f"*_{kind}.nii.gz")) for kind in ("image", "label"))
    scan, truth = omlab.cases.read(image), np.asarray(nibabel.load(labels).dataobj).astype(np.uint8)
    ways = {
        wide: evaluation.Evaluation(
            *_tiny_engines(), size=32, spacing_mm=6.0, rule=evaluation.Rule(rule), clicks=3, windows=wide
        )
        for wide in {False, windows}
    }  # fmt: skip
    prediction, scores = ways[windows].case(scan, truth)
    assert prediction.shape == truth.shape
    assert len(scores[1].by_click) == 3
    if rule == "validation":
        assert scores[1].dice == max(scores[1].by_click)
    else:
        assert scores[1].dice == pytest.approx(evaluation.dice(prediction, truth))
    if windows:
        assert not np.array_equal(prediction, ways[False].case(scan, truth)[0])
    again, _ = ways[windows].case(scan, truth)
    assert np.array_equal(again, prediction)  # the seed is upstream's
    with pytest.raises(InputError, match="label map is empty"):
        ways[windows].case(scan, np.zeros_like(truth))


@pytest.mark.parametrize(("rule", "expected"), [("newest", 0.0), ("validation", None)])
def test_a_label_that_resampling_loses(rule: str, expected: float | None) -> None:
    """Nothing can be clicked on: an empty mask, which upstream's newest script counts like any other."""
    voxels = np.random.default_rng(0).integers(1, 200, (24, 24, 24)).astype(np.int16)
    scan = omlab.Volume(name="scan", voxels=voxels, geometry=Geometry(voxels.shape, np.eye(4)))
    labels = np.zeros(voxels.shape, np.uint8)
    labels[12, 12, 12] = 1  # voxels of the grid of 6 mm lie around 2.5, 8.5, 14.5, ...
    labels[4:20, 4:20, 4:10] = 3
    way = evaluation.Evaluation(*_tiny_engines(), size=32, spacing_mm=6.0, rule=evaluation.Rule(rule))
    prediction, scores = way.case(scan, labels)
    assert scores[1].dice == expected and not scores[1].by_click and not (prediction == 1).any()
    assert scores[3].dice is not None and len(scores[3].by_click) == 1
    found = evaluation.summary({"scan": scores})
    values = [scores[value].dice for value in (1, 3) if scores[value].dice is not None]
    assert found["dice"] == pytest.approx(np.mean(values)) and found["undefined"] == (expected is None)


def test_checkpoints(tmp_path: Path, home: Path) -> None:
    state = seed_module(Sam3d.of_size()).state_dict()
    torch.save({**state, "pixel_mean": torch.zeros(3, 1, 1)}, tmp_path / "bare.pth")
    assert checkpoint.fitted(Sam3d.of_size(), checkpoint.read(tmp_path / "bare.pth"), "bare.pth")
    torch.save({"model_state_dict": {k: v for k, v in state.items() if "neck" not in k}}, tmp_path / "part.pth")
    with pytest.raises(WeightsError, match="6 entries missing"):
        checkpoint.fitted(Sam3d.of_size(), checkpoint.read(tmp_path / "part.pth"), "part.pth")
    torch.save({"model": {}}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="has no entry 'model_state_dict'"):
        checkpoint.read(tmp_path / "other.pth")


def test_training_lowers_its_loss() -> None:
    torch.manual_seed(0)
    sam = seed_module(Sam3d(**TINY))
    objective = ClickLoss(sam, rounds=4, all_clicks=True)
    cubes = torch.randn(2, 1, 32, 32, 32)
    masks = torch.zeros(2, 1, 32, 32, 32)
    masks[:, :, 8:24, 8:24, 8:24] = 1
    cubes += 3 * masks
    optimizer = optimiser(sam, 4e-3)
    values = []
    for _ in range(8):
        value = objective(cubes, masks, np.random.RandomState(1))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert values[-1] < 0.8 * values[0]
    assert all(p.grad is not None for n, p in sam.named_parameters() if "blocks.0" in n)


def test_examples_of_training() -> None:
    """Cut out around the mask wherever it lies, flipped with it, and normalised; small masks are drawn again."""
    scan = np.random.default_rng(0).integers(1, 900, (40, 30, 20)).astype(np.int16)
    mask = np.zeros(scan.shape, np.uint8)
    mask[25:40, 2:14, 4:14] = 1
    scan[mask > 0] += 2000
    seen = set()
    for seed in range(12):
        made = example(scan, mask, np.random.RandomState(seed), (32, 32, 32))
        assert made is not None
        cube, truth = made
        assert cube.shape == truth.shape == (1, 32, 32, 32) and cube.dtype == truth.dtype == np.float32
        assert truth.sum() == mask.sum() and cube[truth > 0].min() > cube[truth == 0].max()
        assert [
            int(np.flatnonzero(truth[0].any(axis=axes)).mean()) for axes in ((1, 2), (0, 2), (0, 1))
        ] == pytest.approx([15.5] * 3, abs=1)
        seen.add(cube.tobytes())
    assert 3 < len(seen) <= 8
    whole = example(scan[25:, :14, :14], mask[25:, :14, :14], np.random.RandomState(0), (16, 16, 16))
    assert whole is not None and whole[1].sum() == mask.sum()
    assert example(scan, (mask > 0) & (np.arange(40) < 31)[:, None, None], np.random.RandomState(0)) is None
    with pytest.raises(ValueError, match="has a mask of"):
        example(scan, mask[1:], np.random.RandomState(0))


def test_rates_drop_twice() -> None:
    sam = torch.nn.Module()
    for name in ("image_encoder", "prompt_encoder", "mask_decoder"):
        setattr(sam, name, torch.nn.Linear(1, 1))
    steps = optimiser(sam)
    rates = schedule(steps)
    found = []
    for _ in range(EPOCHS):
        found.append([group["lr"] for group in steps.param_groups])
        steps.step()
        rates.step()
    for epoch, factor in ((0, 1), (119, 1), (120, 0.1), (179, 0.1), (180, 0.01), (199, 0.01)):
        assert found[epoch] == pytest.approx([8e-4 * factor, 8e-5 * factor, 8e-5 * factor])


def test_loss_by_hand() -> None:
    logits, mask = torch.zeros(1, 1, 2, 1, 1), torch.tensor([1.0, 0]).reshape(1, 1, 2, 1, 1)
    dice = 1 - (2 * 0.5 + 1e-5) / (0.5 + 1 + 1e-5)
    assert float(DiceCELoss(cross_entropy=False)(logits, mask)) == pytest.approx(dice)
    assert float(DiceCELoss()(logits, mask)) == pytest.approx(dice + np.log(2), rel=1e-5)
