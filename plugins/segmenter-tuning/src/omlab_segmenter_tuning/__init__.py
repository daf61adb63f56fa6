"""Fine-tuning of segmenters, an adapter of omlab."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omlab.hookspecs import hookimpl

if TYPE_CHECKING:
    from omlab.adapter import Adapter
    from omlab.cards import AdapterCard


@hookimpl
def omlab_adapter(card: AdapterCard) -> Adapter:
    from omlab_segmenter_tuning.adapter import SegmenterTuning

    return SegmenterTuning(card)
