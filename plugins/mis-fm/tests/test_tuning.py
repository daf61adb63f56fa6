"""Both networks learn other structures: from a pre-trained file to a model directory that segments."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
pytest.importorskip("omlab_segmenter_tuning")

import omlab  # noqa: E402
from omlab.cli.main import main  # noqa: E402
from omlab.errors import InputError, UsageError, WeightsError  # noqa: E402
from omlab.geometry import Geometry  # noqa: E402
from omlab.plugins import Registry  # noqa: E402
from omlab.results import Label, Segmentation  # noqa: E402
from omlab.vocabulary import Kind  # noqa: E402
from omlab_mis_fm import model, tuning  # noqa: E402
from omlab_mis_fm.fmunet import FMUNet  # noqa: E402
from omlab_mis_fm.pctnet import PCTNet  # noqa: E402
from omlab_sdk.golden import seed_module  # noqa: E402
from omlab_sdk.segmenters import Prepared, Tunable, first_losses, window_of  # noqa: E402

WINDOW = (16, 32, 32)
#: A layer of each that learns and is no head.
BODY = {"pctnet-ct10k": "pyramid_ct.up4.conv.2.weight", "fmunet-abk1k": "project.weight"}
FILES = {"pctnet-ct10k": "pctnet_ct10k_volf.pt", "fmunet-abk1k": "fmunet_abk1k_volf.pt"}


def _network(variant: str, **more: int) -> torch.nn.Module:
    """As published, but small: the five classes of the pre-training task."""
    if variant.startswith("pctnet"):
        shape = {"feature_chns": (4, 4, 8, 8, 8), "num_heads": (2, 2, 2), "resolution_mode": 1, "input_size": WINDOW}
        return seed_module(PCTNet(**shape, class_num=5, **more))
    return seed_module(FMUNet(feature_chns=(4, 4, 4, 8, 8), depth=1, class_num=5, **more))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OMLAB_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OMLAB_WEIGHTS", raising=False)
    monkeypatch.setattr(model, "WINDOW", WINDOW)
    for variant, name in FILES.items():
        torch.save({"model_state_dict": _network(variant).state_dict()}, tmp_path / name)
        assert main(["pull", "mis-fm", "--variant", variant, "--file", f"net={tmp_path / name}"]) == 0
    return tmp_path


def _dataset(folder: Path) -> Path:
    """Two scans in nnU-Net's layout with balls of the labels 1 and 3."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    (folder / "dataset.json").write_text(
        '{"channel_names": {"0": "CT"}, "labels": {"background": 0, "small": 1, "large": 3}, "file_ending": ".nii.gz"}'
    )
    at = np.stack(np.meshgrid(np.arange(40), np.arange(36), np.arange(20), indexing="ij"))
    for number in range(2):
        labels = np.zeros((40, 36, 20), np.uint8)
        labels[((at - np.array([12, 12, 8 + number])[:, None, None, None]) ** 2).sum(0) < 40] = 1
        labels[((at - np.array([28, 20, 12])[:, None, None, None]) ** 2).sum(0) < 90] = 3
        scan = labels * 300.0 + np.random.default_rng(number).normal(0, 30, labels.shape)
        for name, voxels in ((f"imagesTr/c{number}_0000", scan.astype(np.int16)), (f"labelsTr/c{number}", labels)):
            nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-1.0, -1, 2, 1])), folder / f"{name}.nii.gz")
    return folder


@pytest.mark.parametrize("variant", FILES)
def test_from_the_command_line(variant: str, home: Path) -> None:
    dataset, out = _dataset(home / "Dataset001_Balls"), home / "balls"
    options = ["--epochs", "2", "--batches", "3", "--augment", "none", "--device", "cpu", "--lr", "0.003"]
    learnt = ["adapt", "mis-fm", "--variant", variant, "--with", "segmenter-tuning", "-o", str(out), *options]
    assert main([*learnt, "--on", f"nnunet-raw:{dataset}"]) == 0
    loaded = omlab.load(out, engine="torch", threads=1)
    assert [(label.value, label.name) for label in loaded.card.labels] == [(1, "small"), (3, "large")]
    found = loaded(dataset / "imagesTr" / "c0_0000.nii.gz")
    assert found.labels.shape == (40, 36, 20) and found.labels.max() <= 3
    assert [(one.value, one.name) for one in found.structures] == [(1, "small"), (3, "large")]
    (trained,) = loaded.files.values()
    from safetensors.torch import load_file

    kept, before = load_file(trained), _network(variant).state_dict()
    assert kept.keys() == before.keys()
    assert not torch.equal(kept[BODY[variant]], before[BODY[variant]])
    # What was learnt is learnt on.
    assert main(["adapt", str(out), "--with", "segmenter-tuning", "--on", f"nnunet-raw:{dataset}", "-o",
                 str(home / "more"), *options]) == 0  # fmt: skip


