"""Upstream's configuration files: INI text with the sections ``data``, ``vit`` and ``weight``.

Values are read as literals (numbers, lists, ``True`` and ``False``) where they are one, else as text; nothing is
executed. Relative paths begin at the folder that upstream's scripts are started from.
"""

from __future__ import annotations

import ast
import configparser
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from omlab.errors import InputError, UsageError

SCALES = ("feature0", "feature1", "feature2")
#: Section -> the keys that it may have.
KNOWN: Mapping[str, tuple[str, ...]] = {
    "data": (
        "support_image_ls", "support_label_ls", "query_image_ls", "query_label_ls", "gt_slice_threshold", "fg_class",
        "bbox_mode", "slice_interval", "feature_scale_ls", "seg_save_path", "seg_png_save_path",
    ),
    "vit": ("net_type",),
    "weight": ("medlam_load_path", "vit_load_path"),
}  # fmt: skip
#: Those of ``data`` that it must have.
NEEDED = ("support_image_ls", "support_label_ls", "query_image_ls", "fg_class", "bbox_mode")
#: Upstream's word -> the adapter's.
MODES = {"WPL": "whole", "SPL": "parts"}
_SCALE_KEY = "feature_scale_ls"
#: How files of the original Segment Anything are called; others are taken as MedSAM's.
_SAM = "sam_vit"


@attrs.frozen(kw_only=True)
class Configuration:
    """What a file says, checked; paths are not looked up yet.

    Attributes
    ----------
    supports, queries : (scans, label maps): the files that list their paths; no label maps of queries is ``None``.
    classes : values of the organs in the label maps.
    mode : ``"whole"`` or ``"parts"``.
    interval : of the parts, in slices of 3 mm; ``None`` where organs are not cut.
    scales : features that places are refined with.
    medlam, sam : files of weights; ``None`` where they are not told.
    out : folder of the results; ``None`` where it is not told.
    """

    supports: tuple[str, str]
    queries: tuple[str, str | None]
    classes: tuple[int, ...]
    mode: str
    interval: int | None
    scales: tuple[str, ...]
    medlam: str | None = None
    sam: str | None = None
    out: str | None = None

    @property
    def variant(self) -> str:
        """Variant of the model ``medlam`` that has the weights: ``"sam"`` by the file's name, else ``"medsam"``."""
        return "sam" if self.sam and Path(self.sam).name.startswith(_SAM) else "medsam"

    def options(self) -> dict[str, Any]:
        """Options of the adapter ``medlsam``."""
        found: dict[str, Any] = {"mode": self.mode, "scales": ",".join(self.scales) or "none"}
        return found if self.interval is None else found | {"interval": self.interval}


def read(path: Path) -> Configuration:
    """A configuration.

    Raises
    ------
    omlab.errors.InputError
        The file is missing or no INI text.
    omlab.errors.UsageError
        A section or key is unknown or missing, or a value is not what its key takes.
    """
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(path.read_text("utf-8"), str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (configparser.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is no INI text: {' '.join(str(error).split())}") from None
    values = {section: {key: _value(text) for key, text in parser[section].items()} for section in parser.sections()}
    _check_names(path, values)
    data, weight = values["data"], values.get("weight", {})
    net = values.get("vit", {}).get("net_type", "vit_b")
    if net != "vit_b":
        raise UsageError(f"{path}: net_type is '{net}', MedLSAM comes with vit_b only")
    words = {**data, **weight}
    text = {key: _text(path, key, words[key]) for key in words if key.endswith(("_ls", "_path")) and key != _SCALE_KEY}
    mode = _mode(path, data["bbox_mode"])
    _threshold(path, data.get("gt_slice_threshold", 0))
    return Configuration(
        supports=(text["support_image_ls"], text["support_label_ls"]),
        queries=(text["query_image_ls"], text.get("query_label_ls")),
        classes=_classes(path, data["fg_class"]),
        mode=mode,
        interval=_interval(path, data.get("slice_interval")) if mode == "parts" else None,
        scales=_scales(path, data.get(_SCALE_KEY, list(SCALES))),
        medlam=text.get("medlam_load_path"), sam=text.get("vit_load_path"), out=text.get("seg_save_path"),
    )  # fmt: skip


def paths(root: Path, listed: str) -> list[Path]:
    """The paths of a list file, one a line; relative ones begin at ``root``.

    Raises
    ------
    omlab.errors.InputError
        The list is missing or empty.
    """
    file = root / listed
    try:
        lines = [line.strip() for line in file.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{file}: cannot be read: {getattr(error, 'strerror', error)}",
            remedy="Paths of a configuration begin at the folder that upstream's scripts are started from",
        ) from None
    found = [root / line for line in lines if line]
    if not found:
        raise InputError(f"{file}: lists no file")
    return found


def _value(text: str) -> Any:
    """A literal where it is one, else the text. A list may hold bare words: ``[feature0, feature1]``."""
    text = text.strip()
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        pass
    if text.startswith("[") and text.endswith("]"):
        return [_value(part) for part in text[1:-1].split(",") if part.strip()]
    return text


def _check_names(path: Path, values: Mapping[str, Mapping[str, Any]]) -> None:
    for section, keys in values.items():
        if section not in KNOWN:
            raise UsageError(f"{path}: has the unknown section [{section}]", remedy=f"Sections: {', '.join(KNOWN)}")
        for key in keys:
            if key not in KNOWN[section]:
                raise UsageError(
                    f"{path}: [{section}] has the unknown key '{key}'", remedy=f"Keys: {', '.join(KNOWN[section])}"
                )
    lacking = [key for key in NEEDED if values.get("data", {}).get(key, "") == ""]
    if lacking:
        raise UsageError(f"{path}: [data] lacks {', '.join(lacking)}", remedy="MedLSAM cannot run without")


def _text(path: Path, key: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise UsageError(f"{path}: {key} is {value!r}, a path was expected")
    return value


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _classes(path: Path, value: Any) -> tuple[int, ...]:
    listed = value if isinstance(value, list | tuple) else [value]
    if not listed or not all(_is_whole(one) and one > 0 for one in listed) or len(set(listed)) < len(listed):
        raise UsageError(f"{path}: fg_class is {value!r}, different whole numbers above 0 were expected: [1, 2, 3]")
    return tuple(listed)


def _mode(path: Path, value: Any) -> str:
    if value not in MODES:
        raise UsageError(f"{path}: bbox_mode is {value!r}, {' or '.join(MODES)} was expected")
    return MODES[value]


def _interval(path: Path, value: Any) -> int:
    if not _is_whole(value) or value < 1:
        raise UsageError(f"{path}: slice_interval is {value!r}, SPL needs a whole number of slices, at least 1")
    return int(value)


def _scales(path: Path, value: Any) -> tuple[str, ...]:
    listed = [] if value in ("", None) else list(value) if isinstance(value, list | tuple) else [value]
    unknown = [one for one in listed if one not in SCALES]
    if unknown:
        raise UsageError(f"{path}: feature_scale_ls has {unknown[0]!r}, it may have {', '.join(SCALES)}")
    return tuple(scale for scale in SCALES if scale in listed)


def _threshold(path: Path, value: Any) -> None:
    """It chooses slices by the query's ground truth, which we do not use; a wrong value is told all the same."""
    if not _is_whole(value) or value < 0:
        raise UsageError(f"{path}: gt_slice_threshold is {value!r}, a whole number of pixels was expected")
