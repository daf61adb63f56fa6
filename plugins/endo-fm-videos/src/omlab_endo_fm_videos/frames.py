"""Videos whose frames are pictures of a list, and their references."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from omlab.cases import Source, Video
from omlab.cases.video import USUAL_RATE
from omlab.cases.video_folder import FolderFrames
from omlab.errors import InputError
from omlab.files import natural
from omlab.results import Detections, FrameLabels, Label, VideoSegmentation, read_segmentation

#: Longest annotation that is read: a frame has a few boxes.
_XML_BYTES = 1 << 20


class ListedFrames(FolderFrames):
    """Frames that a list names, in its order, and not all of a folder."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        self.count = len(self.files)
        self.size = self._read(self.files[0]).shape[:2]
        self.details: dict[str, Any] = {"first": self.files[0].name, "last": self.files[-1].name}
        self.warnings: list[str] = []


def clip(name: str, files: Sequence[Path]) -> Video:
    """A video of these pictures. Raises :class:`omlab.errors.InputError` if one is missing."""
    lacking = next((path for path in files if not path.is_file()), None)
    if lacking is not None:
        raise InputError(f"{lacking}: does not exist, a frame of {name}")
    source = Source(path=files[0].parent, format="frames", files=tuple(files))
    return Video(name=name, source=source, frames_from=ListedFrames(sorted(files, key=lambda p: natural(p.name))))


def clip_masks(files: Sequence[Path], structures: tuple[Label, ...]) -> VideoSegmentation:
    """Masks of the frames of a clip: 255 is the polyp, everything else is not, as upstream reads them.

    Raises
    ------
    omlab.errors.InputError
        A mask is missing or damaged, or of another size than the first.
    """
    labels: FrameLabels | None = None
    for path in files:
        if not path.is_file():
            raise InputError(f"{path}: does not exist, the mask of a frame")
        found = (read_segmentation(path).labels == 255).astype(np.uint8)
        if labels is None:
            labels = FrameLabels(found.shape, [label.value for label in structures])
        if found.shape != labels.size:
            raise InputError(f"{path.name}: has the shape {found.shape}, the first mask of the clip {labels.size}")
        labels.append(found)
    assert labels is not None
    return VideoSegmentation(labels=labels, structures=structures, frames=np.arange(len(labels)), rate=USUAL_RATE)


def boxes_of(frames: Sequence[Path], folder: Path, classes: tuple[str, ...]) -> Detections:
    """Boxes of a video, in pixels, from an XML a frame; frames without one have none.

    Raises
    ------
    omlab.errors.InputError
        An annotation is damaged, or names a class that the set has not.
    """
    boxes: list[list[float]] = []
    labels: list[int] = []
    numbers: list[int] = []
    for number, frame in enumerate(sorted(frames, key=lambda p: natural(p.name))):
        path = folder / f"{frame.stem}.xml"
        if not path.is_file():
            continue
        for name, box in _voc(path):
            if name.lower() not in classes:
                raise InputError(f"{path.name}: '{name}' is no class of the set: {', '.join(classes)}")
            boxes.append(box)
            labels.append(classes.index(name.lower()))
            numbers.append(number)
    return Detections(
        boxes=np.array(boxes, np.float32).reshape(-1, 4), scores=np.ones(len(boxes), np.float32),
        labels=np.array(labels, np.int64), classes=classes, frames=np.array(numbers, np.int64),
    )  # fmt: skip


def _voc(path: Path) -> list[tuple[str, list[float]]]:
    """Class and (x0, y0, x1, y1) of each object of a Pascal VOC file."""
    try:
        data = path.read_bytes()
        if len(data) > _XML_BYTES or b"<!DOCTYPE" in data or b"<!ENTITY" in data:
            raise InputError(f"{path.name}: is no plain annotation")  # entities could grow without end
        found = []
        for item in ElementTree.fromstring(data).iter("object"):
            box = item.find("bndbox")
            if box is None:
                raise ValueError("an object has no bndbox")
            edges = [float(box.findtext(edge) or "") for edge in ("xmin", "ymin", "xmax", "ymax")]
            if not (edges[0] < edges[2] and edges[1] < edges[3]):
                raise ValueError(f"the box {edges} is empty")
            found.append(((item.findtext("name") or "").strip(), edges))
        return found
    except (OSError, ElementTree.ParseError, ValueError) as error:
        raise InputError(f"{path.name}: cannot be read as an annotation: {error}") from None
