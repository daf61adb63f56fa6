"""A model made ready: card, files, engines and pipeline behind one callable."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from omlab.cards import Card, ModelCard, Variant
from omlab.errors import EngineError, InputError, OmlabError, UsageError
from omlab.graphs import Graph
from omlab.model import Context, Model
from omlab.progress import CancelToken, Listener, silent
from omlab.settings import Settings
from omlab.vocabulary import Kind
from omlab.weights import Grant, LazyFiles, digest_of_all, ensure

if TYPE_CHECKING:
    from omlab.cases import Case
    from omlab.engines.base import Engine
    from omlab.plugins import Registry
    from omlab.prompts import Prompts
    from omlab.results import Result
    from omlab.sessions import OpenCase


@attrs.frozen
class EngineChoice:
    """What the user asks of engines."""

    engine: str = "auto"
    precision: str = "auto"
    device: str = "auto"
    threads: int | None = None


class EngineBank(Mapping[str, "Engine"]):
    """Graph name -> engine. An engine is built or loaded when its graph is first asked for, then kept.

    :meth:`warm_up` loads them on a thread of its own while the first case is read and prepared.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._graphs = {graph.name: graph for graph in loaded.graphs}
        self._locks = {name: threading.Lock() for name in self._graphs}
        self._failed: dict[str, OmlabError] = {}
        self.provided: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Engine:
        with self._locks[name]:
            if name in self._failed:
                raise self._failed[name]  # what cannot be built for one case cannot be built for the next
            if name not in self.provided:
                try:
                    self.provided[name] = self._loaded.provide(self._graphs[name])
                except OmlabError as error:
                    self._failed[name] = error
                    raise
        return self.provided[name].engine  # type: ignore[no-any-return]

    def warm_up(self) -> None:
        """Begin to load all engines that are not there yet; what fails is told when the engine is asked for.

        For whoever owns the process: making a network draws from torch's random numbers, at whatever moment.
        """
        if self.provided.keys() == self._graphs.keys():
            return

        def load() -> None:
            for name in self._graphs:
                with suppress(OmlabError):
                    self[name]

        # A daemon: Ctrl-C must not wait for an engine to be built.
        threading.Thread(target=load, name="omlab-engines", daemon=True).start()

    def __iter__(self) -> Iterator[str]:
        return iter(self._graphs)

    def __len__(self) -> int:
        return len(self._graphs)


@attrs.frozen(eq=False)
class Outcome:
    """A result with how it came about.

    Attributes
    ----------
    result : the answer.
    case : what was looked at.
    stages : stage -> {"seconds", "peak_mb"}.
    engines : graph -> what ran, its parity record, and what was tried and why not.
    options : options in force.
    prompts : what was asked, on the grid of the case.
    """

    result: Result
    case: Case
    stages: Mapping[str, Mapping[str, float]]
    engines: Mapping[str, Mapping[str, Any]]
    options: Mapping[str, Any]
    prompts: Prompts | None = None


