"""STU-Net end to end against nnU-Net's own predictor with the same network, on one scan, on the processor.

    python tools/bench/stunet.py [SCAN] [--size small] [--precision float32] [--precision bfloat16] [--tile 2]
    python tools/bench/stunet.py [SCAN] --fitted FOLDER/model
    python tools/bench/stunet.py [SCAN] --no-peer --precision float32 --tile 2 --tile 4 --large

Every way is a process of its own: from file to label map, without mirroring, second run (engines are built before).
Weights are name-seeded, so none are fetched. The peer lives in an environment of its own below the user's cache, made
on the first run; it averages logits, so the plugin's network runs by nnU-Net 2's rules here too (plan version 2).
Beside wall time stands processor time, which a busy machine disturbs less. ``--tile N`` measures the memory of ours on
the scan repeated N times along its length, which must stay flat; ``--large`` takes one of 512 x 512 x 800 voxels of
1.5 mm, made of the scan's own. ``--no-peer`` leaves nnU-Net out: memory needs no quiet machine. ``--fitted`` takes the
network of a model directory, say the one that ``tools/proofs/segmenter.py --keep FOLDER`` leaves, in place of a seeded
one: labels of seeded weights lie next to ties.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from common import Row, table
from processes import Measured, measure

ROOT = Path(__file__).parents[2]
#: Slices, rows and columns of a large scan.
LARGE = (800, 512, 512)
SCAN = ROOT.parent / "shared" / "data" / "totalsegmentator_example" / "example_ct.nii.gz"
#: nnU-Net without what prediction has no use for: its newest architectures want timm, which wants another torch.
PACKAGES = (
    "nnunetv2", "dynamic-network-architectures", "batchgenerators", "batchgeneratorsv2", "acvl-utils", "SimpleITK",
    "scikit-image", "scipy", "nibabel", "pandas", "tqdm", "requests", "dicom2nifti", "tifffile", "graphviz", "seaborn",
    "imagecodecs", "yacs", "einops", "fft-conv-pytorch", "threadpoolctl", "future", "python-dateutil", "pytz", "six",
    "matplotlib", "joblib", "scikit-learn", "pillow", "lazy_loader", "imageio", "packaging", "cycler", "kiwisolver",
    "pyparsing", "contourpy", "fonttools", "charset_normalizer", "certifi", "idna", "urllib3", "pydicom",
    "connected-components-3d", "blosc2", "numexpr", "ndindex", "msgpack", "httpx", "httpcore", "h11", "anyio",
    "sniffio", "rich", "pygments", "markdown-it-py", "mdurl", "numpy",
)  # fmt: skip


def cache() -> Path:
    """Where the peer's environment and the engines of this benchmark are kept: outside of the repository."""
    from platformdirs import user_cache_path

    return user_cache_path("omlab-bench")


def peer() -> Path:
    """Python of the peer's environment."""
    folder = cache() / "nnunetv2"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-c", str(ROOT / "tools" / "constraints.txt"), "torch==2.13.0"], check=True)
        subprocess.run([*pip, "--no-deps", *PACKAGES], check=True)
        (folder / "ready").touch()
    return python


def plain(source: str) -> Any:
    """The name-seeded network of a size, or that of a model directory."""
    from omlab_sdk.golden import seed_module
    from omlab_stunet.network import STUNet
    from omlab_stunet.plan import SIZES

    if source in SIZES:
        return seed_module(STUNet(1, 105, **SIZES[source]).eval())
    from safetensors.torch import load_file

    from omlab_sdk.checkpoints import load_into

    state = load_file(Path(source) / "network.safetensors")
    size = str(_directory(source).card.variants[0].config["size"])
    network = STUNet(1, len(state["seg_outputs.4.bias"]), **SIZES[size]).eval()
    load_into(network, state, name=source)
    return network


def _directory(source: str) -> Any:
    from omlab.api import directory_model

    return directory_model(source)


