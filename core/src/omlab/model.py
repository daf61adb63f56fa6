"""What a plugin implements to contribute a model."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from omlab.cards import ModelCard, Variant
from omlab.errors import Cancelled, OmlabError, UsageError
from omlab.graphs import Graph
from omlab.progress import CancelToken, Listener, Progress, silent

if TYPE_CHECKING:
    import numpy as np
    import torch

    from omlab.cases import Case
    from omlab.engines.base import Engine
    from omlab.prompts import Prompts
    from omlab.results import Result


@attrs.define
class Context:
    """What a model is given to predict with.

    Attributes
    ----------
    variant : the chosen variant of the card.
    engines : graph name -> engine; building or loading happens when a name is first asked for.
    options : option name (with underscores) -> value, defaults of the card filled in.
    prompts : what is asked of this case, coordinates on its grid and masks read; ``None`` if nothing is.
    what : name of the case, for progress.
    listener, cancel : where progress goes, and how the run is stopped.
    files : asset id -> path of the variant's files, fetched when the first is asked for; for what is no network, say
        the vocabulary of a language model.
    stages : stage -> {"seconds": ..., "peak_mb": ...}, filled by :meth:`stage`.
    scratch : folder of this case for what is too large for memory, on the disk of its result, and kept if the run is
        cut off; ``None`` where the result is not written: take a temporary one.
    """

    variant: Variant
    engines: Mapping[str, Engine]
    options: Mapping[str, Any] = attrs.field(factory=dict)
    prompts: Prompts | None = None
    what: str = ""
    listener: Listener = silent
    cancel: CancelToken = attrs.field(factory=CancelToken)
    files: Mapping[str, Path] = attrs.field(factory=dict)
    stages: dict[str, dict[str, float]] = attrs.field(factory=dict)
    scratch: Path | None = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage: ``read``, ``prepare``, ``network``, ``restore`` or ``write``. Repeated stages add up."""
        from omlab.memory import peak_mb

        self.cancel.check()
        self.listener(Progress(self.what, name))
        start = time.perf_counter()
        try:
            yield
        finally:
            row = self.stages.setdefault(name, {"seconds": 0.0, "peak_mb": 0.0})
            row["seconds"] += time.perf_counter() - start
            row["peak_mb"] = max(row["peak_mb"], peak_mb())

    def share_out(self, seconds: float, *, out: str = "restore", to: str = "network") -> None:
        """Tell ``seconds`` of the stage ``out`` as of ``to``: where windows run while the rest is stitched, say."""
        given = self.stages[out]
        given["seconds"] -= seconds
        taken = self.stages.setdefault(to, {"seconds": 0.0, "peak_mb": 0.0})
        taken["seconds"] += seconds
        taken["peak_mb"] = max(taken["peak_mb"], given["peak_mb"])

    def progress(self, stage: str, done: float, total: float | None = None, unit: str = "") -> None:
        """Tell how far a stage is, and stop here if the run was cancelled."""
        self.cancel.check()
        self.listener(Progress(self.what, stage, done, total, unit))


class Session(Protocol):
    """A case that a promptable model has looked at: it answers prompts without looking again."""

    def answer(self, context: Context) -> Result:
        """Answer ``context.prompts`` with ``context.options``, on the case's own grid."""


