"""Clips for pre-training, and the three sets of the downstream tasks."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from omlab.cases import read
from omlab.dataset import Dataset, Item
from omlab.datasets.folders import file_names, folder_names, needed, one_class
from omlab.errors import InputError
from omlab.results import Label
from omlab.vocabulary import InputKind
from omlab_endo_fm_videos.frames import boxes_of, clip, clip_masks

_VIDEO = (InputKind.VIDEO,)
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


def lines(path: Path, columns: int) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of a list without a head, blank lines left out.

    Raises
    ------
    omlab.errors.InputError
        The file is missing, damaged, or a line has another number of cells.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            for number, row in enumerate(csv.reader(file), start=1):
                cells = [cell.strip() for cell in row]
                if not any(cells):
                    continue
                if len(cells) != columns:
                    raise InputError(f"{path.name}, line {number}: has {len(cells)} cells, {columns} were expected")
                yield number, cells
    except FileNotFoundError:
        raise InputError(f"{path}: does not exist", remedy="Is it the right folder?") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None


class Pretraining(Dataset):
    """``pretrain/*.mp4`` with the list ``pretrain/train.csv``, a line ``pretrain/NAME.mp4,-1`` a clip.

    Without the list all clips of the folder are taken.
    """

    def items(self, files: Mapping[str, Path], *, split: str | None = None, root: Path | None = None) -> Iterator[Item]:
        """Clips in the order of the list; no references."""
        if split not in (None, "train"):
            return
        for path in self._clips(needed(root, self.card.name)):
            yield Item(name=path.name, split="train", read=partial(read, path, kind=_VIDEO), files=(path,))

    def write_list(self, root: Path) -> Path:
        """Write ``train.csv`` for all clips of the folder, as upstream's script expects it; returns its path."""
        from omlab.files import write_text

        path = self._folder(root) / "train.csv"
        write_text(path, "".join(f"pretrain/{name},-1\n" for name in file_names(self._folder(root), ".mp4")))
        return path

    def _clips(self, root: Path) -> Iterator[Path]:
        folder = self._folder(root)
        if not (folder / "train.csv").is_file():
            yield from (folder / name for name in file_names(folder, ".mp4"))
            return
        for number, (name, label) in lines(folder / "train.csv", 2):
            if label != "-1":
                raise InputError(f"train.csv, line {number}: has the label '{label}', clips of pre-training have -1")
            yield folder / Path(name).name

    @staticmethod
    def _folder(root: Path) -> Path:
        return root / "pretrain" if (root / "pretrain").is_dir() else root


class PolypDiag(Dataset):
    """Videos with the lists ``train.txt`` and ``val.txt``, lines ``path,label``; upstream tests on ``val``."""

    def items(self, files: Mapping[str, Path], *, split: str | None = None, root: Path | None = None) -> Iterator[Item]:
        """Videos in the order of the lists."""
        root = needed(root, self.card.name)
        classes = self.classes()
        for name in ("train", "val"):
            if split not in (None, name):
                continue
            source = next((p for p in (root / f"{name}.txt", root / "splits" / f"{name}.txt") if p.is_file()), None)
            for number, (video, label) in lines(source or root / f"{name}.txt", 2):
                if label not in ("0", "1"):
                    raise InputError(f"{name}.txt, line {number}: '{label}' is neither 0 nor 1")
                path = _video(root, video)
                yield Item(
                    name=Path(video).name, split=name, files=(path,), read=partial(read, path, kind=_VIDEO),
                    reference=partial(one_class, classes, int(label)),
                )  # fmt: skip


def _video(root: Path, name: str) -> Path:
    """A video of a list, whose paths may begin with a folder that is not here."""
    places = [root / name, root / "videos" / Path(name).name, root / Path(name).name]
    return next((path for path in places if path.is_file()), places[0])


class Cvc(Dataset):
    """Frames of CVC-ClinicDB, ``Original/N.tif`` and ``Ground Truth/N.tif``, with the lists ``train.txt`` and
    ``test.txt``: a line ``start, length`` a clip."""

    published_splits = True

    def items(self, files: Mapping[str, Path], *, split: str | None = None, root: Path | None = None) -> Iterator[Item]:
        """Clips in the order of the lists; a clip is called after its first frame."""
        root = needed(root, self.card.name)
        structures = tuple(map(Label.of, self.card.labels))
        known = {Path(name).stem: name for name in file_names(root / "Original", PICTURES)}
        for name in ("train", "test"):
            if split not in (None, name):
                continue
            for number, cells in lines(root / f"{name}.txt", 2):
                if not all(cell.isdigit() for cell in cells) or not int(cells[1]):
                    raise InputError(f"{name}.txt, line {number}: expected 'start, length', two whole numbers")
                start, length = map(int, cells)
                numbers = [str(n) for n in range(start, start + length)]
                images = tuple(root / "Original" / known.get(n, f"{n}.tif") for n in numbers)
                masks = tuple(root / "Ground Truth" / path.name for path in images)
                yield Item(
                    name=f"clip {start}", split=name, files=(*images, *masks), group=f"clip {start}",
                    read=partial(clip, f"clip {start}", images), reference=partial(clip_masks, masks, structures),
                )  # fmt: skip


class Kumc(Dataset):
    """``train``, ``val`` and ``test`` with a folder of frames for each video.

    Boxes are Pascal VOC XML of the frame's name, beside it or in the folder ``Annotation`` that lies like ``Image``.
    """

    def items(self, files: Mapping[str, Path], *, split: str | None = None, root: Path | None = None) -> Iterator[Item]:
        """Videos in order of split and name."""
        root = needed(root, self.card.name)
        parts = {name: folder for folder in folder_names(root) if (name := _part(folder))}
        if not parts:
            raise InputError(f"{root}: holds no folder train, val or test")
        for name in ("train", "val", "test"):
            if name not in parts or split not in (None, name):
                continue
            top = root / parts[name]
            images = top / "Image" if (top / "Image").is_dir() else top
            for video in folder_names(images):
                frames = tuple(images / video / frame for frame in file_names(images / video, PICTURES))
                if not frames:
                    continue
                boxes = images / video if images == top else top / "Annotation" / video
                notes = tuple(path for frame in frames if (path := boxes / f"{frame.stem}.xml").is_file())
                yield Item(
                    name=f"{name}/{video}", split=name, group=video, files=(*frames, *notes),
                    read=partial(clip, video, frames),
                    reference=partial(boxes_of, frames, boxes, self.classes()) if notes else None,
                )  # fmt: skip


def _part(folder: str) -> str:
    return next((name for name in ("train", "val", "test") if folder.lower().startswith(name)), "")


SETS = {
    "endo-fm-pretraining": Pretraining, "polypdiag": PolypDiag, "cvc-12k": Cvc, "kumc-polyps": Kumc,
}  # fmt: skip
