"""From templates to a model directory, and from a scan to its organs, by the command line and in Python."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest

torch = pytest.importorskip("torch")
nibabel = pytest.importorskip("nibabel")

import omlab  # noqa: E402
from omlab.api import load_dataset  # noqa: E402
from omlab.cli.main import main  # noqa: E402
from omlab.errors import InputError, UsageError, WeightsError  # noqa: E402
from omlab.plugins import Registry  # noqa: E402
from omlab.vocabulary import Kind  # noqa: E402
from omlab_medlsam.network import MedLam  # noqa: E402
from omlab_medlsam.templates import FILE  # noqa: E402
from omlab_sdk.golden import seed_module  # noqa: E402
from omlab_sdk.networks.sam import network  # noqa: E402
from omlab_sdk.networks.sam.network import Sam  # noqa: E402

SIDE = 128
SMALL = {"patch": 32, "base_chns": 1, "n_classes": 3}
TINY = {"embed_dim": 24, "depth": 2, "num_heads": 2, "global_attn_indexes": (1,)}
AFFINE = np.diag([-4.0, -4.0, 5.0, 1.0])


def _small(patch: pytest.MonkeyPatch, root: Path) -> None:
    """Networks that are quick to run, behind the published cards."""
    patch.setenv("OMLAB_HOME", str(root))
    patch.delenv("OMLAB_WEIGHTS", raising=False)
    patch.setitem(network.SIZES, "vit_b", TINY)
    original = Registry.card

    def card(self: Registry, kind: Kind, name: str) -> Any:
        found = original(self, kind, name)
        if kind is not Kind.MODEL or name not in ("medlam", "medsam"):
            return found
        variants = []
        for variant in found.variants:
            config = dict(variant.config)
            if name == "medlam":
                config |= SMALL
                config |= {"sam": {**config["sam"], "side": SIDE}} if "sam" in config else {}
            else:
                config["side"] = SIDE
            variants.append(attrs.evolve(variant, config=config))
        return attrs.evolve(found, variants=tuple(variants))

    patch.setattr(Registry, "card", card)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home of omlab with files in upstream's containers, templates and scans, and an adapted model."""
    root = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        _small(patch, root)
        medlam = seed_module(MedLam(base_chns=1, patch_size=(32, 32, 32)))
        # A seeded position head finds organs anywhere in the body; with small weights they stay within the scan.
        medlam.fc3.weight.data.mul_(0.02)
        torch.save({f"module.{k}": v for k, v in medlam.state_dict().items()}, root / "medlam.pth")
        sam = seed_module(Sam(img_size=SIDE, **TINY))
        torch.save(sam.state_dict(), root / "medsam_vit_b.pth")
        files = [f"--file=medlam={root / 'medlam.pth'}"]
        sam_file = f"--file=sam={root / 'medsam_vit_b.pth'}"
        assert main(["pull", "medlam", *files, sam_file, "--accept-licence", "CC-BY-NC-4.0"]) == 0
        assert main(["pull", "medlam", "--variant", "boxes", *files, "--accept-licence", "CC-BY-NC-4.0"]) == 0
        assert main(["pull", "medsam", sam_file]) == 0
        raw(root / "Dataset001_Belly")
        assert _adapt(root, "organs") == 0
        assert _adapt(root, "coarse", "--scales", "none") == 0  # places are not refined: quick to run
        yield root


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    _small(monkeypatch, home)


def _adapt(root: Path, out: str, *more: str, dataset: str = "Dataset001_Belly") -> int:
    return main([
        "adapt", "medlam", "--with", "medlsam", "--on", f"nnunet-raw:{root / dataset}", "-o", str(root / out),
        "--engine", "torch", *more,
    ])  # fmt: skip


