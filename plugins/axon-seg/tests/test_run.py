"""From a checkpoint of upstream and a stack to files, as a user runs it, on small name-seeded networks."""

from __future__ import annotations

import gzip
import io
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
tifffile = pytest.importorskip("tifffile")
zarr = pytest.importorskip("zarr")

import omlab  # noqa: E402
from omlab.cases import stack as stacks  # noqa: E402
from omlab.cli.main import main  # noqa: E402
from omlab.errors import InputError, OutputError, UsageError, WeightsError  # noqa: E402
from omlab.results.stacks import writer  # noqa: E402
from omlab_axon_seg import brain, checkpoint, labels, model  # noqa: E402
from omlab_axon_seg.network import GenericUNet  # noqa: E402
from omlab_axon_seg.unet import UNet  # noqa: E402
from omlab_sdk.golden import seed_module  # noqa: E402

SIDE = 32
SMALL = {"side": (SIDE,) * 3, "base": 4, "num_pool": 2, "skip": (1,)}
DATA = Path(__file__).resolve().parents[4] / "shared" / "data" / "axon_cubes"
OVERLAP = ["--overlap", "8"]


def _small(patch: pytest.MonkeyPatch, root: Path) -> None:
    patch.setenv("OMLAB_HOME", str(root))
    patch.delenv("OMLAB_WEIGHTS", raising=False)
    patch.setattr(model, "side_of", lambda variant: SIDE)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home of omlab with files of both networks, in the containers that upstream's scripts write."""
    root = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        _small(patch, root)
        axial = seed_module(GenericUNet(**SMALL)).state_dict()
        torch.save(axial, root / "combined.pth")
        torch.save(
            {
                "state_dict": {f"module.{k}": v for k, v in axial.items()}, "epoch": 550,
                "optimizer_state_dict": {"state": {}, "param_groups": []}, "best_stuff": (np.float64(0.9), 1.0, 2.0),
            },
            root / "own.model",
        )  # fmt: skip
        torch.save(seed_module(UNet(base_n_filter=2)).state_dict(), root / "unet.pth")
        for variant, name in (("combined", "combined.pth"), ("own", "own.model"), ("own-unet", "unet.pth")):
            assert main(["pull", "axon-seg", "--variant", variant, "--file", f"net={root / name}"]) == 0
    return root


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    _small(monkeypatch, home)


@pytest.fixture(scope="module")
def voxels() -> np.ndarray:
    """26 planes of 30 x 36: bright threads."""
    z, y, x = np.mgrid[0:26, 0:30, 0:36].astype(np.float32)
    threads = np.exp(-((y - 12 - z / 3) ** 2 + (x - 18 - 6 * np.sin(z / 5)) ** 2) / 4)
    noise = np.random.default_rng(0).normal(0, 120, threads.shape)
    return np.clip(3000 + 14000 * threads + noise, 0, 65535).astype(np.uint16)


def _plain(home: Path, variant: str, volume: np.ndarray, **more: object) -> np.ndarray:
    """Probabilities times 255 by the network in torch."""
    kind, name = {"combined": ("axial", "combined.pth"), "own-unet": ("unet", "unet.pth")}[variant]
    network = checkpoint.load(home / name, kind)

    def run(tile: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(tile)[None, None])[0].numpy()

    windows = brain.Windows((0, 0, 0), volume.shape, SIDE, 8)
    return np.stack([plane.copy() for _, plane in brain.probabilities(volume, windows, run, **more)])


def _run(path: Path, out: Path, *more: str) -> int:
    return main(["run", "axon-seg", str(path), "-o", str(out), "--engine", "torch", "--threads", "1", *OVERLAP, *more])


