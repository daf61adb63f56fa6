"""Model folders of nnU-Net, as its two versions leave them, and what a plan of theirs asks for."""

from __future__ import annotations

import json
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("omlab_segmenter_tuning")

import nibabel  # noqa: E402

import omlab  # noqa: E402
from omlab.cli.main import main  # noqa: E402
from omlab.errors import InputError  # noqa: E402
from omlab.inference import preparing, resampling  # noqa: E402
from omlab_sdk.golden import seed_module  # noqa: E402
from omlab_stunet import importing  # noqa: E402
from omlab_stunet.network import STUNet  # noqa: E402
from omlab_stunet.pipeline import View, prepare  # noqa: E402
from omlab_stunet.plan import Plan  # noqa: E402

STRIDES = [[2, 2, 2], [2, 2, 2], [1, 2, 2]]
PATCH, SPACING = [16, 16, 32], [4.0, 3.0, 3.0]
CT = {"percentile_00_5": -900.0, "percentile_99_5": 900.0, "mean": 10.0, "sd": 400.0}


def network(channels: int = 1, classes: int = 4) -> STUNet:
    strides = [*STRIDES, [1, 1, 1], [1, 1, 1]]
    found = STUNet(
        channels, classes, depth=(1, 2, 1, 1, 1, 1), dims=(4, 4, 8, 8, 8, 8), pool_op_kernel_sizes=strides
    ).eval()
    seed_module(found)
    return found


def first(folder: Path, net: STUNet | None = None, **changes: Any) -> Path:
    """As nnU-Net 1.7.1 leaves it: scores are NumPy's numbers, the plan is a pickle with its arrays and types."""
    (folder / "fold_0").mkdir(parents=True)
    content = {
        "epoch": 1000, "state_dict": {f"module.{k}": v for k, v in (net or network()).state_dict().items()},
        "optimizer_state_dict": None, "lr_scheduler_state_dict": None,
        "plot_stuff": ([np.mean([1.0, 2.0])], [np.float32(0.5)], [], [np.float64(0.1)]),
        "best_stuff": (np.float64(0.7), np.inf, np.float64(0.3)), "amp_grad_scaler": {"scale": 65536.0},
    }  # fmt: skip
    torch.save(content, folder / "fold_0" / "model_final_checkpoint.model")
    plan = {
        "batch_size": 2, "num_pool_per_axis": [2, 3, 3], "patch_size": np.array(PATCH),
        "current_spacing": np.array(SPACING), "pool_op_kernel_sizes": STRIDES, "conv_kernel_sizes": [[3, 3, 3]] * 4,
    }  # fmt: skip
    plans = {
        "plans_per_stage": {0: plan}, "transpose_forward": [2, 0, 1], "transpose_backward": [1, 2, 0],
        "num_modalities": 1, "modalities": {0: "CT"}, "normalization_schemes": OrderedDict({0: "CT"}),
        "use_mask_for_norm": OrderedDict({0: False}), "num_classes": np.int64(3), "all_classes": [1, 2, 3],
        "dataset_properties": {"intensityproperties": OrderedDict({0: {k: np.float64(v) for k, v in CT.items()}})},
    } | changes  # fmt: skip
    about = {"init": ("p", 0, "o", "d", True, 0, True, False, True), "name": "STUNetTrainer_small_ft", "plans": plans}
    (folder / "fold_0" / "model_final_checkpoint.model.pkl").write_bytes(pickle.dumps(about))
    return folder


def second(folder: Path, net: STUNet | None = None, **changes: Any) -> Path:
    (folder / "fold_all").mkdir(parents=True)
    content = {
        "network_weights": (net or network()).state_dict(), "optimizer_state": {}, "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5)]}, "_best_ema": np.float64(0.5), "current_epoch": 1000,
        "init_args": {"configuration": "3d_fullres_own", "fold": "all", "device": torch.device("cuda")},
        "trainer_name": "STUNetTrainer_small_ft", "inference_allowed_mirroring_axes": (0, 1),
    }  # fmt: skip
    torch.save(content, folder / "fold_all" / "checkpoint_final.pth")
    plan = {
        "spacing": SPACING, "patch_size": PATCH, "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False], "pool_op_kernel_sizes": [[1, 1, 1], *STRIDES], "batch_size": 2,
    } | changes  # fmt: skip
    plans = {
        "configurations": {"3d_fullres": plan, "3d_fullres_own": {"inherits_from": "3d_fullres", "batch_size": 4}},
        "transpose_forward": [0, 1, 2], "foreground_intensity_properties_per_channel": {"0": {"mean": 1.0}},
    }  # fmt: skip
    (folder / "plans.json").write_text(json.dumps(plans))
    labels = {"background": 0, "cord": 2, "lamina": 1, "disc": 3}
    (folder / "dataset.json").write_text(json.dumps({"labels": labels, "channel_names": {"0": "T2"}}))
    return folder


def scan(path: Path) -> Path:
    voxels = np.random.default_rng(0).integers(-1000, 1000, (24, 20, 16)).astype(np.int16)
    affine = np.diag([-2.0, -3.0, 4.0, 1.0])  # stored towards left and posterior, as DICOM is
    nibabel.Nifti1Image(voxels, affine).to_filename(path)
    return path


