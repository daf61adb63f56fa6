"""Results: what a model answers, writing and reading them, and telling them in a few words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omlab.results.types import (
    Classification,
    Detections,
    Embedding,
    Generation,
    Label,
    Result,
    Scores,
    Segmentation,
)

if TYPE_CHECKING:
    from omlab.results.frames import FrameLabels, VideoSegmentation
    from omlab.results.reading import read_segmentation
    from omlab.results.slide_features import SlideFeatures
    from omlab.results.stacks import StackSegmentation
    from omlab.results.summary import headline, summarise
    from omlab.results.writing import write

_HOMES = {
    "FrameLabels": "omlab.results.frames",
    "SlideFeatures": "omlab.results.slide_features",
    "StackSegmentation": "omlab.results.stacks",
    "VideoSegmentation": "omlab.results.frames",
    "headline": "omlab.results.summary",
    "read_segmentation": "omlab.results.reading",
    "summarise": "omlab.results.summary",
    "write": "omlab.results.writing",
}

__all__ = [
    "Classification",
    "Detections",
    "Embedding",
    "FrameLabels",
    "Generation",
    "Label",
    "Result",
    "Scores",
    "Segmentation",
    "SlideFeatures",
    "StackSegmentation",
    "VideoSegmentation",
    "headline",
    "read_segmentation",
    "summarise",
    "write",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
