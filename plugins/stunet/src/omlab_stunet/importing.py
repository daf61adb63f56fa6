"""Model folders that nnU-Net left with a trainer of STU-Net, as model directories of omlab.

nnU-Net 1: ``FOLDER/fold_0/NAME.model`` with ``NAME.model.pkl``, which holds the plan. nnU-Net 2:
``FOLDER/fold_0/checkpoint_final.pth`` with ``FOLDER/plans.json`` and ``FOLDER/dataset.json``. The plan decides what a
scan goes through, so it is taken over whole, or the folder is refused: nothing of it is guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from omlab.errors import InputError, UsageError, require
from omlab.inference.preparing import Scheme
from omlab.vocabulary import Modality
from omlab_stunet import checkpoint
from omlab_stunet.plain_pickle import read_plain

if TYPE_CHECKING:
    from torch import Tensor

    from omlab.cards import ModelCard

#: Adapter that runs the directory, and the name that it knows the network's file by.
ADAPTER, NETWORK = "segmenter-tuning", "network.safetensors"
#: Names of nnU-Net 2 -> scheme.
_SCHEMES = {
    "ZScoreNormalization": Scheme.ZSCORE, "CTNormalization": Scheme.CT, "NoNormalization": Scheme.NONE,
}  # fmt: skip
_STRIDES = 5


@attrs.frozen(eq=False, kw_only=True)
class Found:
    """What is in a model folder.

    Attributes
    ----------
    state : state dict of the network.
    config : of the variant (:class:`omlab_stunet.plan.Plan`).
    structures : value -> name.
    modality : of the one channel.
    trainer : that upstream's file names.
    """

    state: Mapping[str, Tensor]
    config: Mapping[str, Any]
    structures: Mapping[int, str]
    modality: Modality
    trainer: str


def find(folder: Path, *, fold: str = "0", name: str = "", labels: str = "") -> Found:
    """Read a model folder of nnU-Net 1 or 2.

    Parameters
    ----------
    fold : ``"0"`` to ``"4"``, or ``"all"``.
    name : of the checkpoint without its ending; the final one without.
    labels : names of the structures: the path of a ``dataset.json``, or the names in the order of the network's
        outputs, separated by commas, without the background. Without it those of the folder's ``dataset.json``.

    Raises
    ------
    InputError
        The folder is none, or its plan asks for what this plugin does not do.
    omlab.errors.WeightsError
        The checkpoint is damaged, or of another network.
    """
    inner = folder / f"fold_{fold}"
    if not inner.is_dir():
        there = ", ".join(sorted(path.name for path in folder.glob("fold_*"))) or "no folder fold_*"
        raise InputError(f"{folder}: holds no {inner.name}, there is {there}", remedy="Name the folder above fold_0")
    first = name or "model_final_checkpoint"
    if (inner / f"{first}.model").is_file():
        return _first_version(folder, inner / f"{first}.model", labels)
    second = name or "checkpoint_final"
    if (inner / f"{second}.pth").is_file():
        return _second_version(folder, inner / f"{second}.pth", labels)
    there = ", ".join(sorted(path.stem for path in inner.iterdir() if path.suffix in (".model", ".pth"))) or "none"
    raise InputError(
        f"{inner}: holds no {first}.model and no {second}.pth", remedy=f"Checkpoints there: {there}; name one"
    )


def _first_version(folder: Path, path: Path, labels: str) -> Found:
    about = read_plain(path.with_name(f"{path.name}.pkl"))
    plans = about.get("plans")
    if not isinstance(plans, Mapping):
        raise InputError(f"{path.name}.pkl: holds no plan")
    where = f"{path.name}.pkl"
    stages = _entry(plans, "plans_per_stage", where)
    given = about.get("init")
    stage = given[5] if isinstance(given, tuple | list) and len(given) > 5 and given[5] in stages else max(stages)
    plan = stages[stage]
    state, sizes = _network(path)
    properties = (plans.get("dataset_properties") or {}).get("intensityproperties") or {}
    config = {
        "dims": sizes["dims"], "depth": sizes["depth"], "version": 1, "orientation": "",
        "spacing_mm": _floats(_entry(plan, "current_spacing", where)),
        "patch": _whole(_entry(plan, "patch_size", where)),
        "strides": _strides([_whole(row) for row in _entry(plan, "pool_op_kernel_sizes", where)]),
        "transpose": _whole(plans.get("transpose_forward", (0, 1, 2))),
        "scheme": Scheme.of(str(_entry(plans, "normalization_schemes", where)[0])).value,
        "use_mask": bool((plans.get("use_mask_for_norm") or {}).get(0, False)),
        "intensities": _intensities(properties.get(0) or {}, "sd"),
        "largest": _largest(folder / "postprocessing.json"),
    }  # fmt: skip
    if plans.get("segmentation_export_params"):
        raise InputError(f"{where}: its plan has an export of its own, which is not supported")
    modality = str((plans.get("modalities") or {}).get(0, ""))
    trainer = str(about.get("name", ""))
    return _whole_of(state, config, sizes, _names(labels, sizes["num_classes"]), modality, trainer, where)


def _second_version(folder: Path, path: Path, labels: str) -> Found:
    from omlab_sdk.checkpoints import read_content

    about = read_content(path)
    plans, where = _json(folder / "plans.json"), "plans.json"
    given = about.get("init_args")
    chosen = given.get("configuration", "3d_fullres") if isinstance(given, Mapping) else "3d_fullres"
    plan = _configuration(_entry(plans, "configurations", where), str(chosen), where)
    scheme = str(_entry(plan, "normalization_schemes", where)[0])
    if scheme not in _SCHEMES:
        raise InputError(f"{where}: normalises by '{scheme}', supported are {', '.join(_SCHEMES)}")
    state, sizes = _network(path)
    properties = plans.get("foreground_intensity_properties_per_channel") or {}
    mirror = about.get("inference_allowed_mirroring_axes", (0, 1, 2))
    config = {
        "dims": sizes["dims"], "depth": sizes["depth"], "version": 2, "orientation": "",
        "spacing_mm": _floats(_entry(plan, "spacing", where)), "patch": _whole(_entry(plan, "patch_size", where)),
        "strides": _strides([_whole(row) for row in _entry(plan, "pool_op_kernel_sizes", where)[1:]]),
        "transpose": _whole(plans.get("transpose_forward", (0, 1, 2))), "mirror": _whole(mirror or ()),
        "scheme": _SCHEMES[scheme].value, "use_mask": bool((plan.get("use_mask_for_norm") or [False])[0]),
        "intensities": _intensities(properties.get("0") or {}, "std"),
    }  # fmt: skip
    own = folder / "dataset.json"
    labels = labels or (str(own) if own.is_file() else "")
    channels = _json(own).get("channel_names", {}) if own.is_file() else {}
    names, trainer = _names(labels, sizes["num_classes"]), str(about.get("trainer_name", ""))
    return _whole_of(state, config, sizes, names, str(channels.get("0", "")), trainer, where)


def _whole_of(
    state: Mapping[str, Tensor], config: dict[str, Any], sizes: Mapping[str, Any], names: Mapping[int, str],
    channel: str, trainer: str, where: str,
) -> Found:  # fmt: skip
    if sizes["input_channels"] != 1:
        raise InputError(
            f"the network takes {sizes['input_channels']} channels; a case of omlab has one",
            remedy="Run it with nnU-Net, or train one of a single channel",
        )
    if config["scheme"] in (Scheme.CT, Scheme.CT2) and not config["intensities"]:
        raise InputError(f"{where}: normalises by '{config['scheme']}' and has no intensity properties")
    lengths = {key: len(config[key]) for key in ("spacing_mm", "patch", "transpose")}
    if set(lengths.values()) != {3}:
        raise InputError(f"{where}: is a plan of {lengths['patch']} axes, 3 are needed")
    multiple = [prod(stride[axis] for stride in config["strides"]) for axis in range(3)]
    if any(side % number for side, number in zip(config["patch"], multiple, strict=True)):
        raise InputError(f"{where}: its patch {config['patch']} is not divisible by its strides, {multiple} in all")
    return Found(state=state, config=config, structures=names, modality=_modality(channel), trainer=trainer)


def write(found: Found, card: ModelCard, folder: Path, *, licence: str = "LicenseRef-not-stated") -> Path:
    """Leave a model directory; returns ``folder``.

    Parameters
    ----------
    card : of the model ``stunet``.
    licence : SPDX id of the weights' licence.

    Raises
    ------
    UsageError
        The folder is there already and not empty.
    """
    import tomli_w
    from safetensors.torch import save_file

    from omlab import manifest
    from omlab.cards import ModelCard, as_table, from_table
    from omlab.files import whole, write_text

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not empty", remedy="Name another folder with -o")
    names = list(found.structures.values())
    shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    labels = [{"value": value, "name": name} for value, name in found.structures.items()]
    table = as_table(card)
    for field in ("plugin", "version", "reported", "labels"):
        table.pop(field, None)
    table |= {
        "name": re.sub(r"[^a-z0-9_.-]", "-", folder.name.lower()).strip("-_.") or "imported",
        "title": f"STU-Net, imported{f' ({found.trainer})' if found.trainer else ''}",
        "summary": f"Segments {shown}",
        "intended_use": "Research. What it was trained for, its trainer knows.",
        "limits": "Imported from a model folder of nnU-Net, which says nothing of its data. A scan is taken in the "
        "axes of its file, as nnU-Net does: files must be stored as those that it was trained with. Of several folds "
        "this is one. Not a medical device.",
        "modality": [found.modality.value], "labels": labels,
        "licence_weights": {"spdx": licence, "note": "As whoever imported them said."},
        "variants": [{"name": "imported", "config": dict(found.config), "labels": labels}],
    }  # fmt: skip
    from_table(ModelCard, table)
    adapted = {"adapter": ADAPTER, "model": card.name, "variant": "small-scratch"}
    with whole(folder / NETWORK) as temporary:
        save_file({key: value.contiguous().clone() for key, value in found.state.items()}, temporary)
    tables = {"api": manifest.API, "model": [table], "adapted": adapted}
    write_text(folder / manifest.NAME, tomli_w.dumps(tables))
    return folder


def _network(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    state = checkpoint.read(path)
    return state, checkpoint.sizes(state)


def _names(labels: str, classes: int) -> dict[int, str]:
    """Structures by value, of a ``dataset.json`` of nnU-Net 1 (number -> name) or 2 (name -> number), or of names."""
    if not labels:
        return {value: f"label_{value}" for value in range(1, classes)}
    if "," in labels and not Path(labels).is_file():
        found = {value: name.strip() for value, name in enumerate(labels.split(","), start=1)}
    else:
        found = _names_of(Path(labels))
    if sorted(found) != list(range(1, classes)) or not all(found.values()):
        given = ", ".join(f"{value} {name}" for value, name in sorted(found.items())[:6])
        raise InputError(
            f"{len(found)} structures are named ({given}), the network gives the labels 1 to {classes - 1}",
            remedy="Give the dataset.json that it was trained with, or a name for each, with --labels",
        )
    return dict(sorted(found.items()))


def _names_of(path: Path) -> dict[int, str]:
    rows = _entry(_json(path), "labels", path.name)
    found: dict[int, str] = {}
    for key, value in rows.items() if isinstance(rows, Mapping) else ():
        if isinstance(value, list):
            raise InputError(f"{path}: '{key}' is a region of several labels, which is not supported")
        number, name = (key, value) if str(key).isdigit() else (value, key)
        if int(number):
            found[int(number)] = str(name)
    return found


def _modality(channel: str) -> Modality:
    word = channel.lower()
    if word == "ct":
        return Modality.CT
    mr = word.startswith(("mr", "t1", "t2", "flair", "adc", "dwi"))
    return Modality.MR if mr else Modality.PET if word.startswith("pet") else Modality.ANY


def _configuration(plans: Mapping[str, Any], name: str, where: str) -> Mapping[str, Any]:
    """A configuration with what it inherits."""
    own = _entry(plans, name, where)
    parent = own.get("inherits_from")
    return own if parent is None else {**_configuration(plans, str(parent), where), **own}


def _largest(path: Path) -> list[list[int]]:
    """Groups of which the largest component stays, of nnU-Net 1's ``postprocessing.json``."""
    if not path.is_file():
        return []
    rules = _json(path)
    if any((rules.get("min_valid_object_sizes") or {}).values()):
        raise InputError(f"{path}: keeps components by least volumes, which is not supported")
    return [list(map(int, group)) if isinstance(group, list) else [int(group)] for group in
            rules.get("for_which_classes") or ()]  # fmt: skip


