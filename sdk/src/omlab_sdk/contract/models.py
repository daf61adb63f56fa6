"""Which models the contract looks at: which variants, at which size, with which weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from omlab.cards import ModelCard, Variant
from omlab.errors import UsageError
from omlab.graphs import Graph
from omlab.loading import LoadedModel
from omlab.model import Model
from omlab.vocabulary import Kind
from omlab.weights import missing

if TYPE_CHECKING:
    import numpy as np

    from omlab_sdk.contract.base import Subject


#: Of the weights in float32 that making engines of them takes: the network, and the file that is written of it.
COPIES = 2


class Seeded(Model):
    """A model whose network is its untrained one with name-seeded weights."""

    def __init__(self, model: Model) -> None:
        super().__init__(model.card)
        self._model = model

    def graphs(self, variant: Variant) -> tuple[Graph, ...]:
        return self._model.graphs(variant)

    def exports(self, variant: Variant) -> tuple[Graph, ...]:
        return self._model.exports(variant)

    def examples(self, graph: Graph, variant: Variant) -> Iterator[dict[str, np.ndarray]]:
        return self._model.examples(graph, variant)

    def network(self, graph: Graph, variant: Variant, files: Mapping[str, Path]) -> Any:
        from omlab_sdk.golden import seed_module

        network = self._model.untrained(graph, variant)
        seed_module(network)
        return network.eval()

    def validate(self, options: Any, prompts: Any) -> None:
        self._model.validate(options, prompts)

    def open(self, case: Any, context: Any) -> Any:
        return self._model.open(case, context)

    def predict(self, case: Any, context: Any) -> Any:
        return self._model.predict(case, context)


@attrs.frozen(eq=False)
class Checked:
    """A model under check.

    Attributes
    ----------
    loaded : it, made ready; its engines are made once for all checks.
    published : the variant as the card has it.
    seeded : its weights are made up from their names.
    small : its network is the small one that the model gives for checks.
    """

    loaded: LoadedModel
    published: Variant
    seeded: bool
    small: bool

    @property
    def name(self) -> str:
        """``"retfound/cfp"``."""
        return f"{self.loaded.card.name}/{self.published.name}"

    @property
    def how(self) -> str:
        """``"small, seeded"``: at which size and with which weights."""
        return f"{'small' if self.small else 'full size'}, {'seeded' if self.seeded else 'published weights'}"

    @property
    def label(self) -> str:
        """``"retfound/cfp (small, seeded)"``."""
        return f"{self.name} ({self.how})"


def checked_models(subject: Subject, **choice: Any) -> list[Checked]:
    """The models that ``subject`` asks for, made ready once.

    Of each card one variant for every kind of graph (an encoder, a classifier), the first; in full size the first whose
    files are here, else the first. A variant that was asked for by name is taken alone.

    Raises
    ------
    Skipped
        A network of the published size, with weights that are made up, would not fit into memory.
    """
    key = tuple(sorted(choice.items()))
    if key not in subject.ready:
        subject.ready[key] = list(_made(subject, choice))
    return subject.ready[key]  # type: ignore[no-any-return]


def _made(subject: Subject, choice: Mapping[str, Any]) -> Iterator[Checked]:
    from omlab.loading import EngineChoice

    # Files are looked for where the user has them, engines are kept in the scratch folder.
    shared = (*subject.settings.shared_roots, subject.settings.assets_root)
    settings = attrs.evolve(subject.settings, home=subject.work / "home", shared_roots=shared)
    for card in _cards(subject):
        model: Model = subject.registry.load(Kind.MODEL, card.name)
        for variant in _chosen(subject, card, model, settings):
            small = variant if subject.full else small_of(model, variant)
            is_small = small.config != variant.config
            seeded = is_small or not variant.weights or bool(missing(variant.weights, settings))
            behind = Seeded(model) if seeded else model
            used = attrs.evolve(small, weights=()) if seeded else variant
            if seeded and not is_small:
                _demand_memory(subject, model, variant)
            loaded = LoadedModel(
                behind, used, registry=subject.registry, settings=settings, choice=EngineChoice(**choice)
            )
            yield Checked(loaded, variant, seeded, is_small)


def _cards(subject: Subject) -> list[ModelCard]:
    return [card for card in subject.cards(Kind.MODEL) if isinstance(card, ModelCard)]


def demand_variants(subject: Subject) -> None:
    """Raise :class:`omlab.errors.UsageError` where a variant is asked for that no model of the plugin has."""
    known = {variant.name for card in _cards(subject) for variant in card.variants}
    for name in subject.variants:
        if name not in known:
            raise UsageError(
                f"no model of '{subject.plugin.name}' has a variant '{name}'",
                remedy=f"There are: {', '.join(sorted(known))}" if known else "It contributes no model",
            )


def _demand_memory(subject: Subject, model: Model, variant: Variant) -> None:
    from omlab.memory import available_bytes
    from omlab_sdk.contract.base import Skipped
    from omlab_sdk.contract.sizes import millions, parameters

    count, free = parameters(subject, model, variant) or 0, available_bytes()
    needed = COPIES * 4 * count
    if free is not None and needed > free:
        raise Skipped(
            f"{model.card.name}/{variant.name} has {millions(count)}, which take about {needed / 1e9:.0f} GB to check; "
            f"{free / 1e9:.0f} GB are free"
        )


def _chosen(subject: Subject, card: ModelCard, model: Model, settings: Any) -> list[Variant]:
    if subject.variants:
        return [variant for variant in card.variants if variant.name in subject.variants]
    found: dict[tuple[str, ...], Variant] = {}
    for variant in [] if subject.full else card.variants:
        small = small_of(model, variant)
        if small.config != variant.config:
            found.setdefault(tuple(graph.name for graph in model.graphs(small)), variant)
    if found:
        return list(found.values())
    here = [v for v in card.variants if v.weights and not missing(v.weights, settings)]
    return [*here, *card.variants][:1]


def small_of(model: Model, variant: Variant) -> Variant:
    """``variant`` without files, in the small size that ``model`` gives for checks."""
    return model.small(attrs.evolve(variant, weights=()))


def size_of(subject: Subject) -> str:
    """``"small"``, ``"full"``, ``"small and full"``: at which size networks were looked at; empty where none were."""
    made = [model for models in subject.ready.values() for model in models]
    return " and ".join(word for word, small in (("small", True), ("full", False)) if small in {m.small for m in made})


@attrs.frozen
class Looked:
    """What was looked at of one model, for reports.

    Attributes
    ----------
    size : ``"small"`` or ``"full"``.
    weights : ``"seeded"``, made up from their names, or ``"published"``.
    parameters, published_parameters : of the network that was looked at, and of the published one; ``None`` where they
        cannot be told.
    """

    model: str
    variant: str
    size: str
    weights: str
    parameters: int | None
    published_parameters: int | None

    @property
    def text(self) -> str:
        """For people."""
        from omlab_sdk.contract.sizes import millions

        size = "its published size" if self.size == "full" else "a small size of the same code"
        if self.size == "full" and self.parameters is not None:
            size += f" ({millions(self.parameters)})"
        elif self.parameters is not None and self.published_parameters is not None:
            size += f" ({millions(self.parameters)}, published {millions(self.published_parameters)})"
        made_up = "made up from their names" if self.weights == "seeded" else "the published ones"
        return f"{self.model}/{self.variant} in {size}, weights {made_up}"


def described(subject: Subject) -> list[Looked]:
    """What the checks so far looked at."""
    from omlab_sdk.contract.sizes import parameters

    found = []
    for one in (model for models in subject.ready.values() for model in models):
        model: Model = subject.registry.load(Kind.MODEL, one.loaded.card.name)
        published = parameters(subject, model, one.published)
        found.append(
            Looked(
                model=one.loaded.card.name, variant=one.published.name, size="small" if one.small else "full",
                weights="seeded" if one.seeded else "published",
                parameters=parameters(subject, model, one.loaded.variant) if one.small else published,
                published_parameters=published,
            )
        )  # fmt: skip
    return found
