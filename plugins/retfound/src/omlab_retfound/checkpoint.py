"""Published files into the networks: containers, renames, and which entries may be missing or left over."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from omlab.cards import Asset
from omlab.errors import WeightsError
from omlab_retfound.network import LARGE, VisionTransformer
from omlab_retfound.tables import interpolate
from omlab_sdk.checkpoints import Rule, load_into, read_checkpoint

if TYPE_CHECKING:
    from torch import Tensor

#: In this order; the last two only matter for networks with SwiGLU.
DINOV2_RULES: tuple[Rule, ...] = (("backbone.", ""), ("mlp.w12.", "mlp.fc1."), ("mlp.w3.", "mlp.fc2."))
#: What pre-training leaves in a file and an encoder has no use for.
LEFT_OVER = (r"decoder_.*", r"mask_token", r"dino_head\..*", r"ibot_head\..*", r"head\..*")


def read(path: Path, asset: Asset) -> dict[str, Tensor]:
    """The state dict of a published file, whichever of upstream's containers it is in."""
    return read_checkpoint(path, key=asset.key, rules=DINOV2_RULES if asset.prefix else ())


def encoder(path: Path, asset: Asset, family: str, *, size: int = 224) -> VisionTransformer:
    """A pre-trained encoder without a head.

    The MAE encoder pools globally with an ``fc_norm`` that no file holds: weight 1 and bias 0, so the feature is the
    plainly normalised mean of the patch tokens before the encoder's own ``norm``, which is left out.
    """
    state = read(path, asset)
    dinov2 = family == "dinov2"
    network = VisionTransformer(
        img_size=size, patch_size=14 if dinov2 else 16, num_classes=0, global_pool=not dinov2,
        init_values=1.0 if dinov2 else None, **LARGE,
    )  # fmt: skip
    _fit_positions(state, network)
    ignore = LEFT_OVER if dinov2 else (*LEFT_OVER, r"norm\..*")
    load_into(network, state, name=str(path), ignore=ignore, allow_missing=() if dinov2 else (r"fc_norm\..*",))
    return network.eval()


def classifier(path: Path, asset: Asset, *, double_norm: bool, size: int = 224) -> VisionTransformer:
    """A fine-tuned classifier; the number of classes and the pooling are those of the file.

    Raises
    ------
    omlab.errors.WeightsError
        The file holds no classifier (a pre-trained file has no head).
    """
    state = read(path, asset)
    if "head.weight" not in state:
        raise WeightsError(
            f"{path}: holds no classifier, 'head.weight' is missing",
            remedy="It may be a pre-trained file: use an embedding variant, say --variant cfp",
        )
    pooled = "fc_norm.weight" in state
    network = VisionTransformer(
        img_size=size, num_classes=state["head.weight"].shape[0], global_pool=pooled,
        double_norm=double_norm and pooled, **LARGE,
    )  # fmt: skip
    _fit_positions(state, network)
    load_into(network, state, name=str(path), ignore=LEFT_OVER[:2])
    return network.eval()


def _fit_positions(state: dict[str, Tensor], network: VisionTransformer) -> None:
    """Bring the position table to the network's grid."""
    if (
        "pos_embed" in state
        and state["pos_embed"].ndim == 3
        and state["pos_embed"].shape[2] == network.pos_embed.shape[2]
    ):
        extra = network.pos_embed.shape[1] - network.patch_embed.num_patches
        state["pos_embed"] = interpolate(state["pos_embed"], network.patch_embed.num_patches, extra)