@pytest.mark.parametrize("variant", [*FILES, "pctnet-scratch", "fmunet-scratch"])
def test_recipe_lowers_the_loss(variant: str, home: Path) -> None:
    behind = Registry.discover().load(Kind.MODEL, "mis-fm")
    assert isinstance(behind, Tunable)
    chosen = next(v for v in behind.card.variants if v.name == variant)
    files = {"net": home / FILES[variant]} if variant in FILES else {}
    if not files:
        chosen = behind.small(chosen).configured(window=WINDOW)
    recipe = behind.recipe(chosen, files, 2)
    if files:
        head, own = recipe.network.state_dict(), _network(variant).state_dict()
        assert torch.equal(head[BODY[variant]], own[BODY[variant]])
    assert recipe.patch == WINDOW and recipe.multiple == (None if "pctnet" in variant else (16, 16, 16))
    geometry = Geometry((32, 32, 16), np.diag([1.0, 1.0, 1.0, 1.0]))
    labels = np.zeros(geometry.shape, np.uint8)
    labels[8:20, 4:16, 4:12] = 1
    noise = np.random.default_rng(0).normal(0, 9, labels.shape)
    case = omlab.Volume(voxels=(100 * labels + noise).astype(np.float32), geometry=geometry, name="box")
    truth = Segmentation(labels=labels, structures=[Label(value=1, name="box")], geometry=geometry)
    prepared = recipe.prepare(case, truth)
    # Left and front come first in the order of DICOM, so both axes of this scan are turned.
    assert np.array_equal(prepared.labels, labels[::-1, ::-1].T)
    if "fmunet" in variant:  # its coarsest level needs more than a voxel
        prepared = Prepared(
            image=np.concatenate([prepared.image] * 2, axis=1), labels=np.concatenate([prepared.labels] * 2)
        )
    values = first_losses(recipe, prepared, steps=12, rate=3e-3)
    assert values[-1] < 0.9 * values[0]
    image, target = window_of(prepared)
    assert recipe.labels(recipe.network(image)).shape == target.shape[:1] + target.shape[2:]


def test_rate_falls_after_each_validation() -> None:
    assert tuning.schedule(0.9, 24, 1e-3) == 1e-3
    assert tuning.schedule(12.5, 24, 1e-3) == pytest.approx(1e-3 * 0.5**0.8)


def test_what_cannot_be_learnt_from(home: Path) -> None:
    behind = Registry.discover().load(Kind.MODEL, "mis-fm")
    variants = {variant.name: variant for variant in behind.card.variants}
    with pytest.raises(UsageError, match="sees voxels as they are"):
        behind.recipe(variants["fmunet-scratch"], {}, 2, spacing_mm=(1, 1, 1))
    with pytest.raises(WeightsError, match="is no checkpoint of pctnet"):
        behind.recipe(variants["pctnet-ct10k"], {"net": home / FILES["fmunet-abk1k"]}, 2)
    wider, files = variants["pctnet-ct10k"].configured(window=(32, 64, 64)), {"net": home / FILES["pctnet-ct10k"]}
    with pytest.raises(WeightsError, match=r"entries do not fit the network, first '.*relative_position"):
        behind.recipe(wider, files, 2)
    torch.save({"model_state_dict": _network("fmunet", in_chns=2).state_dict()}, home / "two.pt")
    with pytest.raises(WeightsError, match=r"1 entries do not fit the network, first 'project\.weight'"):
        behind.recipe(variants["fmunet-abk1k"], {"net": home / "two.pt"}, 2)
    recipe = behind.recipe(variants["fmunet-abk1k"], {"net": home / FILES["fmunet-abk1k"]}, 2)
    geometry = Geometry((16, 16, 16), np.eye(4))
    case = omlab.Volume(voxels=np.zeros((16, 16, 16), np.float32), geometry=geometry, name="x")
    with pytest.raises(InputError, match="its label map has a grid of"):
        elsewhere = Geometry((2, 2, 2), np.eye(4))
        recipe.prepare(case, Segmentation(labels=np.zeros((2, 2, 2), np.uint8), structures=[], geometry=elsewhere))
