"""Heads from files: which network a state dict is of, by its entries alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omlab.cards import Asset
from omlab.errors import WeightsError
from omlab_clam.network import LEFT_OVER, ClamMB, ClamSB, MaxMIL, MaxMILMany, MeanMIL
from omlab_sdk.checkpoints import entries_of, load_into, read_checkpoint

if TYPE_CHECKING:
    from torch import Tensor, nn

    State = dict[str, Tensor]

CONTAINERS = ("state_dict", "model")


def read(path: Path, asset: Asset | None = None) -> State:
    """The state dict without what evaluation has no use for.

    Raises
    ------
    omlab.errors.WeightsError
        The file is missing or damaged.
    """
    key = asset.key if asset else ""
    if not key:
        top = entries_of(path)
        key = next((name for name in CONTAINERS if name in top and not hasattr(top[name], "dtype")), "")
    state = read_checkpoint(path, key=key)
    return _older({
        name.replace(".module.", ".") if ".module.attention" in name else name.removeprefix("module."): tensor
        for name, tensor in state.items()
        if not any(part in name for part in LEFT_OVER)
    })  # fmt: skip


def _older(state: State) -> State:
    """Heads of pooling as newer CLAM names them, by the names of those that come with BROW."""
    if "fc.0.weight" not in state:
        return state
    if "classifier.weight" in state:  # two classes
        names = {"fc.0": "classifier.0", "classifier": "classifier.3"}
        return {f"{names[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": t for name, t in state.items()}
    if "classifiers.weight" in state:  # one layer in place of one a class
        found = {name: tensor for name, tensor in state.items() if not name.startswith("classifiers.")}
        for number in range(len(state["classifiers.weight"])):
            for what in ("weight", "bias"):
                found[f"classifiers.{number}.{what}"] = state[f"classifiers.{what}"][number : number + 1]
        return found
    return state


def network_of(state: Mapping[str, Tensor], path: Path) -> nn.Module:
    """The network that the entries describe, without their values.

    Raises
    ------
    omlab.errors.WeightsError
        They are of no slide classifier.
    """
    try:
        if "attention_net.0.weight" in state:
            return _clam(state)
        if "embedding.0.weight" in state:
            return MeanMIL(n_classes=len(state["classifier.weight"]), **_first(state, "embedding"))
        if "classifier.0.weight" in state:
            last = "classifier.3.weight" if "classifier.3.weight" in state else "classifier.2.weight"
            return MaxMIL(
                n_classes=len(state[last]), dropout="classifier.3.weight" in state, **_first(state, "classifier")
            )
        if "fc.0.weight" in state:
            classes = len({name.split(".")[1] for name in state if name.startswith("classifiers.")})
            return MaxMILMany(n_classes=classes, **_first(state, "fc"))
    except (KeyError, ValueError, IndexError) as error:
        raise WeightsError(f"{path}: is no whole slide classifier: {error}", remedy="Fetch it again") from None
    first = next(iter(state), "nothing")
    raise WeightsError(
        f"{path}: is no slide classifier, its first entry is '{first}'", remedy="Is it the file of another model?"
    )


def _first(state: Mapping[str, Tensor], name: str) -> dict[str, int]:
    hidden, features = state[f"{name}.0.weight"].shape
    return {"features": int(features), "hidden": int(hidden)}


def _clam(state: Mapping[str, Tensor]) -> nn.Module:
    hidden, features = (int(n) for n in state["attention_net.0.weight"].shape)
    place = {int(m.group(1)) for name in state if (m := re.match(r"attention_net\.(\d)\.(?:attention|module)", name))}
    dropout = place == {3}
    gate = any("attention_a" in name for name in state)
    first = f"attention_net.{max(place)}." + ("attention_a.0.weight" if gate else "module.0.weight")
    many = "classifiers.weight" not in state
    classes = (
        len({name.split(".")[1] for name in state if name.startswith("classifiers.")})
        if many
        else len(state["classifiers.weight"])
    )
    arguments: dict[str, Any] = {
        "size": (features, hidden, len(state[first])), "gate": gate, "dropout": dropout, "n_classes": classes,
    }  # fmt: skip
    return ClamMB(**arguments) if many else ClamSB(**arguments)


def head(path: Path, asset: Asset | None = None) -> nn.Module:
    """The slide classifier of a file, in eval mode. Raises :class:`omlab.errors.WeightsError`."""
    state = read(path, asset)
    network = network_of(state, path)
    load_into(network, state, name=str(path), allow_missing=(r"instance_loss_fn\..*",))
    return network.eval()
