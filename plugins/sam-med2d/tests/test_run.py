"""From weights file and picture to files, as a user runs it: command line and API, on small name-seeded weights."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image as Picture

torch = pytest.importorskip("torch")

import omlab  # noqa: E402
from omlab.cli.main import main  # noqa: E402
from omlab_sam_med2d import evaluation, network  # noqa: E402
from omlab_sam_med2d.dataset import MaskedPictures  # noqa: E402
from omlab_sam_med2d.network import Sam  # noqa: E402
from omlab_sdk.golden import seed_module  # noqa: E402
from omlab_sdk.segment_anything.model import phantom  # noqa: E402

DEMO = Path(__file__).resolve().parents[4] / "shared" / "data" / "sam_med2d_demo"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home of omlab with a weights file in upstream's container, of a network that is quick to run."""
    root = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        _small(patch, root)
        torch.save({"model": seed_module(Sam.of_size()).state_dict()}, root / "sam-med2d_b.pth")
        assert main(["pull", "sam-med2d", "--file", f"net={root / 'sam-med2d_b.pth'}"]) == 0
    return root


def _small(patch: pytest.MonkeyPatch, root: Path) -> None:
    patch.setenv("OMLAB_HOME", str(root))
    patch.delenv("OMLAB_WEIGHTS", raising=False)
    size = {"embed_dim": 24, "depth": 2, "num_heads": 2, "global_attn_indexes": (1,)}
    patch.setitem(network.SIZES, "vit_b", size)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    _small(monkeypatch, home)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Picture.fromarray(phantom(150, 200)).save(tmp_path / "slice.png")
    return tmp_path / "slice.png"


def _run(capsys, *arguments) -> tuple[int, dict, str]:
    code = main(["run", "sam-med2d", *map(str, arguments), "--engine", "torch", "--json"])
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if captured.out else {}, captured.err


def test_points_boxes_and_a_mask_at_once(image, tmp_path, capsys) -> None:
    mask = np.zeros((150, 200), np.uint8)
    mask[40:90, 50:120] = 255
    Picture.fromarray(mask).save(tmp_path / "rough.png")
    code, rows, error = _run(
        capsys, image, "-o", tmp_path / "out", "--point", "80,60", "--point", "190,10:0", "--box", "50,40,120,90",
        "--mask", tmp_path / "rough.png", "--rounds", "2",
    )  # fmt: skip
    assert code == 0, error
    folder = tmp_path / "out" / "slice"
    assert {p.name for p in folder.iterdir()} == {"segmentation.png", "overview.png", "result.json"}
    record = json.loads((folder / "result.json").read_text())
    labels = np.asarray(Picture.open(folder / "segmentation.png"))
    assert labels.shape == (150, 200)
    (structure,) = record["result"]["structures"]
    assert (structure["name"], structure["voxels"]) == ("object", int((labels == 1).sum()))
    assert set(record["result"]["measurements"]) == {"object_predicted_iou", "object_stability"}
    assert record["prompts"]["objects"][0]["point-labels"] == [1, 0]
    assert set(record["engines"]) == {"encoder", "decoder"}
    assert rows["cases"][0]["status"] == "done"
    _, rows, _ = _run(capsys, image, "-o", tmp_path / "out", "--point", "80,60", "--resume")
    assert rows["cases"][0]["status"] == "done"
    _, rows, _ = _run(capsys, image, "-o", tmp_path / "out", "--point", "80,60", "--resume")
    assert rows["cases"][0]["status"] == "skipped"


def test_prompts_are_drawn(image, tmp_path, capsys) -> None:
    pictures = []
    for number, more in enumerate((["--point", "80,60"], ["--point", "80,60", "--point", "20,20:0"])):
        _run(capsys, image, "-o", tmp_path / f"{number}", *more, "--threshold", "0.999999")
        pictures.append(np.asarray(Picture.open(tmp_path / f"{number}" / "slice" / "overview.png")).astype(int))
    where = np.argwhere(np.abs(pictures[0] - pictures[1]).sum(axis=2) > 60)
    assert len(where)
    factor = 900 / 200
    assert np.abs(where - [78 + 4.5 * 20.5, 28 + factor * 20.5]).max() < 10  # only where the second point is


def test_all_labels_from_a_prompts_file(image, tmp_path, capsys) -> None:
    table = {"cases": {"slice": [
        {"label": "liver", "points": [[60, 60]]}, {"label": "spine", "boxes": [[90, 80, 120, 120]]},
        {"label": "liver", "points": [[90, 50]]},
    ]}}  # fmt: skip
    (tmp_path / "p.json").write_text(json.dumps(table))
    code, _, error = _run(capsys, image, "-o", tmp_path / "out", "--prompts", tmp_path / "p.json")
    assert code == 0, error
    record = json.loads((tmp_path / "out" / "slice" / "result.json").read_text())
    assert [s["name"] for s in record["result"]["structures"]] == ["liver", "spine"]  # parts of a label are one


