"""Published files into the networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omlab.cards import Asset
from omlab.errors import WeightsError
from omlab_prime.network import Legacy, Prime
from omlab_sdk.checkpoints import load_into, read_checkpoint

#: What libraries add to a file beside what the network has: ids of positions, a contact head, a decoder that is tied.
_LEFT_OVER = (r".*position_ids", r".*contact_head\..*", r"lm_head\.decoder\.(weight|bias)")


def load(path: Path, asset: Asset, generation: str, **size: Any) -> Prime | Legacy:
    """The network of a file of generation ``"c"`` or ``"b"``, in eval mode.

    Parameters
    ----------
    size : sizes of the encoder where they are not the published ones.

    Raises
    ------
    omlab.errors.WeightsError
        The file does not fit.
    """
    from omlab_prime.network import BASE

    state = read_checkpoint(path, key=asset.key, prefix=asset.prefix)
    if generation == "c":
        current = Prime(**(BASE | size))
        load_into(current, state, name=str(path), ignore=_LEFT_OVER, allow_missing=(r".*inv_freq",))
        return current.eval()
    heads = {name.partition(".")[0] for name in state} & {"lm_head", "regression"}
    if len(heads) != 1:
        raise WeightsError(
            f"{path}: has {' and '.join(sorted(heads)) or 'no head'}, a legacy file has lm_head or regression",
            remedy="Is it a file of generation C? Use --variant 690m",
        )
    legacy = Legacy(regression="regression" in heads, **(BASE | size))
    load_into(legacy, state, name=str(path), ignore=_LEFT_OVER[:2], allow_missing=(r".*inv_freq",))
    return legacy.eval()