class LoadedModel:
    """A model that can be called. Made by :func:`omlab.load`.

    Attributes
    ----------
    card, variant : what it is.
    settings, choice : folders in force, and which engine was asked for.
    graphs : its graphs.
    weights_sha256 : one digest over all of the variant's files.
    base_sha256 : the part of an adapted model's weights that is the base's; ``None`` where it needs none of them.
    """

    def __init__(
        self,
        model: Model,
        variant: Variant,
        *,
        registry: Registry,
        settings: Settings,
        choice: EngineChoice | None = None,
        grant: Grant | None = None,
        listener: Listener = silent,
        folder: Path | None = None,
    ) -> None:
        self.model = model
        self.card: ModelCard = model.card
        self.variant = variant
        self.folder = folder
        self._registry = registry
        self._settings = self.settings = settings
        self._choice = self.choice = choice or EngineChoice()
        self._grant = grant
        self._listener = listener
        # An adapted model that leaves the base's network alone shares the base's graphs, engines and weights.
        owner, owner_variant = model.graph_owner(variant)
        self._owner, self._owner_variant = owner, owner_variant
        self.graphs: tuple[Graph, ...] = model.graphs(variant)
        asset_card, asset_variant = model.asset_owner(variant)
        assets = asset_variant.weights
        inherited = model.base_weights(variant) if owner is model else files_of(owner, owner_variant)
        own = files_of(model, variant)

        def ensure_all() -> dict[str, Path]:
            files = ensure(
                asset_card.name, assets, asset_card.licence_weights, settings,
                grant=self._grant, listener=listener, variant=asset_variant.name,
            )  # fmt: skip
            return files | own

        self.files = LazyFiles([*(asset.id for asset in assets), *own], ensure_all)
        digest = digest_of_all(assets, settings)
        if digest is None:
            ensure_all()
            digest = digest_of_all(assets, settings)
        self.base_sha256 = _joined(digest, inherited) if assets or inherited else None
        self.weights_sha256: str = _joined(digest, own)
        # Results depend on files that the base's engines do not.
        self._engines_sha256 = self.weights_sha256 if owner is model else _joined(digest, inherited)
        self.engines = EngineBank(self)

    def provide(self, graph: Graph) -> Any:
        """An admitted engine for ``graph``, with its parity record and what was tried."""
        from omlab.engines import provide

        return provide(
            self._owner, self._owner_variant, graph,
            files=self.files, weights_digest=self._engines_sha256, root=self._settings.engines_root,
            backends=self.backends(), exporter=self.exporter,
            engine=self._choice.engine, precision=self._choice.precision, device=self._choice.device,
            threads=self._choice.threads, listener=self._listener,
        )  # fmt: skip

    def tune(self, graph: Graph, *, rounds: int = 5) -> list[Any]:
        """Measure every admitted engine on ``graph`` and remember the fastest; rows of what was measured. With no
        ``rounds`` they are only admitted."""
        from omlab.engines import tune

        return tune(
            self._owner, self._owner_variant, graph,
            files=self.files, weights_digest=self._engines_sha256, root=self._settings.engines_root,
            backends=self.backends(), exporter=self.exporter,
            engine=self._choice.engine, precision=self._choice.precision, device=self._choice.device,
            threads=self._choice.threads, rounds=rounds, listener=self._listener,
        )  # fmt: skip

    def build_for(self, graph: Graph, capabilities: Sequence[str], *, backend: str) -> list[Any]:
        """Build engines of ``graph`` for GPUs that are not here (:func:`omlab.engines.build_for`)."""
        from omlab.engines import build_for

        return build_for(
            self._owner, self._owner_variant, graph,
            files=self.files, weights_digest=self._engines_sha256, root=self._settings.engines_root,
            backends=self.backends(), exporter=self.exporter, capabilities=capabilities, backend=backend,
            listener=self._listener,
        )  # fmt: skip

    def onnx(self, graph: Graph) -> Path:
        """The ONNX file of ``graph`` in the engine store, which engines are made from; exported if it is not there.

        Raises
        ------
        EngineError
            torch or an exporter is missing, or the network cannot be exported.
        """
        from omlab.engines.origin import Origin, Subject
        from omlab.engines.store import Store

        subject = Subject(
            model=self._owner, variant=self._owner_variant, graph=graph, files=self.files,
            weights_digest=self._engines_sha256, exporter=self.exporter, listener=self._listener,
        )  # fmt: skip
        return Origin(subject, Store(self._settings.engines_root)).onnx()

    def backends(self) -> list[Any]:
        """The engine backends of all plugins."""
        return [self._registry.load(Kind.ENGINE, name) for name in self._registry.cards(Kind.ENGINE)]

    def builder(self, graph: Graph) -> tuple[Any, Any] | None:
        """The backend that builds ``graph`` from its torch module, and its target of the precision that was chosen;
        ``None`` where a plain ONNX file serves every backend. Raises :class:`EngineError` for another precision."""
        makers = [one for one in self.backends() if one.builds_from_network and one.card.name in graph.engines]
        if not makers or self._choice.engine not in ("auto", makers[0].card.name):
            return None
        reason = makers[0].unavailable()
        if reason:
            raise EngineError(f"{makers[0].card.name} cannot build: {reason}")
        targets = sorted(makers[0].targets(graph), key=lambda target: target.rank)
        fitting = [target for target in targets if self._choice.precision in ("auto", target.precision)]
        if not fitting:
            offers = ", ".join(target.precision for target in targets)
            raise EngineError(f"{makers[0].card.name} builds {offers}, not {self._choice.precision}")
        return makers[0], fitting[0]

    def exporter(self) -> Any:
        """The exporter that a plugin contributes, loaded only when an ONNX file has to be made; else ``None``."""
        names = self._registry.cards(Kind.EXPORTER)
        return self._registry.load(Kind.EXPORTER, next(iter(names))) if names else None

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Options with the card's defaults. Raises :class:`omlab.errors.UsageError` for one it does not have."""
        return options_of(self.card, given)

    def __call__(self, case: Case | str | Path, *, prompts: Any = None, **options: Any) -> Result:
        """Answer for one case or file, on its own grid.

        Parameters
        ----------
        prompts : what is asked of a promptable model: :class:`omlab.prompts.Prompts`, a dict or list of the JSON
            schema, or the path of a JSON file.
        """
        return self.run(case, prompts=prompts, options=options).result

    def read(self, path: str | Path, **reading: Any) -> Case:
        """Read a file as the kind of case that the model takes."""
        from omlab.cases import read

        return read(path, kind=self.card.inputs, **reading)

    def run(
        self,
        case: Case | str | Path,
        *,
        prompts: Any = None,
        options: Mapping[str, Any] | None = None,
        listener: Listener | None = None,
        cancel: CancelToken | None = None,
        scratch: Path | None = None,
    ) -> Outcome:
        """Like calling it, with stages, engines and options beside the result.

        Parameters
        ----------
        scratch : folder for what is too large for memory; see :class:`omlab.model.Context`.
        """
        case, context = self._context(case, options or {}, listener, cancel)
        context.scratch = scratch
        context.prompts = self.placed(prompts, case, context.options)
        result = self.model.predict(case, context)
        return Outcome(result, case, context.stages, self.engines_used(), context.options, context.prompts)

    def run_many(
        self,
        cases: Sequence[Case],
        *,
        options: Mapping[str, Any] | None = None,
        listener: Listener | None = None,
        cancel: CancelToken | None = None,
    ) -> list[Outcome | OmlabError]:
        """Like :meth:`run` for several cases that the model answers together, in order; the error of one that cannot
        be answered stands in its place. The stages are those of all together."""
        if not cases:
            return []
        _, context = self._context(cases[0], options or {}, listener, cancel)
        context.what = f"{len(cases)} cases"
        found = self.model.predict_many(cases, context)
        return [
            answer if isinstance(answer, OmlabError)
            else Outcome(answer, case, context.stages, self.engines_used(), context.options)
            for case, answer in zip(cases, found, strict=True)
        ]  # fmt: skip

    def stream(
        self,
        case: Case | str | Path,
        *,
        options: Mapping[str, Any] | None = None,
        listener: Listener | None = None,
        cancel: CancelToken | None = None,
    ) -> Generator[str, None, Result]:
        """The answer of a language model, piece by piece as it is written; the generator returns the whole.

        Raises
        ------
        UsageError
            The model does not write text.
        """
        case, context = self._context(case, options or {}, listener, cancel)
        return self.model.stream(case, context)

    def open(self, case: Case | str | Path, **options: Any) -> OpenCase:
        """Look at a case once, to ask a promptable model many things about it.

        Raises
        ------
        UsageError
            The model has no sessions.
        """
        from omlab.sessions import OpenCase

        case, context = self._context(case, options, None, None)
        return OpenCase(self, case, self.model.open(case, context), context)

    def asked(self, prompts: Any, options: Mapping[str, Any]) -> Prompts | None:
        """Prompts in any form that a caller may give, refused where no case can go with them.

        Raises
        ------
        UsageError, InputError
            A kind that the model does not take; none where it needs one; JSON that is not as the schema has it.
        """
        found: Prompts | None = None
        if prompts is not None:
            from omlab.prompts import coerce

            found = coerce(prompts)
            assert found is not None
            found.demand(self.card.prompts, self.card.name)
        self.model.validate(options, found)
        return found

    def placed(self, prompts: Any, case: Case, options: Mapping[str, Any]) -> Prompts | None:
        """:meth:`asked`, with what is asked of ``case`` brought onto its grid. Raises what
        :meth:`omlab.prompts.Prompts.on` does."""
        found = self.asked(prompts, options)
        return None if found is None else found.on(case)

    def _context(
        self, case: Case | str | Path, options: Mapping[str, Any], listener: Listener | None, cancel: CancelToken | None
    ) -> tuple[Case, Context]:
        """The case, read where it is a file, and what the model is given with it."""
        stages: dict[str, dict[str, float]] = {}
        if isinstance(case, str | Path):
            from omlab.memory import peak_mb

            start = time.perf_counter()
            case = self.read(case)
            stages["read"] = {"seconds": time.perf_counter() - start, "peak_mb": peak_mb()}
        if case.kind not in self.card.inputs:
            takes = " or ".join(kind.value for kind in self.card.inputs)
            raise InputError(f"{case.name}: is of kind {case.kind}, model '{self.card.name}' takes {takes}")
        context = Context(
            variant=self.variant, engines=self.engines, options=self.options(options), what=case.name,
            listener=listener or self._listener, cancel=cancel or CancelToken(), files=self.files, stages=stages,
        )  # fmt: skip
        return case, context

    def engines_used(self) -> dict[str, dict[str, Any]]:
        """Graph -> what ran, why it was admitted, and why the others were not."""
        return {name: provided.as_json() for name, provided in self.engines.provided.items()}


