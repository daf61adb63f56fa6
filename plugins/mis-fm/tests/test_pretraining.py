"""Volume Fusion from unlabelled scans to a file that fine-tuning begins from, on a small network."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import nibabel
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")

from omlab.cli.main import main  # noqa: E402
from omlab.errors import InputError  # noqa: E402
from omlab_mis_fm import checkpoint, preparing, pretraining  # noqa: E402
from omlab_mis_fm.fmunet import FMUNet  # noqa: E402
from omlab_mis_fm.fusion import VolumeFusion  # noqa: E402
from omlab_mis_fm.model import phantom  # noqa: E402

SIZE = (16, 16, 32)  # the coarsest level of the network needs more than a voxel
TASK = VolumeFusion(size=SIZE, block_min=(4, 4, 4), block_max=(8, 8, 8))
SMALL = {"feature_chns": (4, 4, 4, 8, 8), "depth": 1, "class_num": 5}


def _fusions(**more: object) -> pretraining.Fusions:
    volumes = list(preparing.sub_volumes(phantom((24, 40, 40)), (20, 20, 36), 10))
    return pretraining.Fusions(volumes=volumes, task=TASK, batches=6, **more)


def _network() -> FMUNet:
    torch.manual_seed(0)
    return FMUNet(**SMALL)


def test_batches_follow_from_their_place() -> None:
    fusions = _fusions()
    images, labels = fusions.batch(2, 3)
    assert images.shape == labels.shape == (2, 1, *SIZE) and images.dtype == torch.float32
    assert set(labels.unique().tolist()) <= set(range(5)) and labels.any()
    again = fusions.batch(2, 3)
    assert torch.equal(again[0], images) and torch.equal(again[1], labels)
    for epoch, index in ((2, 4), (3, 3)):
        assert not torch.equal(fusions.batch(epoch, index)[1], labels)
    fixed = list(fusions.fixed(5))
    assert len(fixed) == 3 and not torch.equal(fixed[0][1], fusions.batch(0, 0)[1])
    assert torch.equal(next(fusions.fixed())[1], fixed[0][1])


def test_rate_halves() -> None:
    assert [pretraining.schedule(epoch) for epoch in (0, 79.9, 80, 319)] == pytest.approx([1e-3, 1e-3, 5e-4, 1.25e-4])
    assert pretraining.STEPS // pretraining.BATCHES == 320


def test_dice_by_hand() -> None:
    class Always(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
            return [torch.stack([images[:, 0] < 0, images[:, 0] >= 0, images[:, 0] > 99], 1).float()]

    images = torch.tensor([-1.0, 1, 1, 1]).reshape(1, 1, 1, 2, 2)
    labels = torch.tensor([0, 0, 1, 1]).reshape(1, 1, 1, 2, 2)
    found = pretraining.dice(Always(), iter([(images, labels)]), 3)
    assert found == pytest.approx((2 / 3 + 4 / 5) / 2)  # the third class occurs nowhere


def test_from_scans_to_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, fusions = _network(), _fusions()
    before = pretraining.FusionObjective(network.eval())(*fusions.batch(-1, 0)).item()
    fitted = pretraining.train(network, fusions, epochs=3, rate=5e-3, device="cpu", folder=tmp_path / "state")
    assert fitted.steps == 18 and {"dice", "loss"} <= set(fitted.history[0])
    assert fitted.history[fitted.best_epoch - 1]["dice"] == max(row["dice"] for row in fitted.history)
    after = pretraining.FusionObjective(network.eval())(*fusions.batch(-1, 0)).item()
    assert after < before
    pretraining.save(network, tmp_path / "volf.pt")
    state = checkpoint.read(tmp_path / "volf.pt")
    assert checkpoint.arguments_of(state, "fmunet")["class_num"] == 5
    fresh = checkpoint.start(FMUNet(**SMALL | {"class_num": 2}), state)
    assert fresh and all(name.startswith("out_layers") for name in fresh)
    monkeypatch.setenv("OMLAB_HOME", str(tmp_path / "home"))
    assert main(["pull", "mis-fm", "--variant", "fmunet-abk1k", "--file", f"net={tmp_path / 'volf.pt'}"]) == 0


def test_readme_learns_from_scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of the README as it is written, on a small network and small examples."""
    text = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
    (block,) = (part.split("```")[0] for part in text.split("```python\n")[1:] if "pretraining.train" in part)
    cut = preparing.sub_volumes
    monkeypatch.setattr(preparing, "sub_volumes", lambda scan: cut(scan, (20, 20, 36), 10))
    fusions = partial(pretraining.Fusions, task=TASK, batches=1)
    monkeypatch.setattr(pretraining, "Fusions", fusions)
    monkeypatch.setattr("omlab_mis_fm.fmunet.FMUNet", lambda class_num: FMUNet(**SMALL | {"class_num": class_num}))
    defined: dict[str, object] = {}
    exec(block, defined)
    scan = nibabel.Nifti1Image(phantom((24, 40, 40)).T.astype(np.int16), np.diag([-1.0, -1, 1, 1]))
    nibabel.save(scan, tmp_path / "scan.nii.gz")
    defined["learnt"]([tmp_path / "scan.nii.gz"], tmp_path / "volf.pt", epochs=1, device="cpu")
    assert checkpoint.arguments_of(checkpoint.read(tmp_path / "volf.pt"), "fmunet")["class_num"] == 5


def test_no_volumes() -> None:
    with pytest.raises(InputError, match="no volume to learn from"):
        pretraining.train(_network(), pretraining.Fusions(volumes=[]))
