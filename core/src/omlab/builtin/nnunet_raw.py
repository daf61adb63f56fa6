"""nnU-Net's raw layout: ``dataset.json``, ``imagesTr``, ``labelsTr``, ``imagesTs``; versions 1 and 2."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from omlab.cases import read
from omlab.dataset import Dataset, Item, Problem
from omlab.datasets.folders import file_names, label_map, needed
from omlab.errors import InputError, UsageError
from omlab.results import Label
from omlab.results.colours import colour_of
from omlab.vocabulary import InputKind

_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".png", ".tif", ".tiff", ".bmp")
_CHANNEL = re.compile(r"_(\d{4})\Z")
SPLITS_FILE = "splits_final.json"


@attrs.frozen
class Description:
    """What ``dataset.json`` says.

    Attributes
    ----------
    version : 1 (labels by value, lists of cases) or 2 (labels by name).
    channels : their names, in the order of the suffixes ``_0000``, ``_0001`` ...
    labels : value -> name, without the background. A value of several regions carries the names of all.
    regions : name -> values, where a label is a union.
    ending : of files; empty where the file does not say (version 1).
    training : number of training cases that it claims.
    listed : cases of the training list of version 1.
    """

    version: int
    channels: tuple[str, ...]
    labels: Mapping[int, str]
    regions: Mapping[str, tuple[int, ...]]
    ending: str
    training: int | None
    listed: tuple[str, ...]


class NnunetRaw(Dataset):
    """A folder ``DatasetNNN_Name`` or ``TaskNNN_Name``.

    ``train`` is what has a label map in ``labelsTr``; ``test`` is ``imagesTs``, with references where there is a
    ``labelsTs``. The option ``fold`` splits ``train`` by ``splits_final.json``. Of several channels the case is the one
    of the option ``channel``.
    """

    def classes(self, root: Path | None = None) -> tuple[str, ...]:
        """Labels by value, without the background."""
        return tuple(self._described(root).labels.values())

    def items(self, files: Mapping[str, Path], *, split: str | None = None, root: Path | None = None) -> Iterator[Item]:
        """Cases in order of their names, ``train`` first."""
        root = needed(root, self.card.name)
        described = self._described(root)
        structures = tuple(Label(value=v, name=n, colour=colour_of(v)) for v, n in described.labels.items())
        validation = self._validation(root)
        for part, own in (("Tr", "train"), ("Ts", "test")):
            labels = root / f"labels{part}"
            masks = _cases(labels, described.ending) if labels.is_dir() else {}
            images = _images(root / f"images{part}", described.ending)
            for case in sorted(masks if part == "Tr" else images):
                of = "val" if case in validation and own == "train" else own
                if split not in (None, of):
                    continue
                channels = images.get(case, {})
                path = self._channel(root / f"images{part}", case, channels, described)
                mask = labels / masks[case] if case in masks else None
                paths = tuple(root / f"images{part}" / name for name in channels.values()) or (path,)
                kinds = (InputKind.VOLUME, InputKind.IMAGE)
                yield Item(
                    name=case, split=of, files=(*paths, mask) if mask else paths, read=partial(read, path, kind=kinds),
                    reference=partial(label_map, mask, structures) if mask else None,
                )  # fmt: skip

    def problems(self, files: Mapping[str, Path], *, root: Path | None = None) -> Iterator[Problem]:
        """Cases that ``dataset.json`` lists and the folders lack, images without labels, channels that are missing."""
        root = needed(root, self.card.name)
        described = self._described(root)
        masks, images = _cases(root / "labelsTr", described.ending), _images(root / "imagesTr", described.ending)
        for case in described.listed:
            if case not in masks:
                yield Problem(kind="missing", where=f"labelsTr/{case}", what="is listed in dataset.json and not there")
        for case in images:
            if case not in masks:
                yield Problem(kind="reference", where=f"imagesTr/{case}", what="has no label map in labelsTr")
        if described.training is not None and described.training != len(masks):
            yield Problem(
                kind="count", where="dataset.json",
                what=f"says {described.training} training cases, labelsTr has {len(masks)}",
            )  # fmt: skip
        for part, found in (("Tr", images), ("Ts", _images(root / "imagesTs", described.ending))):
            for case, channels in found.items():
                lacking = sorted(set(range(len(described.channels))) - set(channels))
                if lacking and -1 not in channels:
                    names = ", ".join(f"_{n:04d} ({described.channels[n]})" for n in lacking)
                    yield Problem(kind="missing", where=f"images{part}/{case}", what=f"lacks the channels {names}")

    def facts(self, files: Mapping[str, Path], *, root: Path | None = None) -> Mapping[str, Mapping[str, Any]]:
        """Channels and regions of ``dataset.json``."""
        described = self._described(root)
        tables = {"channels": {f"_{n:04d}": name for n, name in enumerate(described.channels)}}
        if described.regions:
            tables["regions"] = {name: ", ".join(map(str, values)) for name, values in described.regions.items()}
        return tables

    def _channel(self, folder: Path, case: str, channels: Mapping[int, str], described: Description) -> Path:
        wanted = int(self.options.get("channel") or 0)
        if described.channels and not 0 <= wanted < len(described.channels):
            names = ", ".join(f"{n} {name}" for n, name in enumerate(described.channels))
            raise UsageError(f"dataset has no channel {wanted}", remedy=f"It has: {names}")
        name = channels.get(wanted, channels.get(-1))
        return folder / (name or f"{case}_{wanted:04d}{described.ending or '.nii.gz'}")

    def _validation(self, root: Path) -> set[str]:
        fold = self.options.get("fold")
        if fold is None:
            return set()
        path = root / SPLITS_FILE
        try:
            folds = json.loads(path.read_text("utf-8"))
            return set(folds[int(fold)]["val"])
        except FileNotFoundError:
            raise InputError(
                f"{path}: does not exist", remedy="Copy it from nnU-Net's folder of preprocessed data"
            ) from None
        except (IndexError, KeyError, TypeError, ValueError, OSError) as error:
            raise InputError(f"{path}: has no fold {fold}: {error}") from None

    def _described(self, root: Path | None) -> Description:
        return describe(needed(root, self.card.name) / "dataset.json")


def describe(path: Path) -> Description:
    """Read ``dataset.json``. Raises :class:`omlab.errors.InputError` for a file that is none."""
    try:
        table = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path}: does not exist", remedy="Name the folder that holds dataset.json and imagesTr"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: is no JSON, line {error.lineno}: {error.msg}") from None
    labels = table.get("labels") if isinstance(table, dict) else None
    if not isinstance(labels, dict):
        raise InputError(f"{path}: has no table 'labels'")
    version = 1 if all(str(key).isdigit() for key in labels) else 2
    named: dict[int, list[str]] = {}
    regions: dict[str, tuple[int, ...]] = {}
    try:
        for key, value in labels.items():
            name, values = (value, [key]) if version == 1 else (key, value if isinstance(value, list) else [value])
            if isinstance(value, list):
                regions[str(name)] = tuple(int(v) for v in values)
            for one in values:
                named.setdefault(int(one), []).append(str(name))
    except (TypeError, ValueError):
        raise InputError(f"{path}: a value of 'labels' is no number") from None
    named.pop(0, None)
    channels = table.get("channel_names") or table.get("modality") or {}
    ordered = sorted(channels.items(), key=lambda pair: int(pair[0])) if isinstance(channels, dict) else []
    listed = [row.get("label", "") for row in table.get("training") or () if isinstance(row, dict)]
    ending = str(table.get("file_ending") or "")
    return Description(
        version=version, channels=tuple(str(name) for _, name in ordered),
        labels={value: " + ".join(names) for value, names in sorted(named.items())}, regions=regions, ending=ending,
        training=table["numTraining"] if isinstance(table.get("numTraining"), int) else None,
        listed=tuple(_strip(Path(label).name, ending) for label in listed if label),
    )  # fmt: skip


def _strip(name: str, ending: str) -> str:
    for known in (ending, *_ENDINGS):
        if known and name.endswith(known):
            return name[: -len(known)]
    return name


def _cases(folder: Path, ending: str) -> dict[str, str]:
    """Case -> file of a folder of label maps."""
    return {_strip(name, ending): name for name in file_names(folder, ending or _ENDINGS)}


def _images(folder: Path, ending: str) -> dict[str, dict[int, str]]:
    """Case -> channel -> file; -1 for a file without a suffix of a channel."""
    found: dict[str, dict[int, str]] = {}
    if not folder.is_dir():
        return found
    for name in file_names(folder, ending or _ENDINGS):
        bare = _strip(name, ending)
        matched = _CHANNEL.search(bare)
        case, channel = (bare[: matched.start()], int(matched[1])) if matched else (bare, -1)
        found.setdefault(case, {})[channel] = name
    return found