def network(source: str, path: Path) -> Path:
    """The same as TorchScript for one patch; its number of classes is read from it by the peer."""
    import torch

    if not path.exists():
        with torch.inference_mode():
            traced = torch.jit.trace(plain(source), torch.zeros(1, 1, 128, 128, 128), check_trace=False)
        torch.jit.save(traced, str(path))
    return path


def loaded(source: str, engine: str, precision: str) -> Any:
    """The model with name-seeded weights, or that of a directory, by nnU-Net 2's rules."""
    from omlab.graphs import Tolerance
    from omlab.loading import EngineChoice, LoadedModel
    from omlab.plugins import Registry
    from omlab.settings import Settings
    from omlab.vocabulary import Kind, Precision
    from omlab_sdk.contract.networks import Seeded
    from omlab_stunet.plan import SIZES

    class Bench(Seeded):
        """Labels of a network that was never trained are next to ties: the gate would refuse every reduced
        precision. What it costs is told in the table."""

        def graphs(self, variant: Any) -> Any:
            loose = {Precision.BFLOAT16: Tolerance(relative=0.2, flips_ppm=2e5)}
            return tuple(attrs.evolve(graph, tolerances=loose) for graph in super().graphs(variant))

        def network(self, graph: Any, variant: Any, files: Any) -> Any:
            return inner.as_graph(graph, plain(source))

    registry = Registry.discover()
    if source in SIZES:
        inner = registry.load(Kind.MODEL, "stunet")
        variant = attrs.evolve(inner.card.variant(source), weights=(), config={"size": source, "version": 2})
    else:
        inner = _directory(source).inner
        variant = inner.card.variants[0]
        variant = attrs.evolve(variant, config={**variant.config, "version": 2})
    settings = attrs.evolve(Settings.from_environment(), home=cache() / "engines")
    return LoadedModel(
        Bench(inner), variant, registry=registry, settings=settings,
        choice=EngineChoice(engine=engine, precision=precision),
    )  # fmt: skip


def ours(size: str, engine: str, precision: str, scan: Path, out: Path) -> None:
    """Segment ``scan`` in this process; an empty ``out`` builds the engine and no more."""
    model = loaded(size, engine, precision)
    if out.name == "warm":
        model.engines["window"]
        return
    model.engines.warm_up()  # as `omlab run` does
    outcome = model.run(scan)
    np.save(out, outcome.result.labels.T)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    told = {"network": outcome.stages["network"]["seconds"], "cpu": usage.ru_utime + usage.ru_stime}
    out.with_suffix(".json").write_text(json.dumps(told))


def tiled(scan: Path, times: int, folder: Path) -> Path:
    """The scan repeated along its length."""
    image, voxels = _read(scan)
    return _written(np.tile(voxels, (times, 1, 1)), image, image.GetSpacing(), folder / f"tiled{times}.nii.gz")


