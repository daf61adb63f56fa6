"""omlab: the open platform for medical foundation models.

>>> import omlab
>>> model = omlab.load("deepbet")                     # doctest: +SKIP
>>> segmentation = model("scan.nii.gz")               # doctest: +SKIP
>>> segmentation.measurements["volume_ml"]            # doctest: +SKIP
1545.6

Names are imported when they are first used, so that ``import omlab`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from omlab.adapter import Adapter
    from omlab.adapting import adapt
    from omlab.api import (
        list_adapters,
        list_datasets,
        list_engines,
        list_evaluators,
        list_models,
        load,
        load_dataset,
        pull,
        score,
    )
    from omlab.cases import Case, Image, Message, PatchFeatures, Sequence, Slide, Stack, Text, Video, Volume, find, read
    from omlab.dataset import BoundDataset, Dataset, Item, Problem
    from omlab.errors import OmlabError
    from omlab.evaluating import evaluate
    from omlab.evaluator import Evaluator, Pair
    from omlab.geometry import Geometry, Turn
    from omlab.graphs import Graph, Judge, TensorSpec, Tolerance
    from omlab.hookspecs import hookimpl
    from omlab.loading import LoadedModel
    from omlab.model import Context, Model
    from omlab.progress import CancelToken, Progress
    from omlab.prompts import Prompts
    from omlab.report import Report, Value
    from omlab.results import Classification, Detections, Embedding, Generation, Label, Result, Scores, Segmentation
    from omlab.results.frames import FrameLabels, VideoSegmentation
    from omlab.results.slide_features import SlideFeatures
    from omlab.results.stacks import StackSegmentation
    from omlab.running import Run, run
    from omlab.settings import Settings

#: Public name -> module that defines it.
_PUBLIC = {
    "Adapter": "omlab.adapter",
    "BoundDataset": "omlab.dataset",
    "CancelToken": "omlab.progress",
    "Case": "omlab.cases",
    "Classification": "omlab.results",
    "Context": "omlab.model",
    "Dataset": "omlab.dataset",
    "Detections": "omlab.results",
    "Embedding": "omlab.results",
    "Evaluator": "omlab.evaluator",
    "Generation": "omlab.results",
    "FrameLabels": "omlab.results.frames",
    "Geometry": "omlab.geometry",
    "Graph": "omlab.graphs",
    "Image": "omlab.cases",
    "Item": "omlab.dataset",
    "Judge": "omlab.graphs",
    "Label": "omlab.results",
    "LoadedModel": "omlab.loading",
    "Message": "omlab.cases",
    "Model": "omlab.model",
    "OmlabError": "omlab.errors",
    "Pair": "omlab.evaluator",
    "PatchFeatures": "omlab.cases",
    "Progress": "omlab.progress",
    "Prompts": "omlab.prompts",
    "Problem": "omlab.dataset",
    "Report": "omlab.report",
    "Result": "omlab.results",
    "Run": "omlab.running",
    "Scores": "omlab.results",
    "Segmentation": "omlab.results",
    "Sequence": "omlab.cases",
    "Settings": "omlab.settings",
    "Slide": "omlab.cases",
    "SlideFeatures": "omlab.results.slide_features",
    "Stack": "omlab.cases",
    "StackSegmentation": "omlab.results.stacks",
    "TensorSpec": "omlab.graphs",
    "Text": "omlab.cases",
    "Tolerance": "omlab.graphs",
    "Turn": "omlab.geometry",
    "Value": "omlab.report",
    "Video": "omlab.cases",
    "VideoSegmentation": "omlab.results.frames",
    "Volume": "omlab.cases",
    "adapt": "omlab.adapting",
    "evaluate": "omlab.evaluating",
    "find": "omlab.cases",
    "hookimpl": "omlab.hookspecs",
    "list_adapters": "omlab.api",
    "list_datasets": "omlab.api",
    "list_engines": "omlab.api",
    "list_evaluators": "omlab.api",
    "list_models": "omlab.api",
    "load": "omlab.api",
    "load_dataset": "omlab.api",
    "pull": "omlab.api",
    "read": "omlab.cases",
    "run": "omlab.running",
    "score": "omlab.api",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'omlab' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_PUBLIC))