@pytest.mark.parametrize(("variant", "threshold"), [("combined", 127), ("own-unet", 127)])
def test_command_line(
    variant: str, threshold: int, voxels: np.ndarray, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A TIFF of many pages: the label map equals that of the plain loop, with picture, densities and lengths."""
    tifffile.imwrite(tmp_path / "brain.tif", voxels, metadata=None, compression="zlib")
    out = tmp_path / "out"
    arguments = ["--variant", variant, "--threshold", str(threshold), "--voxel", "4,2,2", "--cell", "16"]
    assert _run(tmp_path / "brain.tif", out, *arguments, "--lines", "--probabilities") == 0, capsys.readouterr().err
    folder = out / "brain"
    assert {p.name for p in folder.iterdir()} == {
        "segmentation.tif", "segmentation.csv", "lines.tif", "probabilities.tif", "density.tif", "length-density.tif",
        "overview.png", "result.json",
    }  # fmt: skip
    grey = tifffile.imread(folder / "probabilities.tif")
    assert np.abs(grey.astype(int) - _plain(home, variant, voxels)).max() <= 1
    found = tifffile.imread(folder / "segmentation.tif")
    assert np.array_equal(found > 0, grey > threshold) and 0 < (found > 0).mean() < 1
    lines = tifffile.imread(folder / "lines.tif") > 0
    assert np.array_equal(lines, labels.skeleton(found > 0))
    record = json.loads((folder / "result.json").read_text())["result"]
    figures = record["measurements"]
    assert record["structures"][0]["voxels"] == figures["axon_voxels"] == (found > 0).sum()
    assert figures["length_mm"] == pytest.approx(labels.line_length(lines, (4, 2, 2)) / 1e3)
    density, lengths = (tifffile.imread(folder / f"{name}.tif") for name in ("density", "length-density"))
    assert density.shape == lengths.shape == (2, 2, 3)
    assert density[0, 0, 0] == pytest.approx((found[:16, :16, :16] > 0).mean())
    sizes = np.einsum("i,j,k->ijk", [16, 10], [16, 14], [16, 16, 4]) * 16e-9
    assert (lengths * sizes).sum() == pytest.approx(figures["length_mm"], rel=1e-4)
    # Again, it is whole already.
    assert _run(tmp_path / "brain.tif", out, *arguments, "--lines", "--probabilities", "--resume") == 0


def test_every_form_of_stack_gives_the_same(voxels: np.ndarray, tmp_path: Path) -> None:
    """A folder of pages and OME-Zarr come back as what they were; all label maps are one."""
    tifffile.imwrite(tmp_path / "brain.tif", voxels, metadata=None)
    for form, name in (("tiff-folder", "pages"), ("zarr", "brain.ome.zarr")):
        made = writer(form, tmp_path / name, voxels.shape, voxels.dtype, spacing_um=(4, 2, 2))
        for plane in voxels:
            made.append(plane)
        made.finish()
    found = []
    for path, ending in (("brain.tif", ".tif"), ("pages", ""), ("brain.ome.zarr", ".ome.zarr")):
        out = tmp_path / f"out-{path}"
        assert _run(tmp_path / path, out, "--threshold", "127") == 0
        (written,) = out.glob(f"*/segmentation{ending}")
        mask = stacks.read(written)
        assert mask.source.format == {"brain.tif": "tiff", "pages": "tiff-folder"}.get(path, "zarr")
        found.append(mask.read(0, 26))
        record = json.loads((written.parent / "result.json").read_text())
        assert ("length_mm" in record["result"]["measurements"]) == (path == "brain.ome.zarr")
        assert _run(tmp_path / path, out, "--threshold", "127", "--resume") == 0
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])
    out = tmp_path / "converted"
    assert _run(tmp_path / "brain.tif", out, "--threshold", "127", "--format", "zarr") == 0
    assert np.array_equal(stacks.read(out / "brain" / "segmentation.ome.zarr").read(0, 26), found[0])
    assert not list(out.rglob("unfinished-*")) and not list(out.rglob("segmentation.tif"))
    assert _run(tmp_path / "brain.tif", out, "--threshold", "127", "--format", "json") == 0
    assert not list(out.rglob("unfinished-*")) and len(list(out.rglob("segmentation.tif"))) == 1


def test_containers_of_nnunet(voxels: np.ndarray) -> None:
    case = stacks.of_planes(stacks.ArrayPlanes(voxels), "brain")
    first, second = (
        omlab.load("axon-seg", variant=variant, engine="torch", threads=1)(case, overlap=8, threshold=127)
        for variant in ("combined", "own")
    )
    assert np.array_equal(np.asarray(first.labels), np.asarray(second.labels))


def test_engines_agree(voxels: np.ndarray) -> None:
    """ONNX Runtime and OpenVINO pass the parity gate and find what torch finds."""
    case = stacks.of_planes(stacks.ArrayPlanes(voxels), "brain")
    found = {}
    for engine in ("torch", "onnxruntime", "openvino"):
        if engine != "torch":
            pytest.importorskip(engine)
        loaded = omlab.load("axon-seg", variant="combined", engine=engine, precision="float32", threads=1)
        found[engine] = np.asarray(loaded(case, overlap=8, threshold=127).labels)
    for engine, mask in found.items():
        assert (mask != found["torch"]).mean() < 1e-3, engine


def test_regions_and_options(voxels: np.ndarray, home: Path) -> None:
    case = stacks.of_planes(stacks.ArrayPlanes(voxels), "brain")
    loaded = omlab.load("axon-seg", variant="combined", engine="torch", threads=1)

    def run(**options: object) -> omlab.StackSegmentation:
        return loaded(case, **{"overlap": 8, "threshold": 127} | options)

    part = run(region="5:24,2:28,:")
    assert part.labels.shape == (19, 26, 36) and part.start == (5, 2, 0)
    whole = run()
    assert not np.array_equal(np.asarray(run(normalise="cube").labels), np.asarray(whole.labels))
    dark = run(background=60000.0)
    assert dark.measurements["windows"] == 0 and dark.measurements["axon_voxels"] == 0
    assert dark.measurements["windows_left_out"] == whole.measurements["windows"]
    picture = whole.illustration("Axon-Seg")
    assert picture.width > picture.height > 100
    for options, message in (
        ({"region": "0:99,:,:"}, "is not in it"), ({"region": "3"}, "three ranges"),
        ({"region": "5:2,:,:"}, "three ranges"),
        ({"voxel": "1,2"}, "three lengths"), ({"voxel": "1,0,1"}, "three lengths"), ({"threshold": 255}, "'threshold'"),
        ({"cell": 0}, "'cell'"), ({"overlap": 16}, "overlap by 0 to 15"),
    ):  # fmt: skip
        with pytest.raises((UsageError, InputError), match=message):
            run(**options)


@pytest.mark.parametrize("shape", [(1, 5, 7), (20, 3, 9), (3, 40, 20)])
def test_stacks_smaller_than_a_window(shape: tuple[int, int, int]) -> None:
    loaded = omlab.load("axon-seg", variant="combined", engine="torch", threads=1)
    values = np.random.default_rng(0).integers(100, 9000, shape, dtype=np.uint16)
    found = loaded(stacks.of_planes(stacks.ArrayPlanes(values), "tiny"), overlap=8)
    assert found.labels.shape == shape
    even = loaded(stacks.of_planes(stacks.ArrayPlanes(np.full(shape, 7, np.uint8)), "even"), overlap=8)
    assert even.labels.shape == shape


def test_bad_stacks_are_named_and_the_good_one_goes_on(
    voxels: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Missing planes, a single picture, no picture at all, and nothing: a row with a reason each."""
    from PIL import Image

    for number in (0, 1, 3, 4):
        (tmp_path / "gap").mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / "gap" / f"z{number:04d}.tif", voxels[number])
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / "picture.png")
    (tmp_path / "text.tif").write_text("no picture")
    tifffile.imwrite(tmp_path / "good.tif", voxels[:9], metadata=None)
    bad = {
        "gap": "1 planes are missing, first between number 1 and number 3",
        "picture.png": "is a 2D image, expected",
        "text.tif": "expected",
    }
    inputs = [str(tmp_path / name) for name in ("gap", "picture.png", "text.tif", "good.tif")]
    out = tmp_path / "out"
    arguments = ["run", "axon-seg", *inputs, "-o", str(out), "--engine", "torch", "--threads", "1", *OVERLAP]
    assert main(arguments) == 1
    told = "".join(capsys.readouterr())
    rows = (out / "cases.csv").read_text("utf-8").splitlines()
    for name, reason in bad.items():
        (row,) = (row for row in rows if Path(name).stem in row)
        assert reason in row and reason in told, (row, told)
    assert (out / "good" / "result.json").is_file()
    assert sorted(path.parent.name for path in out.rglob("result.json")) == ["good"]


