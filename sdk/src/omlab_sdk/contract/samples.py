"""Cases that no patient is in: a head of ellipsoids, a round photograph, a well-known protein."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import numpy as np

from omlab.cases import Image, Message, PatchFeatures, Sequence, Slide, Stack, Text, Video, Volume
from omlab.cases.types import Case
from omlab.geometry import Geometry
from omlab.vocabulary import InputKind, Prompt


def sample(kind: InputKind) -> Case | None:
    """A synthetic case of this kind, deterministic; ``None`` where there is none yet."""
    return SAMPLES[kind]() if kind in SAMPLES else None


def volume() -> Volume:
    """A head-like volume, 72 x 80 x 60 voxels of 2.4 x 2.2 x 3 mm, axes turned to LPI and tilted a little."""
    shape = (72, 80, 60)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij")

    def within(a: float, b: float, c: float) -> np.ndarray:
        return (x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2 < 1

    head = np.zeros(shape, np.float32)
    head[within(0.84, 0.92, 0.90)] = 700
    head[within(0.79, 0.87, 0.85)] = 80
    head[within(0.74, 0.82, 0.80)] = 250
    head[within(0.71, 0.79, 0.77)] = 560
    head[within(0.55, 0.62, 0.60)] = 820
    head += 10 * np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    angle = 0.1
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-2.4, -2.2, 3.0])
    affine[:3, 3] = [80, 90, -85]
    return Volume(name="sample", voxels=np.clip(head, 0, None).astype(np.int16), geometry=Geometry(shape, affine))


def image() -> Image:
    """An RGB photograph-like image of 300 x 260 pixels: a disc with vessels on black."""
    rows, columns = np.mgrid[-1:1:300j, -1:1:260j]
    disc = rows**2 + columns**2 < 0.8
    vessels = 0.5 + 0.5 * np.sin(9 * rows + 3 * np.sin(7 * columns))
    pixels = np.stack([180 * disc, 90 * disc * vessels, 40 * disc * (1 - vessels)], axis=2)
    return Image(name="sample", pixels=pixels.astype(np.uint8))


def sequence() -> Sequence:
    """Ubiquitin, 76 residues."""
    residues = "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG"
    return Sequence(name="sample", residues=residues)


def text() -> Text:
    """A question."""
    return Text(name="sample", messages=[Message(role="user", content="What does a high blood pressure mean?")])


def video() -> Video:
    """Six frames of 160 x 120 pixels: a bright spot that wanders over a reddish ground."""
    return Video(name="sample", frames_from=_Wandering())


def slide() -> Slide:
    """A pyramid of three levels, 4096 x 3072 pixels of half a micrometre: two pink discs on glass, one with a hole."""
    from omlab.cases.slide import of_pixels

    return of_pixels(_Discs(), "sample")


class _Discs:
    """Pixels that are computed (:class:`omlab.cases.slide.Pixels`)."""

    levels = ((4096, 3072), (1024, 768), (256, 192))
    mpp, magnification = (0.5, 0.5), 20.0

    def __init__(self) -> None:
        self.details: dict[str, object] = {}
        self.warnings: list[str] = []

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        scale = self.levels[0][0] / self.levels[level][0]
        rows, columns = (scale * axis for axis in np.ogrid[y : y + height, x : x + width])
        tissue = ((rows - 1500) ** 2 + (columns - 1300) ** 2 < 900**2) & (
            (rows - 1500) ** 2 + (columns - 1100) ** 2 > 330**2
        )
        tissue = tissue | ((rows - 1000) ** 2 + (columns - 3000) ** 2 < 600**2)
        texture = 12 * np.sin(rows / 9) * np.sin(columns / 11)
        pink = np.stack([205 + texture, 110 + 2 * texture, 165 + texture], axis=2)
        return np.where(tissue[:, :, None], pink, 240).astype(np.uint8)


def stack() -> Stack:
    """24 planes of 40 x 36 pixels of 16 bits: two bright threads on a dim ground."""
    from omlab.cases.stack import ArrayPlanes, of_planes

    z, y, x = np.mgrid[0:24, 0:40, 0:36].astype(np.float32)
    threads = np.exp(-((y - 12 - z / 3) ** 2 + (x - 18 - 6 * np.sin(z / 5)) ** 2) / 4)
    threads += np.exp(-((z - 12) ** 2 + (x - 4 - y / 2) ** 2) / 3)
    noise = np.random.default_rng(0).normal(0, 120, threads.shape)
    voxels = np.clip(3000 + 14000 * threads + noise, 0, 65535).astype(np.uint16)
    return of_planes(ArrayPlanes(voxels, (2.0, 1.0, 1.0)), "sample")


def features() -> PatchFeatures:
    """Features of a 6 x 5 grid of patches, 768 each, deterministic."""
    values = np.random.default_rng(0).standard_normal((30, 768)).astype(np.float32)
    coords = np.stack(np.meshgrid(np.arange(6), np.arange(5), indexing="ij"), axis=-1).reshape(-1, 2) * 256
    return PatchFeatures(name="sample", features=values, coords=coords.astype(np.int64), side=(256, 256))


class _Wandering:
    """Frames that are computed (:class:`omlab.cases.video.Frames`)."""

    count, counted, rate, ticks, size = 6, True, 10.0, None, (120, 160)

    def __init__(self) -> None:
        self.details: dict[str, object] = {}
        self.warnings: list[str] = []

    def decode(self, wanted: Iterator[int]) -> Iterator[tuple[int, np.ndarray]]:
        rows, columns = np.mgrid[0:120, 0:160]
        for number in wanted:
            spot = 110 * np.exp(-(((rows - 60) / 14) ** 2) - ((columns - 30 - 5 * number) / 18) ** 2)
            ground = np.stack([140 - rows / 3, 60 + columns / 8, 50 + 0 * rows], axis=2)
            yield number, np.clip(ground + spot[:, :, None], 0, 255).astype(np.uint8)


SAMPLES: dict[InputKind, Callable[[], Case]] = {
    InputKind.VOLUME: volume,
    InputKind.IMAGE: image,
    InputKind.SEQUENCE: sequence,
    InputKind.TEXT: text,
    InputKind.VIDEO: video,
    InputKind.FEATURES: features,
    InputKind.SLIDE: slide,
    InputKind.STACK: stack,
}


def sample_prompts(takes: Collection[Prompt], kind: InputKind) -> list[dict[str, object]] | None:
    """One object in the sample of this kind, by the prompts that a model takes; ``None`` where it takes none."""
    centre, box = {
        InputKind.IMAGE: ([130, 150], [40, 40, 220, 260]),
        InputKind.VOLUME: ([36, 40, 30], [10, 10, 10, 60, 70, 50]),
    }.get(kind, ([0, 0], [0, 0, 1, 1]))
    item: dict[str, object] = {"label": "sample"}
    if Prompt.POINT in takes:
        item["points"] = [centre]
    if Prompt.BOX in takes:
        item["boxes"] = [box]
    if Prompt.TEXT in takes:
        item["text"] = "the sample"
    return [item] if len(item) > 1 else None


def write_sample(kind: InputKind, folder: Path) -> Path:
    """The sample as a file that a user could have: a NIfTI volume, a PNG image, a folder of frames ..."""
    case = sample(kind)
    if isinstance(case, Volume):
        path = folder / "sample.nii.gz"
        _write_nifti(case, path)
        return path
    if isinstance(case, Image):
        from PIL import Image as Picture

        path = folder / "sample.png"
        Picture.fromarray(case.pixels).save(path)
        return path
    if isinstance(case, Sequence):
        path = folder / "sample.fasta"
        path.write_text(f">sample\n{case.residues}\n", "utf-8")
        return path
    if isinstance(case, Text):
        path = folder / "sample.jsonl"
        path.write_text(json.dumps({"id": case.name, "prompt": case.question}) + "\n", "utf-8")
        return path
    if isinstance(case, Video):
        from PIL import Image as Picture

        path = folder / "sample-frames"
        path.mkdir(exist_ok=True)
        for number, frame in case.frames():
            Picture.fromarray(frame).save(path / f"{number:03d}.png")
        return path
    if isinstance(case, PatchFeatures):
        path = folder / "sample.h5"
        _write_features(case, path)
        return path
    if isinstance(case, Slide):
        path = folder / "sample.tif"
        _write_pyramid(case, path)
        return path
    if isinstance(case, Stack):
        import tifffile

        path = folder / "sample.tif"
        with tifffile.TiffWriter(path) as tiff:
            for number in range(len(case)):
                tiff.write(case[number], contiguous=False, metadata=None)
        return path
    raise ValueError(f"there is no sample of kind {kind}")


def _write_features(case: PatchFeatures, path: Path) -> None:
    from omlab.results.slide_features import FeatureWriter

    assert case.coords is not None
    writer = FeatureWriter(path, case.coords, case.features.shape[1], {"patch_size": 256, "downsample": [1.0, 1.0]}, 0)
    writer.append(case.features)
    writer.finish()


def _write_pyramid(case: Slide, path: Path) -> None:
    """A tiled TIFF, a page a level."""
    import tifffile

    assert case.mpp is not None
    with tifffile.TiffWriter(path) as tiff:
        for level, (width, height) in enumerate(case.levels):
            pixels_cm = 1e4 / (case.mpp[0] * case.downsamples[level][0])
            tiff.write(
                case.pixels_from.read(level, 0, 0, width, height), tile=(256, 256), photometric="rgb",
                compression="zlib", subfiletype=int(level > 0), resolution=(pixels_cm, pixels_cm),
                resolutionunit="CENTIMETER",
            )  # fmt: skip


def _write_nifti(case: Volume, path: Path) -> None:
    """A minimal single-file NIfTI-1 written from its definition, so that reading is checked against something else
    than our own writer."""
    import gzip
    import struct

    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *case.voxels.shape, 1, 1, 1, 1)
    struct.pack_into("<hh", header, 70, 4, 16)  # int16
    struct.pack_into("<8f", header, 76, 1.0, *case.geometry.spacing_mm, 0, 0, 0, 0)
    struct.pack_into("<f", header, 108, 352.0)
    struct.pack_into("<ff", header, 112, 1.0, 0.0)
    struct.pack_into("<B", header, 123, 2)  # millimetres
    struct.pack_into("<hh", header, 252, 0, 1)
    for row in range(3):
        struct.pack_into("<4f", header, 280 + 16 * row, *case.geometry.affine[row])
    header[344:348] = b"n+1\0"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(bytes(header))
        file.write(case.voxels.astype("<i2").tobytes(order="F"))