def test_everything(image, tmp_path, capsys) -> None:
    options = ["--everything", "--grid", "2", "--min-quality", "-1000", "--min-stability", "0"]
    code, rows, error = _run(capsys, image, "-o", tmp_path / "out", *options)
    assert code == 0, error
    assert "segment 1" in rows["cases"][0]["headline"]
    assert _run(capsys, image, "-o", tmp_path / "none", "--everything", "--grid", "2", "--min-quality", "1000")[0] == 0
    record = json.loads((tmp_path / "none" / "slice" / "result.json").read_text())
    assert (record["headline"], record["prompts"]) == ("nothing found", None)


def test_bad_prompts_are_one_clear_line(image, tmp_path, capsys) -> None:
    Picture.fromarray(np.ones((150, 199), np.uint8)).save(tmp_path / "other.png")
    nibabel.Nifti1Image(np.zeros((20, 21, 22), np.int16), np.eye(4)).to_filename(tmp_path / "v.nii.gz")
    for arguments, expected, message in (
        ([image], 2, "no prompt is given. Give --point, --box, --mask or --prompts, or --everything"),
        ([image, "--point", "200,60"], 1, "the point (200, 60) of 'object' lies outside of the 200 x 150 pixels"),
        ([image, "--box", "120,40,50,90"], 2, "second corner must lie beyond the first along x, found 120 and 50"),
        ([image, "--box", "50,40,50,90"], 2, "along x, found 50 and 50"),
        ([image, "--box", "300,40,350,90"], 1, "lies outside of the 200 x 150 pixels"),
        ([image, "--point", "80,60,3"], 1, "has 3 coordinates (80, 60, 3), 2 were expected (x, y)"),
        ([image, "--point", "80"], 2, "'80' is no point"),
        ([image, "--mask", tmp_path / "other.png"], 1, "has the shape 150 x 199, the case has 150 x 200"),
        ([image, "--mask", tmp_path / "none.png"], 1, "does not exist"),
        ([image, "--point", "80,60", "--everything"], 2, "exclude each other"),
        ([image, "--point", "80,60", "--threshold", "2"], 2, "is between 0 and 1, found 2"),
        ([tmp_path / "v.nii.gz", "--point", "8,6"], 1, "v.nii.gz: is a 3D volume, "),
    ):
        code = main(["run", "sam-med2d", *map(str, arguments), "--engine", "torch", "-o", str(tmp_path / "out"), "-q"])
        error = capsys.readouterr().err
        assert code == expected, error
        assert message in error
        assert len(error.strip().splitlines()) == 1, error
        assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()], arguments


def test_a_bad_case_leaves_the_others(image, tmp_path, capsys) -> None:
    Picture.fromarray(phantom(40, 50)).save(tmp_path / "small.png")
    code, rows, _ = _run(capsys, tmp_path / "small.png", image, "-o", tmp_path / "out", "--point", "80,60")
    assert code == 1
    assert [row["status"] for row in rows["cases"]] == ["failed", "done"]


def test_a_session_in_python(image, monkeypatch) -> None:
    model = omlab.load("sam-med2d", engine="torch")
    calls = _counted(model, monkeypatch)
    session = model.open(image)
    box = session(box=(50, 40, 120, 90))
    points = session(points=[(80, 60), (190, 10)], labels=(1, 0), multimask=False)
    assert calls == ["encoder", "decoder", "decoder"]
    assert [s.name for s in box.structures] == ["object"]
    assert np.array_equal(box.labels, model(image, prompts=[{"boxes": [[50, 40, 120, 90]]}]).labels)
    assert not np.array_equal(box.labels, points.labels)
    again = session(points=[(80, 60), (190, 10)], labels=(1, 0), refine=True)
    assert again.measurements != points.measurements
    with pytest.raises(omlab.OmlabError, match="no prompt is given"):
        session()