def _intensities(properties: Mapping[str, Any], deviation: str) -> dict[str, float]:
    keys = ("percentile_00_5", "percentile_99_5", "mean", deviation)
    return {key: float(properties[key]) for key in keys if key in properties}


def _strides(rows: list[list[int]]) -> list[list[int]]:
    """Cut to five, or filled up, as upstream's trainers do."""
    return (rows + [[1, 1, 1]] * _STRIDES)[:_STRIDES]


def _whole(values: Sequence[Any]) -> list[int]:
    return [int(value) for value in values]


def _floats(values: Sequence[Any]) -> list[float]:
    return [float(value) for value in values]


def _entry(table: Any, key: Any, where: str) -> Any:
    if not isinstance(table, Mapping) or key not in table:
        raise InputError(f"{where}: has no entry '{key}'", remedy="Is it of nnU-Net?")
    return table[key]


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: holds no JSON object")
    return found


def import_folder(
    folder: Path, out: Path, card: ModelCard, *, fold: str = "0", name: str = "", labels: str = "",
    licence: str = "LicenseRef-not-stated",
) -> Found:  # fmt: skip
    """:func:`find` and :func:`write`."""
    require("torch", needed_for="importing weights", install="omlab-stunet[convert]")
    found = find(folder, fold=fold, name=name, labels=labels)
    write(found, card, out, licence=licence)
    return found