def body(shift: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A belly with a liver (1) and a spine (2), Hounsfield units and labels."""
    shape = (44, 40, 26)
    i, j, k = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    scan = np.full(shape, -1000.0)
    scan[((i - 22) / 20) ** 2 + ((j - 20) / 17) ** 2 < 1] = 30
    liver = ((i - 15 - shift) / 7) ** 2 + ((j - 18) / 7) ** 2 + ((k - 14) / 6) ** 2 < 1
    spine = ((i - 22) ** 2 + (j - 30) ** 2 < 9) & (k > 3)
    scan[liver], scan[spine] = 110, 500
    scan += np.random.default_rng(shift).normal(0, 8, shape)
    return np.round(scan).astype(np.int16), liver.astype(np.uint8) + 2 * spine.astype(np.uint8)


def raw(folder: Path, cases: int = 2) -> Path:
    """A dataset in nnU-Net's layout; the gallbladder is named and in no case, the spine is lacking in the second."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    named = {"background": 0, "liver": 1, "spine": 2, "gallbladder": 3}
    table = {"channel_names": {"0": "CT"}, "labels": named, "file_ending": ".nii.gz", "numTraining": cases}
    (folder / "dataset.json").write_text(json.dumps(table))
    for number in range(cases):
        scan, labels = body(number)
        save(scan, folder / "imagesTr" / f"case{number}_0000.nii.gz")
        save(np.where(labels == 2, 0, labels) if number else labels, folder / "labelsTr" / f"case{number}.nii.gz")
    return folder


def save(voxels: np.ndarray, path: Path, affine: np.ndarray = AFFINE) -> Path:
    nibabel.Nifti1Image(voxels.astype(np.int16), affine).to_filename(path)
    return path


def test_the_report_of_templates(home: Path) -> None:
    report = json.loads((home / "organs" / "report.json").read_text())
    assert (report["templates"], report["structures"]) == (2, 2)
    assert any("no template has gallbladder" in remark for remark in report["remarks"])
    assert any("spine is lacking in case1" in remark for remark in report["remarks"])
    assert (home / "organs" / FILE).is_file()
    assert (home / "organs" / "report.html").is_file()


def test_a_scan_comes_back_with_its_organs(home: Path, tmp_path: Path) -> None:
    scan = save(body(2)[0], tmp_path / "scan.nii.gz")
    arguments = ["run", str(home / "organs"), str(scan), "-o", str(tmp_path / "out"), "--engine", "torch"]
    assert main(arguments) == 0
    folder = tmp_path / "out" / "scan"
    record = json.loads((folder / "result.json").read_text())
    assert {s["name"] for s in record["result"]["structures"]} == {"liver", "spine"}
    assert set(record["engines"]) == {"position", "match", "encoder", "decoder"}
    mask = nibabel.load(folder / "segmentation.nii.gz")
    assert mask.shape == (44, 40, 26)
    np.testing.assert_allclose(mask.affine, AFFINE)
    found = json.loads((folder / "localisation.json").read_text())["organs"]
    labels = np.asarray(mask.dataobj)
    for organ in found:
        (part,) = organ["parts"]
        low, high = part["box"]
        points = np.array(part["points"])
        assert organ["in-field-of-view"]
        assert [points[n][2 - n] for n in range(3)] == low[::-1]
        assert [points[n + 3][2 - n] for n in range(3)] == high[::-1]
        where = np.argwhere(labels == organ["label"])
        if len(where):  # masks may leave their box in the slice, and never its slices
            assert where[:, 2].min() >= low[2]
            assert where[:, 2].max() <= high[2]
    assert labels.any()


def test_parts_boxes_and_coarse_places(home: Path, tmp_path: Path) -> None:
    assert _adapt(home, "parts", "--variant", "boxes", "--mode", "parts", "--interval", "4", "--scales", "none") == 0
    report = json.loads((home / "parts" / "report.json").read_text())
    assert report["boxes"]["spine"] == 6
    model = omlab.load(home / "parts", engine="torch")
    assert {graph.name for graph in model.graphs} == {"position"}
    scan = save(body(0)[0], tmp_path / "scan.nii.gz")
    outcome = model.run(scan)
    assert outcome.result.columns["in_field_of_view"] == [1.0, 1.0]
    assert outcome.result.labels.any()
    whole = omlab.load(home / "coarse", engine="torch").run(scan, options={"boxes": True}).result
    assert whole.labels.any()
    with pytest.raises(UsageError, match="crops"):
        model(scan, crops=0)
    with pytest.raises(UsageError, match="threshold"):
        model(scan, threshold=1.0)


def test_any_orientation_gives_the_same_organs(home: Path, tmp_path: Path) -> None:
    model = omlab.load(home / "coarse", engine="torch")
    voxels, _ = body(1)
    straight = model(save(voxels, tmp_path / "a.nii.gz"))
    image = nibabel.Nifti1Image(voxels, AFFINE)
    turned = image.as_reoriented([[1, 1], [2, -1], [0, 1]])
    turned.to_filename(tmp_path / "b.nii.gz")
    other = model(tmp_path / "b.nii.gz")
    back = nibabel.Nifti1Image(other.labels, turned.affine)
    codes = nibabel.orientations.ornt_transform(
        nibabel.io_orientation(turned.affine), nibabel.io_orientation(image.affine)
    )
    assert np.array_equal(np.asarray(back.as_reoriented(codes).dataobj), straight.labels)


def test_an_adapted_model_is_scored_and_exported(home: Path, tmp_path: Path) -> None:
    dataset = f"nnunet-raw:{home / 'Dataset001_Belly'}"
    code = main([
        "evaluate", str(home / "coarse"), "--on", dataset, "--split", "train", "--with", "segmentation", "-o",
        str(tmp_path / "results"), "--engine", "torch",
    ])  # fmt: skip
    assert code == 0
    assert main(["export", str(home / "organs"), "-o", str(tmp_path / "onnx")]) == 0
    assert {p.stem for p in (tmp_path / "onnx").rglob("*.onnx")} >= {"position", "match", "encoder", "decoder"}


def test_other_templates_are_another_model(home: Path, tmp_path: Path) -> None:
    """What is resumed is of the same templates; the base's engines are shared."""
    import shutil

    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(home / "coarse", tmp_path / "coarse")
    first, same = (omlab.load(where, engine="torch") for where in (home / "coarse", folder))
    assert first.weights_sha256 == same.weights_sha256
    tensors = load_file(folder / FILE)
    tensors["1.positions"] = tensors["1.positions"] + np.float32(0.01)
    save_file(tensors, folder / FILE)
    other = omlab.load(folder, engine="torch")
    assert other.weights_sha256 != first.weights_sha256
    assert other.base_sha256 == first.base_sha256 == other._engines_sha256


def test_engines_agree(home: Path, tmp_path: Path) -> None:
    """The same organs from onnxruntime and openvino as from torch, from one crop:
    all graphs run, and the place need not be sure."""
    scan = save(body(0)[0], tmp_path / "scan.nii.gz")
    labels = {}
    for engine in ("torch", "onnxruntime", "openvino"):
        pytest.importorskip(engine)
        labels[engine] = omlab.load(home / "organs", engine=engine, precision="float32")(scan, crops=1).labels
    for engine in ("onnxruntime", "openvino"):
        assert (labels[engine] != labels["torch"]).mean() < 1e-3, engine


def test_organs_out_of_view(home: Path, tmp_path: Path) -> None:
    """Templates of another part of the body: one organ is told as absent; none at all is an error."""
    import shutil

    from safetensors.numpy import load_file, save_file

    scan = save(body(0)[0], tmp_path / "scan.nii.gz")
    for gone in ((1,), (1, 2)):
        folder = shutil.copytree(home / "coarse", tmp_path / f"gone{len(gone)}")
        tensors = load_file(folder / FILE)
        for value in gone:
            tensors[f"{value}.positions"] = tensors[f"{value}.positions"] + np.float32(5)
        save_file(tensors, folder / FILE)
        model = omlab.load(folder, engine="torch")
        if len(gone) == 1:
            result = model(scan)
            assert result.columns["in_field_of_view"] == [0.0, 1.0]
            assert not (result.labels == 1).any()
        else:
            with pytest.raises(InputError, match=r"no organ of the model lies in its field of view \(liver, spine\)"):
                model(scan)
    (folder / FILE).unlink()
    with pytest.raises(WeightsError, match="cannot be read"):
        omlab.load(folder, engine="torch")(scan)


def test_scans_that_cannot_be_used(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    voxels, _ = body(0)
    cases = {
        "spacing": (voxels, np.diag([-4.0, -400.0, 5.0, 1.0]), "spacing of 400 mm along j"),
        "air": (np.full_like(voxels, -1000), AFFINE, "only air around its middle"),
    }
    for name, (array, affine, message) in cases.items():
        scan = save(array, tmp_path / f"{name}.nii.gz", affine)
        for model in ("medlam", str(home / "organs")):
            with pytest.raises(InputError, match=message):
                omlab.load(model, engine="torch")(scan)


def test_templates_that_cannot_be_used(home: Path, tmp_path: Path) -> None:
    registry = Registry.discover()
    loaded = omlab.load("medlam", registry=registry, engine="torch")

    def adapt(folder: Path, **options: object) -> dict:
        from omlab.adapting import adapt as run

        return run(
            loaded, "medlsam", load_dataset(f"nnunet-raw:{folder}", registry=registry), tmp_path / "out",
            options=options, registry=registry,
        )  # fmt: skip

    empty = raw(tmp_path / "empty", cases=1)
    save(np.zeros((44, 40, 26)), empty / "labelsTr" / "case0.nii.gz")
    with pytest.raises(InputError, match="has no template with an organ"):
        adapt(empty)
    wide = raw(tmp_path / "wide", cases=1)
    affine = np.diag([-4.0, -4.0, 500.0, 1.0])
    save(body(0)[0], wide / "imagesTr" / "case0_0000.nii.gz", affine)
    save(body(0)[1], wide / "labelsTr" / "case0.nii.gz", affine)
    with pytest.raises(InputError, match="has a spacing of 500 mm along k"):
        adapt(wide)
    with pytest.raises(UsageError, match="'scales' has feature0"):
        adapt(home / "Dataset001_Belly", scales="feature7")
    with pytest.raises(UsageError, match="interval"):
        adapt(home / "Dataset001_Belly", interval=0)
    assert not (tmp_path / "out").exists()


def test_boxes_are_measured_on_validation_scans(home: Path, tmp_path: Path) -> None:
    folder = raw(tmp_path / "split", cases=3)
    split = [{"train": ["case0", "case1"], "val": ["case2"]}]
    (folder / "splits_final.json").write_text(json.dumps(split))
    registry = Registry.discover()
    from omlab.adapting import adapt

    loaded = omlab.load("medlam", registry=registry, engine="torch")
    bound = load_dataset(f"nnunet-raw,fold=0:{folder}", registry=registry)
    options = {"shots": 1, "scales": "feature0"}
    report = adapt(loaded, "medlsam", bound, tmp_path / "out", options=options, registry=registry)
    assert report["val_images"] == 1
    assert 0 <= report["val_box_iou"] <= 1
    assert report["val_wall_mm"] >= 0
    scan, labels = body(0)
    save(scan, folder / "imagesTr" / "case2_0000.nii.gz")
    save(labels, folder / "labelsTr" / "case2.nii.gz")
    with pytest.raises(InputError, match="case 'case2' of val is the template 'case0'"):
        adapt(loaded, "medlsam", bound, tmp_path / "two", options={}, registry=registry)
    report = adapt(loaded, "medlsam", bound, tmp_path / "two", options={"duplicates": "drop"}, registry=registry)
    assert report["val_images"] == 0


def test_a_configuration_of_upstream_runs_from_supports_to_scores(home: Path, tmp_path: Path, capsys) -> None:
    for number in range(3):
        scan, labels = body(number)
        (tmp_path / str(number)).mkdir()
        save(scan, tmp_path / str(number) / "data.nii.gz")
        save(labels, tmp_path / str(number) / "label.nii.gz")
    for name, file in (("image", "data"), ("label", "label")):
        (tmp_path / f"support_{name}.txt").write_text(f"0/{file}.nii.gz\n1/{file}.nii.gz\n")
        (tmp_path / f"query_{name}.txt").write_text(f"2/{file}.nii.gz\n\n")
    config = tmp_path / "c.txt"
    config.write_text(f"""
[data]
support_image_ls = support_image.txt
support_label_ls = support_label.txt
query_image_ls = query_image.txt
query_label_ls = query_label.txt
gt_slice_threshold = 10
fg_class = [1]
bbox_mode = SPL
slice_interval = 2
feature_scale_ls = []
seg_save_path = result
[vit]
net_type = vit_b
[weight]
medlam_load_path = {home / "medlam.pth"}
vit_load_path = {home / "medsam_vit_b.pth"}
""")
    command = ["medlsam", str(config), "--folder", str(tmp_path), "--engine", "torch", "--names", "word", "--score"]
    assert main([*command, "--show"]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("omlab")]
    assert [line.split()[1] for line in told] == ["pull", "adapt", "run", "evaluate"]
    assert "--mode parts --scales none --interval 2" in told[1]
    assert not (tmp_path / "result").exists()
    assert main([*command, "--accept-licence", "CC-BY-NC-4.0"]) == 0
    out = tmp_path / "result"
    report = json.loads((out / "model" / "report.json").read_text())
    assert report["boxes"] == {"liver": 6} or 1 < report["boxes"]["liver"] < 6
    assert (out / "results" / "data" / "localisation.json").is_file()
    scores = json.loads((out / "scores" / "report.json").read_text())
    assert "liver" in json.dumps(scores)
    assert "spine" not in json.dumps(scores)


def test_the_place_of_a_scan(home: Path, tmp_path: Path) -> None:
    scan = save(body(0)[0], tmp_path / "scan.nii.gz")
    model = omlab.load("medlam", engine="torch")
    first, second = model(scan), model(scan, crops=3)
    assert first.vector.shape == (3,)
    assert first.tokens.shape == (10, 3)
    assert second.tokens.shape == (3, 3)


def test_another_base_is_refused(home: Path, tmp_path: Path) -> None:
    code = main([
        "adapt", "medsam", "--with", "medlsam", "--on", f"nnunet-raw:{home / 'Dataset001_Belly'}", "-o",
        str(tmp_path / "x"),
    ])  # fmt: skip
    assert code == 2


def test_medsam_takes_a_box(home: Path, tmp_path: Path) -> None:
    from PIL import Image

    from omlab_sdk.segment_anything.model import phantom

    Image.fromarray(phantom(90, 120)).save(tmp_path / "slice.png")
    code = main([
        "run", "medsam", str(tmp_path / "slice.png"), "--box", "20,20,80,70", "--point", "50,40", "-o",
        str(tmp_path / "out"), "--engine", "torch",
    ])  # fmt: skip
    assert code == 0
    assert np.asarray(Image.open(tmp_path / "out" / "slice" / "segmentation.png")).shape == (90, 120)


def test_the_sigmoid_comes_before_the_resize() -> None:
    """So a threshold is one of interpolated probabilities."""
    from omlab_sdk.segment_anything.frame import frame_of
    from omlab_sdk.segment_anything.predictor import Predictor

    low = np.random.default_rng(0).normal(0, 9, (1, 32, 32)).astype(np.float32)
    embedding = np.zeros((1, 256, 8, 8), np.float32)
    shown = [
        Predictor(dict, frame_of((90, 120), SIDE, "longest"), embedding, sigmoid_first=first) for first in (True, False)
    ]
    probabilities, logits = (predictor.restore(low) for predictor in shown)
    assert 0 <= probabilities.min() < probabilities.max() <= 1
    assert shown[0].level(0.3) == 0.3
    assert not np.array_equal(probabilities > shown[0].level(0.5), logits > shown[1].level(0.5))
