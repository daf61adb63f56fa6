"""nnU-Net's own predictor on a scan with a given network; runs in an environment of its own, see stunet.py.

    python stunet_peer.py NETWORK.pt SCAN.nii.gz OUT.npy

The network is a TorchScript of one patch. ``timm`` is a dependency of nnU-Net's newest architectures alone and would
bring another build of torch, so an empty module stands in its place.
"""

import json
import os
import resource
import sys
import time
import types
from pathlib import Path

for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
    os.environ.setdefault(name, "/nonexistent")


class _Absent(types.ModuleType):
    """Any name of a library that is not needed for prediction."""

    __path__ = ()

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


for name in ("timm", "timm.layers", "timm.models", "timm.models.layers"):
    sys.modules[name] = _Absent(name)

import numpy as np  # noqa: E402
import torch  # noqa: E402
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO  # noqa: E402
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor  # noqa: E402
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager  # noqa: E402

_RESAMPLING = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
_CONFIGURATION = {
    "data_identifier": "bench", "preprocessor_name": "DefaultPreprocessor", "batch_size": 2,
    "patch_size": [128, 128, 128], "median_image_size_in_voxels": [228, 228, 240], "spacing": [1.5, 1.5, 1.5],
    "normalization_schemes": ["ZScoreNormalization"], "use_mask_for_norm": [False],
    "resampling_fn_data": "resample_data_or_seg_to_shape", "resampling_fn_data_kwargs": _RESAMPLING,
    "resampling_fn_seg": "resample_data_or_seg_to_shape",
    "resampling_fn_seg_kwargs": _RESAMPLING | {"is_seg": True, "order": 1},
    "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
    "resampling_fn_probabilities_kwargs": _RESAMPLING | {"order": 1},
    "architecture": {"network_class_name": "none", "arch_kwargs": {}, "_kw_requires_import": []},
    "batch_dice": True,
}  # fmt: skip


def main(network_file: str, scan: str, out: str) -> None:
    """Segment ``scan`` and say how long it took."""
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    network = torch.jit.load(network_file).eval()
    classes = len(network.state_dict()["seg_outputs.4.bias"])
    spent = 0.0

    class Timed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            nonlocal spent
            start = time.perf_counter()
            found = self.inner(x)
            spent += time.perf_counter() - start
            return found

    timed = Timed()
    plans = PlansManager(
        {
            "dataset_name": "bench", "plans_name": "bench", "image_reader_writer": "SimpleITKIO",
            "original_median_spacing_after_transp": [1.5] * 3, "original_median_shape_after_transp": [228, 228, 240],
            "transpose_forward": [0, 1, 2], "transpose_backward": [0, 1, 2], "label_manager": "LabelManager",
            "experiment_planner_used": "none", "configurations": {"3d_fullres": _CONFIGURATION},
            "foreground_intensity_properties_per_channel": {
                "0": dict.fromkeys(("max", "mean", "median", "min", "percentile_00_5", "percentile_99_5", "std"), 1.0)
            },
        }
    )  # fmt: skip
    labels = {"background": 0} | {f"s{n}": n for n in range(1, classes)}
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    predictor = nnUNetPredictor(
        tile_step_size=0.5, use_gaussian=True, use_mirroring=False, perform_everything_on_device=False,
        device=torch.device("cpu"), verbose=False, allow_tqdm=False,
    )  # fmt: skip
    predictor.manual_initialization(
        timed, plans, plans.get_configuration("3d_fullres"), [timed.state_dict()], dataset, "none", None
    )
    image, properties = SimpleITKIO().read_images([scan])
    found = predictor.predict_single_npy_array(image, properties)
    np.save(out, found.astype(np.uint8))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    told = {"network": spent, "cpu": usage.ru_utime + usage.ru_stime}
    Path(out).with_suffix(".json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:4])
