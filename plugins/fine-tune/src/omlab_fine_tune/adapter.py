"""Every weight learns; the whole network is kept."""

from __future__ import annotations

from omlab_sdk.adapting.trained import TrainedAdapter


class FineTune(TrainedAdapter):
    """The adapter ``fine-tune``: RETFound's recipe.

    AdamW with layer-wise decay of the learning rate, warm-up and cosine, label smoothing, a head that begins almost at
    zero. The model directory holds the whole network and needs no weights of the base.
    """

    needs_base_weights = False