def files_of(model: Model, variant: Variant) -> dict[str, Path]:
    """Files beside assets that the graphs of a model depend on, by the name that its ``network`` knows them by: what
    belongs to the base of an adapted network begins with ``base-``."""
    owner, owner_variant = model.graph_owner(variant)
    if owner is not model:
        return files_of(owner, owner_variant) | model.own_weights(variant)
    inherited = {f"base-{name}": path for name, path in model.base_weights(variant).items()}
    return inherited | model.own_weights(variant)


def _joined(digest: str | None, files: Mapping[str, Path]) -> str:
    """Digest of assets and files together."""
    if not files:
        return str(digest)
    from omlab.weights.store import sha256_of

    parts = [f"{name}:{sha256_of(path)}" for name, path in sorted(files.items())]
    return hashlib.sha256("\n".join([str(digest), *parts]).encode()).hexdigest()


def options_of(card: Card, given: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a card with its defaults, keyed with underscores, values converted to their types.

    Raises
    ------
    UsageError
        An option that the card does not have, or a value of the wrong type.
    """
    import difflib

    known = {option.name.replace("-", "_"): option for option in card.options}
    filled = {name: (list(option.default or ()) if option.many else option.default) for name, option in known.items()}
    for key, value in given.items():
        name = key.replace("-", "_")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            has = ", ".join(sorted(known)) or "no options"
            raise UsageError(
                f"'{card.name}' has no option '{key}'",
                remedy=f"Did you mean '{near[0]}'?" if near else f"It has: {has}",
            )
        filled[name] = _converted(card.name, known[name], value)
    return filled


def _converted(owner: str, option: Any, value: Any) -> Any:
    types = {"str": str, "int": int, "float": float, "bool": bool, "path": Path}
    wanted = types[option.type]
    if option.many:
        return [_converted(owner, attrs.evolve(option, many=False), item) for item in value]
    if value is None or (wanted is bool) != isinstance(value, bool):
        if value is None and option.default is None:
            return None
        raise UsageError(f"'{owner}': option '{option.name}' takes {option.type}, found {value!r}")
    try:
        converted = wanted(value)
    except (TypeError, ValueError):
        raise UsageError(f"'{owner}': option '{option.name}' takes {option.type}, found {value!r}") from None
    if option.choices and converted not in option.choices:
        raise UsageError(f"'{owner}': option '{option.name}' is one of {', '.join(option.choices)}, found '{value}'")
    return converted