class Model:
    """Base of every contributed model: pure graphs with a NumPy pipeline around them.

    Importing the module of a model must not import torch; only :meth:`network` may.
    """

    #: The model directory that a packaged model is of.
    directory: Path | None = None

    def __init__(self, card: ModelCard) -> None:
        self.card = card

    def graphs(self, variant: Variant) -> tuple[Graph, ...]:
        """The graphs of ``variant``, declared."""
        raise TypeError(f"{type(self).__name__} must define graphs()")

    def network(self, graph: Graph, variant: Variant, files: Mapping[str, Path]) -> torch.nn.Module:
        """The torch module of ``graph`` in eval mode with the weights of ``variant`` loaded.

        Called once, when an engine is made; the only place where torch is needed. The module's ``forward`` takes
        the graph's inputs in order and returns its outputs in order (one tensor, or a tuple).

        Parameters
        ----------
        files : asset id -> path of the fetched file.
        """
        raise TypeError(f"{type(self).__name__} must define network()")

    def untrained(self, graph: Graph, variant: Variant) -> torch.nn.Module:
        """Like :meth:`network`, as constructed and without any file: what checks run where weights are not at hand.

        Optional; the default says that the model cannot do it.
        """
        raise TypeError(f"{type(self).__name__} does not define untrained()")

    def small(self, variant: Variant) -> Variant:
        """``variant`` with another ``config``, of which :meth:`graphs`, :meth:`untrained`, :meth:`examples` and
        :meth:`predict` give the same code with so few and narrow layers that it runs in a second.

        Optional; the default is the variant as it is. ``omlab check`` proves a network in its small size, and in the
        published one if asked to. Called with a variant without weights.
        """
        return variant

    def examples(self, graph: Graph, variant: Variant) -> Iterator[dict[str, np.ndarray]]:
        """Inputs on which engines are compared with the reference, and timed.

        The default draws one set of standard normal numbers of the usual shape; a model whose network only means
        something on realistic input overrides it. Must be deterministic.
        """
        import numpy as np

        generator = np.random.default_rng(0)
        yield {
            spec.name: generator.standard_normal(spec.concrete()).astype(spec.dtype)
            if np.dtype(spec.dtype).kind == "f"
            else np.zeros(spec.concrete(), spec.dtype)
            for spec in graph.inputs
        }

    def graph_owner(self, variant: Variant) -> tuple[Model, Variant]:
        """Whose graphs :meth:`graphs` returns: the model itself, or the base of an adapted model that left the
        network as it was and so shares its engines."""
        return self, variant

    def own_weights(self, variant: Variant) -> dict[str, Path]:
        """Files beside the variant's assets that the graphs depend on: id -> path; adapted networks have some."""
        return {}

    def asset_owner(self, variant: Variant) -> tuple[ModelCard, Variant]:
        """Whose assets :meth:`network` is given: those of the owner of the graphs, or of the base of an adapted model
        that changes a part of the network and needs the rest."""
        owner, owner_variant = self.graph_owner(variant)
        return owner.card, owner_variant

    def base_weights(self, variant: Variant) -> dict[str, Path]:
        """Files of the base of an adapted network, as the base itself calls them, where the graphs depend on them;
        :meth:`network` is given them with ``base-`` before their names."""
        return {}

    def augment(self, case: Case, generator: np.random.Generator) -> Case:
        """The case as it might have been taken another time, drawn with ``generator``: what training sees of it.

        Optional, for models whose training needs more than shifts and changes of intensity of the prepared tensor. It
        is called for every case in every epoch.
        """
        return case

    def exports(self, variant: Variant) -> tuple[Graph, ...]:
        """The graphs that ``omlab export`` writes; an adapted model may join its head to the base's network."""
        return self.graphs(variant)

    def validate(self, options: Mapping[str, Any], prompts: Prompts | None) -> None:
        """Raise :class:`omlab.errors.UsageError` for options and prompts that fit no case, before any case is read.

        Optional; the default accepts all that the card allows.
        """

    def open(self, case: Case, context: Context) -> Session:
        """Look at a case once, to answer many prompts. Optional: for promptable models."""
        raise UsageError(
            f"'{self.card.name}' has no sessions: each of its answers takes the whole run", remedy="Call the model"
        )

    def stream(self, case: Case, context: Context) -> Generator[str, None, Result]:
        """Like :meth:`predict` for a language model: yields its answer piece by piece while it writes, and returns the
        whole. The end of an answer is not yielded before it is certain that it belongs to it.

        Optional; the default says that the model does not write.
        """
        raise UsageError(f"model '{self.card.name}' does not write text", remedy="omlab list models --task generation")

    def predict(self, case: Case, context: Context) -> Result:
        """Answer for one case, on the case's own grid."""
        raise TypeError(f"{type(self).__name__} must define predict()")

    def together(self, options: Mapping[str, Any]) -> int:
        """How many cases of a run go to :meth:`predict_many` at once; 1, the default: each to :meth:`predict`.

        For models of small cases whose network reads its weights once for several, as language models do.
        """
        return 1

    def predict_many(self, cases: Sequence[Case], context: Context) -> list[Result | OmlabError]:
        """Answers for several cases, in order; for one that cannot be answered its error, and the others go on.

        The default answers them one by one.
        """
        found: list[Result | OmlabError] = []
        for case in cases:
            try:
                found.append(self.predict(case, context))
            except Cancelled:
                raise
            except OmlabError as error:
                found.append(error)
        return found