def test_a_folder_of_nnu_net_1_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Through the command line; what the network sees is the scan in its file's axes, by the folder's plan."""
    monkeypatch.setenv("OMLAB_HOME", str(tmp_path / "home"))
    folder, out = first(tmp_path / "theirs"), tmp_path / "mine"
    names = tmp_path / "dataset.json"
    names.write_text(json.dumps({"labels": {"0": "background", "1": "liver", "2": "spleen", "3": "aorta"}}))
    (folder / "postprocessing.json").write_text(json.dumps({"for_which_classes": [1, [2, 3]]}))
    assert main(["import-stunet", str(folder), "-o", str(out), "--labels", str(names)]) == 0
    assert "3 structures at 4 x 3 x 3 mm" in capsys.readouterr().out
    model = omlab.load(out, engine="torch", precision="float32", threads=1)
    assert [label.name for label in model.card.labels] == ["liver", "spleen", "aorta"]
    plan = Plan.of(model.variant.config)
    assert (plan.transpose, plan.orientation, plan.scheme, plan.largest) == ((2, 0, 1), "", "CT", ((1,), (2, 3)))
    assert plan.strides == ((2, 2, 2), (2, 2, 2), (1, 2, 2), (1, 1, 1), (1, 1, 1))
    case = model.read(scan(tmp_path / "scan.nii.gz"))
    view = View.of(case.geometry, plan)
    seen = prepare(view.apply(case.voxels), view.spacing_mm, plan)
    array = case.voxels.T.transpose(2, 0, 1).astype(np.float32)  # z, y, x of the file, then transpose_forward
    target = resampling.target_shape(array.shape, (2, 4, 3), SPACING)
    expected = resampling.resample_image(array, target)
    expected = preparing.normalise(expected, preparing.Scheme.CT, CT)
    assert np.array_equal(seen.image[0], expected)
    result = model(case)
    assert result.labels.shape == case.voxels.shape
    assert len(np.unique(result.labels)) > 1
    assert set(result.columns) == {"mean_hu", "sd_hu"}
    # Only the largest component of each group stays.
    import cc3d

    assert cc3d.connected_components(result.labels == 1, connectivity=6).max() <= 1


def test_a_folder_of_nnu_net_2_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("OMLAB_HOME", str(tmp_path / "home"))
    folder, out = second(tmp_path / "theirs"), tmp_path / "mine"
    assert main(["import-stunet", str(folder), "-o", str(out), "--fold", "all"]) == 0, capsys.readouterr().err
    model = omlab.load(out, engine="torch", precision="float32", threads=1)
    assert [(label.value, label.name) for label in model.card.labels] == [(1, "lamina"), (2, "cord"), (3, "disc")]
    plan = Plan.of(model.variant.config)
    assert (plan.version, plan.scheme, plan.mirror, plan.patch) == (2, "nonCT", (0, 1), tuple(PATCH))
    assert model.card.modality == ("mr",)
    result = model(scan(tmp_path / "scan.nii.gz"), mirror=True)
    assert result.labels.shape == (24, 20, 16)
    assert set(result.columns) == {"mean_intensity", "sd_intensity"}  # no Hounsfield units of an MR


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("executed",))


def test_what_cannot_be_imported_is_said(tmp_path: Path, capsys: Any) -> None:
    def refused(folder: Path, message: str, **how: Any) -> None:
        with pytest.raises(InputError, match=message):
            importing.find(folder, **how)

    one = first(tmp_path / "one")
    assert list(importing.find(one, labels="liver, spleen,aorta").structures.values()) == ["liver", "spleen", "aorta"]
    refused(tmp_path, "holds no fold_0, there is no folder fold_")
    refused(one, "holds no fold_1, there is fold_0", fold="1")
    refused(one, "holds no best.model and no best.pth", name="best")
    refused(first(tmp_path / "four", network(channels=4)), "takes 4 channels; a case of omlab has one")
    refused(first(tmp_path / "bare", dataset_properties={}), "normalises by 'CT' and has no intensity properties")
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"labels": {"background": 0, "liver": 1}}))
    refused(one, r"1 structures are named \(1 liver\), the network gives the labels 1 to 3", labels=str(names))
    refused(one, "2 structures are named", labels="liver,spleen")
    refused(one, "cannot be read", labels="nothing.json")
    names.write_text(json.dumps({"labels": {"background": 0, "whole": [1, 2], "core": 2, "edge": 3}}))
    refused(one, "'whole' is a region of several labels", labels=str(names))
    two = second(tmp_path / "two", normalization_schemes=["RGBTo01Normalization"])
    refused(two, "normalises by 'RGBTo01Normalization'", fold="all")
    odd = second(tmp_path / "odd", patch_size=[18, 16, 32])
    refused(odd, r"patch \[18, 16, 32\] is not divisible by its strides, \[4, 8, 8\]", fold="all")
    about = one / "fold_0" / "model_final_checkpoint.model.pkl"
    about.write_bytes(pickle.dumps({"plans": Evil()}))
    refused(one, "names 'builtins.print', which plain data does not need")
    about.write_bytes(b"\x80\x04 no pickle")
    refused(one, "is damaged or no pickle")
    about.unlink()
    refused(one, "does not exist")
    assert "executed" not in capsys.readouterr().out
