"""The functions of ``import omlab``: what the command line does, typed, without printing, exiting or asking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omlab.cards import AdapterCard, DatasetCard, EngineCard, EvaluatorCard, ModelCard, Variant
from omlab.errors import InputError, PluginError, UsageError, WeightsError
from omlab.loading import EngineChoice, LoadedModel, options_of
from omlab.plugins import Registry
from omlab.progress import Listener, silent
from omlab.settings import Settings
from omlab.vocabulary import Kind
from omlab.weights import Grant, ensure, owner_assets

if TYPE_CHECKING:
    from omlab.dataset import BoundDataset
    from omlab.report import Report


def _registry(registry: Registry | None, settings: Settings) -> Registry:
    if registry is not None:
        return registry
    return Registry.discover(failures_file=settings.failures_file, manifests_file=settings.manifests_file)


def list_models(registry: Registry | None = None) -> dict[str, ModelCard]:
    """Name -> card of every model that the installed plugins contribute. Imports none of them."""
    return _registry(registry, Settings.from_environment()).cards(Kind.MODEL)


def list_datasets(registry: Registry | None = None) -> dict[str, DatasetCard]:
    """Name -> card of every dataset."""
    return _registry(registry, Settings.from_environment()).cards(Kind.DATASET)


def list_adapters(registry: Registry | None = None) -> dict[str, AdapterCard]:
    """Name -> card of every adapter."""
    return _registry(registry, Settings.from_environment()).cards(Kind.ADAPTER)


def list_evaluators(registry: Registry | None = None) -> dict[str, EvaluatorCard]:
    """Name -> card of every evaluator."""
    return _registry(registry, Settings.from_environment()).cards(Kind.EVALUATOR)


def list_engines(registry: Registry | None = None) -> dict[str, EngineCard]:
    """Name -> card of every engine backend."""
    return _registry(registry, Settings.from_environment()).cards(Kind.ENGINE)


def load(
    model: str | Path,
    *,
    variant: str | None = None,
    engine: str = "auto",
    precision: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    fetch: bool = False,
    accept: Sequence[str] = (),
    grant: Grant | None = None,
    registry: Registry | None = None,
    settings: Settings | None = None,
    listener: Listener = silent,
) -> LoadedModel:
    """Make a model ready to be called.

    Parameters
    ----------
    model : name of a model, or a model directory that an adapter made.
    variant : name of a variant of its card; the first without one.
    engine, precision, device : ``"auto"`` takes the fastest admitted engine; a name pins it.
    threads : threads of the engine; the processors that this process may use without one.
    fetch : missing weights may be fetched; without it they raise :class:`omlab.errors.OfflineError`.
    accept : SPDX ids of licences that the user accepts.

    Raises
    ------
    OmlabError
        Unknown name, broken plugin, missing weights.
    """
    settings = settings or Settings.from_environment()
    registry = _registry(registry, settings)
    if engine != "auto":
        registry.card(Kind.ENGINE, engine)  # a misspelt engine is told now and not once a case
    choice = EngineChoice(engine, precision, device, threads)
    grant = grant or Grant(fetch=fetch, accept=tuple(accept))
    folder = model_directory(model)
    if folder is not None:
        behind = _adapted(folder, registry)
        if variant not in (None, behind.card.variants[0].name):
            raise UsageError(f"the model directory {folder} has no variant '{variant}'", remedy="Leave --variant out")
        chosen = behind.card.variants[0]
    else:
        card: ModelCard = registry.card(Kind.MODEL, str(model))
        chosen = card.variant(variant)
        behind = registry.load(Kind.MODEL, str(model))
        folder = behind.directory
    loaded = LoadedModel(
        behind,
        chosen,
        registry=registry,
        settings=settings,
        choice=choice,
        grant=grant,
        listener=listener,
        folder=folder,
    )
    if folder is not None:
        _check_base(folder, loaded.base_sha256)
    return loaded


def model_directory(model: str | Path) -> Path | None:
    """The folder of an adapted model, if ``model`` names one: a path, or a name with a slash or a dot before it."""
    from omlab.manifest import NAME

    path = Path(model)
    if (path / NAME).is_file():
        return path
    if isinstance(model, Path) or "/" in str(model) or "\\" in str(model):
        raise InputError(f"{model} is no model directory: it holds no {NAME}", remedy="omlab adapt makes one")
    return None


def directory_card(folder: Path) -> tuple[ModelCard, dict[str, Any]]:
    """Card and ``[adapted]`` table of a model directory. Raises :class:`omlab.errors.InputError`."""
    from omlab import manifest

    try:
        tables = manifest.read_tables(folder / manifest.NAME)
        cards = manifest.cards_of(tables)
    except manifest.ManifestError as error:
        raise InputError(f"model directory {folder}: {error.reason}", remedy=error.remedy) from None
    models = [card for kind, card in cards if kind is Kind.MODEL]
    adapted = tables.get("adapted")
    if len(models) != 1 or not isinstance(adapted, Mapping) or not {"adapter", "model", "variant"} <= set(adapted):
        raise InputError(
            f"{folder / manifest.NAME} must hold one [[model]] and [adapted] with adapter, model and variant",
            remedy="Make the directory again with omlab adapt",
        )
    return models[0], dict(adapted)


def directory_model(folder: str | Path, registry: Registry | None = None) -> Any:
    """The :class:`omlab.model.Model` of a model directory; a plugin that ``omlab package`` made gives it for its card.

    Raises
    ------
    InputError, UnknownName, PluginError
        It is no model directory, or the adapter or base that it was made with is not installed or broken.
    """
    found = _adapted(Path(folder), _registry(registry, Settings.from_environment()))
    found.directory = Path(folder)
    return found


def _adapted(folder: Path, registry: Registry) -> Any:
    card, adapted = directory_card(folder)
    adapter = registry.load(Kind.ADAPTER, adapted["adapter"])
    if "base" in adapted:  # adapted from an adapted model, which lies inside
        within = (folder / str(adapted["base"])).resolve()
        if folder.resolve() not in within.parents or not (within / "omlab.toml").is_file():
            raise InputError(f"{folder}: its base is missing, expected in {within}", remedy="Make the model again")
        base = _adapted(within, registry)
        base_variant: Variant = base.card.variants[0]
    else:
        base_card: ModelCard = registry.card(Kind.MODEL, adapted["model"])
        base = registry.load(Kind.MODEL, adapted["model"])
        base_variant = base_card.variant(adapted["variant"])
    return adapter.model(card, base, base_variant, folder)


def _check_base(folder: Path, found: str | None) -> None:
    """Raise :class:`WeightsError` where the base has other weights than those that the model was made from."""
    expected = directory_card(folder)[1].get("base_weights_sha256")
    if found is not None and expected is not None and found != expected:
        raise WeightsError(
            f"{folder} was made from a base with the weights {expected[:16]}..., here they are {found[:16]}...",
            remedy="Fetch the weights that it was made from, or make the model again",
        )


def pull(
    name: str,
    *,
    variant: str | None = None,
    fetch: bool = True,
    accept: Sequence[str] = (),
    grant: Grant | None = None,
    files: Mapping[str, Path] | None = None,
    registry: Registry | None = None,
    settings: Settings | None = None,
    listener: Listener = silent,
) -> dict[str, Path]:
    """Fetch the files of a model's variant or of a dataset; returns id -> path.

    Parameters
    ----------
    files : id -> a file that the user fetched by hand; it is verified and copied.
    """
    from omlab.weights.consent import Consents
    from omlab.weights.fetch import adopt

    settings = settings or Settings.from_environment()
    registry = _registry(registry, settings)
    grant = grant or Grant(fetch=fetch, accept=tuple(accept))
    kind = Kind.DATASET if name in registry.cards(Kind.DATASET) else Kind.MODEL
    card = registry.card(kind, name)
    chosen = card.variant(variant) if kind is Kind.MODEL else None
    assets, licence = owner_assets(card, chosen)
    by_id = {asset.id: asset for asset in assets}
    for key, path in (files or {}).items():
        if key not in by_id:
            raise UsageError(f"'{name}' has no file '{key}'", remedy=f"It has: {', '.join(by_id) or 'none'}")
        Consents(settings).demand(name, by_id[key].licence or licence, grant.accept, grant.ask)
        adopt(by_id[key], path, settings)
    return ensure(
        name,
        assets,
        licence,
        settings,
        grant=grant,
        listener=listener,
        variant=chosen.name if chosen and variant else "",
    )


def load_dataset(
    name: str,
    *,
    split: str | None = None,
    part: tuple[int, int] | None = None,
    options: Mapping[str, Any] | None = None,
    fetch: bool = False,
    grant: Grant | None = None,
    registry: Registry | None = None,
    settings: Settings | None = None,
    listener: Listener = silent,
) -> BoundDataset:
    """A dataset with its files.

    Parameters
    ----------
    name : a dataset's name; ``NAME:PATH`` where it lies in a folder of yours; options may stand between:
        ``NAME,OPTION=VALUE:PATH``.
    part : (index, count): only every ``count``-th case from ``index`` on.
    options : options of the dataset, beside those of its name.

    Raises
    ------
    OmlabError
        Unknown name, split or option, missing files, a path that is not there.
    """
    from omlab.dataset import BoundDataset
    from omlab.datasets.places import find_place, parse, steps, typed

    settings = settings or Settings.from_environment()
    registry = _registry(registry, settings)
    named = parse(name)
    card: DatasetCard = registry.card(Kind.DATASET, named.name)
    root = Path(named.path) if named.path else None
    if root is None and card.takes_path:
        root = find_place(card, settings)
        if root is None and not card.files and card.obtain:
            raise WeightsError(
                f"dataset '{card.name}' is not here: it has to be obtained by hand",
                remedy=f"omlab dataset fetch {card.name} lists the steps: {len(steps(card, settings))} of them",
            )
    if (card.takes_path and root is None and not card.files) or (root is not None and not card.takes_path):
        form = f"{card.name}:PATH" if card.takes_path else card.name
        raise UsageError(f"dataset '{card.name}' is named as {form}", remedy="Write it so")
    if root is not None and not root.is_dir():
        raise InputError(f"{root} is not a folder", remedy=f"Name the folder that '{card.name}' shall read")
    dataset = registry.load(Kind.DATASET, card.name)
    dataset.listener = listener
    given = {**named.options, **(options or {})}
    if given:
        dataset.options = typed(card, given)
    files: dict[str, Path] = {}
    if root is None:
        assets, licence = owner_assets(card)
        files = ensure(card.name, assets, licence, settings, grant=grant or Grant(fetch=fetch), listener=listener)
    shown = ",".join([card.name, *(f"{key}={value}" for key, value in given.items())])
    return BoundDataset(
        dataset=dataset, files=files, root=root, split=split, part=part, label=f"{shown}:{root}" if root else shown
    )


def score(
    evaluator: str,
    files: Sequence[str | Path],
    *,
    options: Mapping[str, Any] | None = None,
    registry: Registry | None = None,
    listener: Listener = silent,
) -> Report:
    """Score files that exist with an evaluator; which files, and in which order, is the evaluator's affair.

    The report tells versions and the digest of every file that was named, also in folders and by options.
    """
    from omlab import evaluating

    registry = _registry(registry, Settings.from_environment())
    card: EvaluatorCard = registry.card(Kind.EVALUATOR, evaluator)
    behind = registry.load(Kind.EVALUATOR, evaluator)
    behind.listener = listener
    paths = [Path(file) for file in files]
    filled = options_of(card, options or {})
    report = behind.score_files(paths, filled)
    if not hasattr(report, "as_json"):
        raise PluginError(f"evaluator '{evaluator}' gave {type(report).__name__}, a Report was expected")
    return evaluating.traced(report, evaluating.digests(card, paths, filled))
