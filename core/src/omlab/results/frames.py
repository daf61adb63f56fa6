"""Label maps of the frames of a video: kept compressed, so that an hour of them fits into memory."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

from omlab.errors import OutputError
from omlab.files import whole
from omlab.results.types import Segmentation

#: A classic TIFF ends at 4 GiB.
_TIFF_BYTES = 4_000_000_000


class FrameLabels:
    """Label maps [frame, row, column] of uint8 that are decompressed one by one.

    Parameters
    ----------
    size : (rows, columns).
    values : the labels that can occur, for counting.
    """

    dtype = np.dtype(np.uint8)
    ndim = 3

    def __init__(self, size: tuple[int, int], values: Sequence[int]) -> None:
        self.size = (int(size[0]), int(size[1]))
        self.values = tuple(values)
        self._packed: list[bytes] = []
        self._counts: list[list[int]] = []

    def append(self, labels: NDArray[np.uint8]) -> None:
        """Add the label map of the next frame."""
        if labels.shape != self.size or labels.dtype != np.uint8:
            raise ValueError(f"label maps are uint8 of {self.size}, found {labels.dtype} of {labels.shape}")
        found = np.bincount(labels.ravel(), minlength=256)
        self._counts.append([int(found[value]) for value in self.values])
        self._packed.append(isal_zlib.compress(np.ascontiguousarray(labels), 1))

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self._packed), *self.size

    @property
    def counts(self) -> NDArray[np.int64]:
        """Pixels of each of :attr:`values` in each frame, [frame, value]."""
        return np.array(self._counts, np.int64).reshape(len(self._packed), len(self.values))

    def __len__(self) -> int:
        return len(self._packed)

    def __getitem__(self, number: int) -> NDArray[np.uint8]:
        return np.frombuffer(zlib.decompress(self._packed[number]), np.uint8).reshape(self.size)

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        return (self[number] for number in range(len(self)))

    def __eq__(self, other: object) -> Any:
        return np.asarray(self) == other

    __hash__ = None  # type: ignore[assignment]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        whole_array = np.empty(self.shape, np.uint8)
        for number, labels in enumerate(self):
            whole_array[number] = labels
        return whole_array if dtype is None else whole_array.astype(dtype)


@attrs.frozen(eq=False, kw_only=True)
class VideoSegmentation(Segmentation):
    """Label maps of frames of a video, each on the grid of its frame.

    Attributes
    ----------
    labels : [frame, row, column] uint8; ``labels[n]`` gives one.
    frames : [frame] number in the video of each label map.
    rate : frames a second of the video.
    """

    labels: FrameLabels  # type: ignore[assignment]
    frames: NDArray[np.int64]
    rate: float

    def counts(self) -> dict[int, int]:
        """Pixels of each structure in all frames together."""
        sums = self.labels.counts.sum(axis=0)
        return {label.value: int(sums[self.labels.values.index(label.value)]) for label in self.structures}

    def found_in(self) -> dict[int, int]:
        """Number of frames in which each structure is seen."""
        seen = (self.labels.counts > 0).sum(axis=0)
        return {label.value: int(seen[self.labels.values.index(label.value)]) for label in self.structures}

    def by_frame(self) -> dict[str, list[Any]]:
        """A row a frame: its number, its time in seconds, pixels and share of each structure."""
        counts, size = self.labels.counts, max(1, self.labels.size[0] * self.labels.size[1])
        table: dict[str, list[Any]] = {
            "frame": self.frames.tolist(), "time_s": [round(float(n) / self.rate, 4) for n in self.frames],
        }  # fmt: skip
        for label in self.structures:
            column = counts[:, self.labels.values.index(label.value)]
            table[f"{label.name}_px"] = column.tolist()
            table[f"{label.name}_share"] = [round(n / size, 6) for n in column.tolist()]
        return table


def write_tiff(result: VideoSegmentation, path: Path) -> None:
    """A page a frame, in the colours of the labels, as ImageJ and napari read it.

    Raises
    ------
    omlab.errors.OutputError
        It would be larger than a TIFF can be.
    """
    from PIL import Image as Pillow

    palette = np.zeros((256, 3), np.uint8)
    for label in result.structures:
        palette[label.value] = label.colour

    def pages() -> Iterator[Pillow.Image]:
        for labels in result.labels:
            page = Pillow.fromarray(labels)
            page.putpalette(palette.tobytes())
            yield page

    if not len(result.labels):
        raise OutputError(f"{path.name}: there is no frame to write")
    every = pages()
    with whole(path) as temporary:
        next(every).save(temporary, format="TIFF", compression="tiff_adobe_deflate", save_all=True, append_images=every)
        if temporary.stat().st_size > _TIFF_BYTES:
            raise OutputError(f"{path.name}: is larger than a TIFF can be", remedy="Use --every or --format npz")