def test_damage_leaves_nothing_behind(
    voxels: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tifffile.imwrite(tmp_path / "brain.tif", voxels, metadata=None, compression="zlib")
    data = bytearray((tmp_path / "brain.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "brain.tif") as tiff:
        start = tiff.pages[24].dataoffsets[0]
    data[start : start + 60] = b"x" * 60
    (tmp_path / "brain.tif").write_bytes(data)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    with pytest.raises(InputError, match="page 24 is damaged"):
        omlab.load("axon-seg", variant="combined", engine="torch", threads=1)(tmp_path / "brain.tif", overlap=8)
    assert not list(temporary.iterdir())
    assert _run(tmp_path / "brain.tif", tmp_path / "out") != 0
    assert "page 24 is damaged" in "".join(capsys.readouterr())
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    (tmp_path / "empty").mkdir()
    assert _run(tmp_path / "empty", tmp_path / "out") != 0
    assert "holds no file that can be a case" in "".join(capsys.readouterr())


def test_a_full_disk(voxels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from omlab_axon_seg import pipeline

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pipeline, "writer", full)
    loaded = omlab.load("axon-seg", variant="combined", engine="torch", threads=1)
    case = stacks.of_planes(stacks.ArrayPlanes(voxels), "brain")
    with pytest.raises(OutputError, match="No space left"):
        loaded.run(case, options={"overlap": 8}, scratch=tmp_path / "case")
    assert not (tmp_path / "case").exists()


class _Long:
    """A stack that is computed (:class:`omlab.cases.stack.Planes`)."""

    dtype, depth, spacing_um, format = np.dtype(np.uint16), 1, None, "memory"

    def __init__(self, planes: int) -> None:
        self.shape = (planes, 96, 96)
        self.details: dict[str, object] = {}
        self.warnings: list[str] = []

    def read(self, first: int, stop: int) -> np.ndarray:
        return np.random.default_rng(first).integers(100, 9000, (stop - first, *self.shape[1:]), dtype=np.uint16)


def test_memory_does_not_grow_with_the_stack() -> None:
    peaks = []
    for planes in (160, 640):
        windows = brain.Windows((0, 0, 0), (planes, 96, 96), SIDE, 8)
        case = stacks.of_planes(_Long(planes), "long")
        tracemalloc.start()
        for _, plane in brain.probabilities(case, windows, lambda tile: np.stack([-tile, tile])):
            assert plane.shape == (96, 96)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


def test_real_brain() -> None:
    """The example stack of D-LMBmap with a network that is not trained: all of the way, on real planes."""
    if not DATA.is_dir():
        pytest.skip("needs data/axon_cubes in the folder shared beside the project")
    volume = tifffile.imread(io.BytesIO(gzip.decompress((DATA / "brain-example-crop.tiff.gz").read_bytes())))
    case = stacks.of_planes(stacks.ArrayPlanes(volume[:30, :48, :48], (1.0, 1.0, 1.0)), "example")
    loaded = omlab.load("axon-seg", variant="combined", engine="torch", threads=1)
    found = loaded(case, overlap=8, threshold=127)
    mask = np.asarray(found.labels) > 0
    assert mask.shape == (30, 48, 48) and 0 < mask.mean() < 1
    assert found.measurements["length_mm"] == pytest.approx(labels.line_length(labels.skeleton(mask)) / 1e3, rel=0.02)


def test_wrong_checkpoints(home: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is no checkpoint of axial"):
        checkpoint.load(home / "unet.pth", "axial")
    with pytest.raises(WeightsError, match="is no checkpoint of unet"):
        checkpoint.load(home / "combined.pth", "unet")
    with pytest.raises(WeightsError, match="takes volumes of"):
        checkpoint.load(home / "combined.pth", "axial", side=(128,) * 3)
    torch.save({"state_dict": "none"}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="holds no tensors"):
        checkpoint.load(tmp_path / "other.pth", "axial")
    odd = {
        "side": (16,) * 3,
        "base": 4,
        "num_pool": 2,
        "pool": [(1, 2, 2), (2, 2, 2)],
        "num_conv_per_stage": 3,
        "skip": (0,),
    }
    state = seed_module(GenericUNet(**odd, num_classes=3, channels=2)).state_dict()
    told = checkpoint.arguments_of(state, "axial")
    assert told["side"] == (16, 16, 16) and told["skip"] == [0] and told["num_conv_per_stage"] == 3
    torch.save(state, tmp_path / "odd.pth")
    checkpoint.load(tmp_path / "odd.pth", "axial")
    with pytest.raises(UsageError, match="takes 2 channels and has 3 outputs"):
        model._fitting(GenericUNet(**odd, num_classes=3, channels=2), "axial", "odd.pth")
