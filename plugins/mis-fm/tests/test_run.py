"""From a checkpoint of PyMIC and a scan to files, as a user runs it, on small name-seeded networks and windows."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import omlab  # noqa: E402
from omlab.cli.main import main  # noqa: E402
from omlab.errors import InputError, UsageError, WeightsError  # noqa: E402
from omlab_mis_fm import checkpoint, model, tiles  # noqa: E402
from omlab_mis_fm.fmunet import FMUNet  # noqa: E402
from omlab_mis_fm.pctnet import PCTNet  # noqa: E402
from omlab_sdk.golden import seed_module  # noqa: E402

WINDOW, STRIDE = (16, 32, 32), (8, 16, 16)
BRATS = Path(__file__).resolve().parents[4] / "shared" / "data" / "brats_flair"


def _container(network: torch.nn.Module) -> dict:
    return {
        "model_state_dict": seed_module(network).state_dict(), "iteration": 6000, "valid_pred": np.float64(0.9),
        "optimizer_state_dict": {"state": {}, "param_groups": []},
    }  # fmt: skip


def _small(patch: pytest.MonkeyPatch, root: Path) -> None:
    patch.setenv("OMLAB_HOME", str(root))
    patch.delenv("OMLAB_WEIGHTS", raising=False)
    patch.setattr(model, "WINDOW", WINDOW)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home of omlab with checkpoints of both networks; how large they are is read from the files."""
    root = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        _small(patch, root)
        pctnet = PCTNet(
            input_size=WINDOW, feature_chns=(4, 4, 8, 8, 8), num_heads=(2, 2, 2), resolution_mode=1, class_num=3
        )
        fmunet = FMUNet(feature_chns=(4, 4, 4, 8, 8), depth=1, class_num=4)
        for name, network in (("pctnet", pctnet), ("fmunet", fmunet)):
            torch.save(_container(network), root / f"{name}_best.pt")
            arguments = ["pull", "mis-fm", "--variant", name, "--file", f"net={root / f'{name}_best.pt'}"]
            assert main(arguments) == 0
    return root


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    _small(monkeypatch, home)


def _save(path: Path, voxels: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-1, -1, 3, 1]) if affine is None else affine), path)
    return path


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return _save(tmp_path / "chest.nii.gz", model.phantom((20, 40, 36)).T.astype(np.int16))


@pytest.mark.parametrize(("variant", "names"), [("pctnet", "back,a,b"), ("fmunet", "back,a,b,c")])
def test_command_line(variant: str, names: str, scan: Path, tmp_path: Path, home: Path, capsys) -> None:
    """The label map equals that of the plain loop over windows."""
    out = tmp_path / "out"
    code = main(
        [
            "run",
            "mis-fm",
            str(scan),
            "--variant",
            variant,
            "--names",
            names,
            "--engine",
            "torch",
            "--threads",
            "1",
            "-o",
            str(out),
        ]
    )
    assert code == 0, capsys.readouterr().err
    record = json.loads((out / "chest" / "result.json").read_text())
    assert [s["name"] for s in record["result"]["structures"]] == names.split(",")[1:]
    written = nibabel.load(next((out / "chest").glob("*.nii.gz")))
    assert np.allclose(written.affine, nibabel.load(scan).affine)
    mode = 1 if variant == "pctnet" else 0
    network = checkpoint.load(home / f"{variant}_best.pt", variant, input_size=WINDOW, mode=mode)
    volume = np.asarray(nibabel.load(scan).dataobj).T[None].astype(np.float32)
    volume = (volume - volume.mean()) / (volume.std() + 1e-5)

    def run(windows: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(windows)).numpy()

    expected = tiles.logits_of(volume, run, WINDOW, STRIDE).argmax(axis=0).T
    assert (np.asarray(written.dataobj) != expected).mean() < 1e-4
    assert len(np.unique(expected)) > 1