def large(scan: Path, folder: Path) -> Path:
    """800 slices of 512 x 512 voxels of 1.5 mm, made of the voxels of the scan."""
    image, voxels = _read(scan)
    times = [-(-wanted // found) for wanted, found in zip(LARGE, voxels.shape, strict=True)]
    found = np.tile(voxels, times)[tuple(slice(wanted) for wanted in LARGE)]
    return _written(found, image, (1.5, 1.5, 1.5), folder / "large.nii.gz")


def _read(scan: Path) -> tuple[Any, np.ndarray]:
    import SimpleITK as sitk

    image = sitk.ReadImage(str(scan))
    return image, sitk.GetArrayFromImage(image).astype(np.int16)


def _written(voxels: np.ndarray, like: Any, spacing: Any, path: Path) -> Path:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing(spacing)
    image.SetDirection(like.GetDirection())
    sitk.WriteImage(image, str(path))
    return path


def command(size: str, engine: str, precision: str, scan: Path, out: Path) -> list[str]:
    """Command line of :func:`ours`."""
    return [sys.executable, __file__, str(scan), "--ours", size, engine, precision, str(out)]


def run(
    scan: Path, source: str, precisions: list[str], tiles: list[int], engine: str, *, alone: bool, big: bool
) -> list[Row]:
    """Rows of the peer unless ``alone``, of ours at each precision, and of ours on the longer scans."""
    rows = []
    base = told = None
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        fitted = Path(source).is_dir()
        name = "fitted" if fitted else source
        theirs = folder / "theirs.npy"
        if not alone:
            script = network(source, folder / "fitted.pt" if fitted else cache() / f"stunet-{source}.pt")
            script_of_peer = str(Path(__file__).with_name("stunet_peer.py"))
            peer_run = [str(peer()), script_of_peer, str(script), str(scan), str(theirs)]
            base = measure(peer_run, environment={"PYTHONWARNINGS": "ignore"})
            told = json.loads(theirs.with_suffix(".json").read_text())
            rows.append(_row(scan, f"nnunetv2, torch float32, {name}", base, base, told, told, ""))
        longer = [tiled(scan, times, folder) for times in tiles] + ([large(scan, folder)] if big else [])
        for precision in precisions:
            out = folder / f"{precision}.npy"
            way = f"omlab, {engine} {precision}, {name}"
            measure(command(source, engine, precision, scan, folder / "warm"))
            found = measure(command(source, engine, precision, scan, out))
            own = json.loads(out.with_suffix(".json").read_text())
            note = agreement(np.load(out), np.load(theirs)) if base is not None else ""
            rows.append(_row(scan, way, found, base, own, told, note))
            for path in longer:
                more = measure(command(source, engine, precision, path, out))
                own = json.loads(out.with_suffix(".json").read_text())
                note = f"{more.peak_mb / found.peak_mb:.2f} of the memory of the scan itself"
                rows.append(_row(path, way, more, None, own, None, note))
    return rows


def agreement(found: np.ndarray, reference: np.ndarray) -> str:
    """Voxels that differ in parts per million, and Dice of all foreground together."""
    flips = np.count_nonzero(found != reference) / found.size * 1e6
    both = np.count_nonzero((found == reference) & (found != 0))
    dice = 2 * both / (np.count_nonzero(found) + np.count_nonzero(reference))
    return f"{flips:.0f} label flips a million, Dice {dice:.5f}"


def _row(scan: Path, way: str, found: Measured, base: Measured | None, own: Any, theirs: Any, note: str) -> Row:
    words = [f"network {own['network']:.1f} s", f"processor {own['cpu']:.1f} s", f"peak {found.peak_mb:.0f} MB"]
    if base is not None and base is not found:
        words.append(f"{found.peak_mb / base.peak_mb:.2f} of its memory")
        words.append(f"{theirs['cpu'] / own['cpu']:.2f} times less processor time")
    ratio = None if base is None else base.seconds / found.seconds
    return Row(
        what=scan.name, way=way, seconds=found.seconds, best=found.seconds, ratio=ratio,
        note=", ".join([*words, *([note] if note else [])]),
    )  # fmt: skip


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scan", type=Path, nargs="?", default=SCAN)
    parser.add_argument("--size", default="small", choices=("small", "base", "large", "huge"))
    parser.add_argument("--fitted", type=Path, help="a model directory of a fine-tuned STU-Net in place of a size")
    parser.add_argument("--precision", action="append", choices=("float32", "bfloat16"))
    parser.add_argument("--tile", type=int, action="append", help="also on the scan repeated so many times")
    parser.add_argument("--large", action="store_true", help="also on 512 x 512 x 800 voxels of 1.5 mm")
    parser.add_argument("--no-peer", action="store_true", help="without nnU-Net")
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--ours", nargs=4, metavar=("SIZE", "ENGINE", "PRECISION", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ours:
        size, engine, precision, out = options.ours
        ours(size, engine, precision, options.scan, Path(out))
        return
    if not options.scan.is_file():
        raise SystemExit(f"{options.scan} is not here: name a CT")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    precisions = options.precision or ["float32", "bfloat16"]
    source = str(options.fitted.resolve()) if options.fitted else options.size
    rows = run(
        options.scan, source, precisions, options.tile or [], options.engine,
        alone=options.no_peer, big=options.large,
    )  # fmt: skip
    print(table(rows, baseline="nnunetv2"))


if __name__ == "__main__":
    main()
