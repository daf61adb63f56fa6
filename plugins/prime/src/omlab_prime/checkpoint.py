"""Published files into the networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omlab.cards import Asset
from omlab.errors import WeightsError
from omlab_prime.network import Legacy, Prime
from omlab_sdk.checkpoints import load_into, read_checkpoint

#: Entries of the heads of generation C.
_RESIDUES, _TEMPERATURE = (r"lm_head\..*",), (r"sequence_pooling\..*", r"value_projection\..*")
#: What libraries add to a file beside what the network has: ids of positions, a contact head, a decoder that is tied.
_LEFT_OVER = (r".*position_ids", r".*contact_head\..*", r"lm_head\.decoder\.(weight|bias)")


def load(
    path: Path, asset: Asset, generation: str, *, residues: bool = True, temperature: bool = True, **size: Any
) -> Prime | Legacy:
    """The network of a file of generation ``"c"`` or ``"b"``, in eval mode.

    Parameters
    ----------
    residues, temperature : the heads of generation C that are wanted; of a file of one head alone the structure head
        may be missing, and another head is left out.
    size : sizes of the encoder where they are not the published ones.

    Raises
    ------
    omlab.errors.WeightsError
        The file does not fit.
    """
    from omlab_prime.network import BASE

    state = read_checkpoint(path, key=asset.key, prefix=asset.prefix)
    if generation == "c":
        structure = (residues and temperature) or any(name.startswith("structure_head.") for name in state)
        heads = {"residues": residues, "temperature": temperature, "structure_vocab_size": 100 if structure else 0}
        current = Prime(**(BASE | size | heads))
        unused = (*(() if residues else _RESIDUES), *(() if temperature else _TEMPERATURE))
        load_into(current, state, name=str(path), ignore=(*_LEFT_OVER, *unused), allow_missing=(r".*inv_freq",))
        return current.eval()
    found = {name.partition(".")[0] for name in state} & {"lm_head", "regression"}
    if len(found) != 1:
        raise WeightsError(
            f"{path}: has {' and '.join(sorted(found)) or 'no head'}, a legacy file has lm_head or regression",
            remedy="Is it a file of generation C? Use --variant 690m",
        )
    legacy = Legacy(regression="regression" in found, **(BASE | size))
    load_into(legacy, state, name=str(path), ignore=_LEFT_OVER[:2], allow_missing=(r".*inv_freq",))
    return legacy.eval()