def test_orientation_of_the_file_does_not_matter(scan: Path, tmp_path: Path) -> None:
    loaded = omlab.load("mis-fm", variant="fmunet", engine="torch", threads=1)
    image = nibabel.load(scan)
    affine = image.affine.copy()
    affine[:3, 3] += affine[:3, 0] * (image.shape[0] - 1)
    affine[:3, 0] *= -1
    voxels = np.asarray(image.dataobj)[::-1].transpose(2, 0, 1)
    other = _save(tmp_path / "other.nii.gz", voxels, affine[:, [2, 0, 1, 3]])
    first, second = loaded(scan).labels, loaded(other).labels
    assert (first != second.transpose(1, 2, 0)[::-1]).mean() < 1e-4
    as_stored = loaded(other, orientation="file").labels
    assert (as_stored != second).mean() > 1e-3


def test_options(scan: Path) -> None:
    loaded = omlab.load("mis-fm", variant="fmunet", engine="torch", threads=1)
    plain = loaded(scan).labels
    for options in (
        {"flips": True}, {"normalise": "min-max"}, {"above": -500.0}, {"normalise": "min-max", "low": -200.0},
    ):  # fmt: skip
        assert not np.array_equal(loaded(scan, **options).labels, plain), options
    with pytest.raises(UsageError, match="3 names are given, the network tells 4"):
        loaded(scan, names="a,b,c")
    with pytest.raises(UsageError, match="'low' is below 'high'"):
        loaded(scan, normalise="min-max", low=5.0, high=5.0)
    with pytest.raises(UsageError, match="'memory' is in GB"):
        loaded(scan, memory=0.0)


def test_odd_scans(tmp_path: Path) -> None:
    loaded = omlab.load("mis-fm", variant="pctnet", engine="torch", threads=1)
    random = np.random.default_rng(0)
    for name, shape in (("tiny", (3, 4, 2)), ("flat", (40, 40, 1)), ("long", (9, 9, 70))):
        path = _save(tmp_path / f"{name}.nii.gz", random.normal(0, 9, shape).astype(np.float32))
        assert loaded(path).labels.shape == shape
    constant = _save(tmp_path / "constant.nii.gz", np.zeros((20, 20, 20), np.int16))
    assert loaded(constant).labels.shape == (20, 20, 20)
    endless = _save(tmp_path / "endless.nii.gz", np.ones((300, 9, 9), np.int16), np.diag([20, 1, 1, 1]))
    with pytest.raises(InputError, match="6 m long by its spacing"):
        loaded(endless)


def test_real_scan() -> None:
    if not BRATS.is_dir():
        pytest.skip("needs data/brats_flair in the folder shared beside the project")
    loaded = omlab.load("mis-fm", variant="fmunet", engine="torch", threads=1)
    case = omlab.cases.read(next(BRATS.glob("*_image.nii.gz")))
    found = loaded(omlab.Volume(voxels=case.voxels[60:100, 60:100, 40:60], geometry=case.geometry, name="part"))
    assert len(np.unique(found.labels)) > 1


def test_wrong_checkpoints(tmp_path: Path, home: Path) -> None:
    with pytest.raises(WeightsError, match="is no checkpoint of pctnet"):
        checkpoint.load(home / "fmunet_best.pt", "pctnet", input_size=WINDOW)
    with pytest.raises(WeightsError, match="of another shape, first .*relative_position"):
        checkpoint.load(home / "pctnet_best.pt", "pctnet", input_size=(64, 128, 128), mode=1)
    torch.save({"state": {}}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match="has no entry 'model_state_dict'"):
        checkpoint.load(tmp_path / "other.pt", "fmunet", input_size=WINDOW)
    with pytest.raises(WeightsError, match="no entry of the checkpoint fits"):
        checkpoint.start(FMUNet(feature_chns=(4, 4, 4, 4, 4)), {"x": torch.zeros(1)})