def _counted(model, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the graphs that run from now on."""
    calls: list[str] = []
    names = {id(model.engines[name]): name for name in ("encoder", "decoder")}
    kind = type(model.engines["encoder"])
    inner = kind.__call__

    def run(self, inputs):
        calls.append(names[id(self)])
        return inner(self, inputs)

    monkeypatch.setattr(kind, "__call__", run)
    return calls


# --- the evaluation on upstream's pictures ----------------------------------------------------------------------------


@pytest.fixture
def demo() -> Path:
    if not DEMO.is_dir():
        pytest.skip("needs upstream's demonstration files in the folder shared beside the project")
    return DEMO


@pytest.mark.parametrize("arguments", [[], ["--prompt", "points", "--points", "3", "--rounds", "2"]])
def test_the_evaluation_path(demo, tmp_path, capsys, arguments) -> None:
    out, prompts = tmp_path / "report.json", tmp_path / "prompts.json"
    arguments = [*arguments, "--engine", "torch"]
    command = [str(demo), "-o", str(out), "--keep-prompts", str(prompts), *arguments]
    assert evaluation.main(command) == 0, capsys.readouterr().err
    first = json.loads(out.read_text())
    assert {"dice", "iou", "liver/dice", "hip_left/iou"} <= set(first["summary"])
    assert first["summary"]["hip_left/dice"]["n"] == 2
    assert len(first["cases"]) == 11
    kept = json.loads(prompts.read_text())
    assert set(kept["amos_0004_75_liver_000.png"]) == {"boxes", "point_coords", "point_labels"}
    if "points" in arguments:  # corrections are drawn anew, so only boxes give the same answer again
        return
    assert evaluation.main([str(demo), "-o", str(out), "--replay", str(prompts), *arguments]) == 0
    assert json.loads(out.read_text())["cases"] == first["cases"]


def test_the_evaluation_says_what_is_missing(tmp_path, capsys) -> None:
    for content, message in (
        (None, "holds no label2image_test.json"), ("{", "cannot be read"), ("[]", "expected an object"),
        ('{"data/masks/a_liver_000.png": "data/images/a.png"}', "names data/masks/a_liver_000.png, which is not there"),
    ):  # fmt: skip
        if content is not None:
            (tmp_path / "label2image_test.json").write_text(content)
        assert evaluation.main([str(tmp_path)]) == 1
        assert message in capsys.readouterr().err


def test_a_bad_mask_leaves_the_others_in_the_evaluation(tmp_path, capsys) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    Picture.fromarray(phantom(60, 80)).save(tmp_path / "images" / "a.png")
    mask = np.zeros((60, 80), np.uint8)
    mask[10:40, 20:50] = 255
    blurred = np.where(np.arange(80) == 50, 128, mask).astype(np.uint8)
    masks = {"good": mask, "empty": 0 * mask, "blurred": blurred, "cut": mask[:20]}
    table = {}
    for name, pixels in masks.items():
        Picture.fromarray(pixels).save(tmp_path / "masks" / f"a_{name}_000.png")
        table[f"masks/a_{name}_000.png"] = "images/a.png"
    (tmp_path / "masks" / "a_broken_000.png").write_bytes(b"no picture")
    table["masks/a_broken_000.png"] = "images/a.png"
    (tmp_path / "label2image_test.json").write_text(json.dumps(table))
    out, kept = tmp_path / "report.json", tmp_path / "prompts.json"
    assert evaluation.main([str(tmp_path), "-o", str(out), "--keep-prompts", str(kept), "--engine", "torch"]) == 1
    report = json.loads(out.read_text())
    assert [row["mask"] for row in report["cases"]] == ["a_good_000.png"]
    for name, reason in (
        ("empty", "empty mask"),
        ("blurred", "128"),
        ("cut", "has 20 x 80 pixels"),
        ("broken", "read"),
    ):
        (line,) = [w for w in report["warnings"] if f"a_{name}_000.png" in w]
        assert reason in line
    prompts = json.loads(kept.read_text())
    assert prompts["a_good_000.png"]["boxes"] == [20 + 88, 10 + 98, 50 + 88, 40 + 98]  # in the frame, padded around
    capsys.readouterr()
    for stored, message in (
        ("[]", "maps masks to prompts"),
        ('{"a_good_000.png": {"boxes": [1]}}', "not four numbers"),
    ):
        kept.write_text(stored)
        assert evaluation.main([str(tmp_path), "--replay", str(kept), "--engine", "torch"]) == 1
        assert message in capsys.readouterr().err


def test_a_dataset_brings_its_prompts(demo, tmp_path, capsys) -> None:
    """The platform's own evaluation: the box of each mask asked, label maps scored."""
    out = tmp_path / "report.json"
    on = f"masked-pictures:{demo}"
    code = main(["evaluate", "sam-med2d", "--on", on, "--with", "segmentation", "--engine", "torch", "-o", str(out)])
    assert code == 0, capsys.readouterr().err
    report = json.loads(out.read_text())
    assert {"liver/dice", "hip_left/iou", "colon/dice"} <= set(report["summary"])
    assert {row["case"] for row in report["cases"]} == {"amos_0004_75.png", "s0619_32.png"}


def test_masked_pictures_of_another_layout(tmp_path) -> None:
    dataset = MaskedPictures(omlab.list_datasets()["masked-pictures"])
    with pytest.raises(omlab.OmlabError, match="holds no folder 'images'"):
        list(dataset.items({}, root=tmp_path))
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    Picture.fromarray(phantom(30, 40)).save(tmp_path / "images" / "a.png")
    assert list(dataset.items({}, root=tmp_path)) == []
    mask = np.zeros((30, 40), np.uint8)
    Picture.fromarray(mask).save(tmp_path / "masks" / "a_liver_000.png")
    (item,) = dataset.items({}, root=tmp_path)
    with pytest.raises(omlab.OmlabError, match="a_liver_000.png: is empty"):
        item.truth()
    mask[4:9, 6:20] = 255
    Picture.fromarray(mask).save(tmp_path / "masks" / "a_liver_000.png")
    assert item.asked() == [{"label": "liver", "boxes": [[6, 4, 20, 9]]}]
    assert item.truth().mask("liver").sum() == 5 * 14
    Picture.fromarray(mask).save(tmp_path / "masks" / "b_liver_000.png")
    with pytest.raises(omlab.OmlabError, match="belongs to no picture"):
        list(dataset.items({}, root=tmp_path))
