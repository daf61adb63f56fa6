"""A folder of pictures as a video: each picture a frame, in the order in which a person would count them."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omlab.cases import images
from omlab.cases.sniff import Family, family_of
from omlab.errors import InputError, OmlabError
from omlab.files import natural


def _order(path: Path) -> list[tuple[int, int, str]]:
    return natural(path.name.lower())


class FolderFrames:
    """See :class:`omlab.cases.video.Frames`."""

    counted = True
    rate = None
    ticks = None

    def __init__(self, folder: Path) -> None:
        self.files: list[Path] = []
        for path in sorted((p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")), key=_order):
            try:
                if family_of(path) is Family.PICTURE:
                    self.files.append(path)
            except OmlabError:
                continue  # notes, lists of labels
        if not self.files:
            raise InputError(
                f"{folder}: holds no picture, expected the frames of a video", remedy="Name the folder that holds them"
            )
        self.count = len(self.files)
        self.size = self._read(self.files[0]).shape[:2]
        self.details: dict[str, Any] = {"first": self.files[0].name, "last": self.files[-1].name}
        self.warnings: list[str] = []

    def _read(self, path: Path) -> NDArray[np.uint8]:
        return images.read(path).rgb8()

    def decode(self, wanted: Iterator[int]) -> Generator[tuple[int, NDArray[np.uint8]], None, None]:
        """A damaged picture is left out, with a warning; one of another size is an error."""
        for number in wanted:
            path = self.files[number]
            try:
                pixels = self._read(path)
            except InputError as error:
                self.warnings.append(f"{error.message}; the frame was left out")
                continue
            if pixels.shape[:2] != self.size:
                raise InputError(
                    f"{path.name}: is {pixels.shape[0]} x {pixels.shape[1]} pixels, the first frame "
                    f"{self.size[0]} x {self.size[1]}",
                    remedy="Put the frames of one video into a folder of their own",
                )
            yield number, pixels
