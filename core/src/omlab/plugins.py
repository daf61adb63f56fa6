"""Plugins: known from their manifests, imported only when one of their contributions is used.

A plugin is a distribution with an entry point in the group ``omlab`` whose value is a package that holds
``omlab.toml``. Whatever is wrong with one plugin is kept as data (:class:`Broken`) and never reaches another.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from omlab import manifest
from omlab.errors import PluginError, UnknownName
from omlab.installed import GROUP, Candidate, installed
from omlab.vocabulary import Kind

if TYPE_CHECKING:
    import pluggy

    from omlab.cards import Card


@attrs.frozen
class Plugin:
    """A plugin whose manifest is valid."""

    name: str
    package: str
    distribution: str
    version: str
    path: Path
    contributions: tuple[tuple[Kind, str], ...]


@attrs.frozen
class Broken:
    """A plugin that cannot be used, and why."""

    plugin: str
    distribution: str
    version: str
    reason: str
    remedy: str
    details: str = ""


class Registry:
    """Contributions of all plugins by kind and name.

    Make one with :meth:`discover`; it imports no plugin. :meth:`load` imports the one plugin that owns a name.
    """

    def __init__(self, failures_file: Path | None = None) -> None:
        self.plugins: dict[str, Plugin] = {}
        self.broken: list[Broken] = []
        self._manifests: dict[Kind, dict[str, manifest.Manifest]] = {kind: {} for kind in Kind}
        self._cards: dict[tuple[Kind, str], Card] = {}
        self._owners: dict[tuple[Kind, str], Plugin] = {}
        self._failures_file = failures_file
        self._manager: pluggy.PluginManager | None = None

    @classmethod
    def discover(
        cls,
        candidates: Iterable[Candidate] | None = None,
        *,
        failures_file: Path | None = None,
        manifests_file: Path | None = None,
    ) -> Registry:
        """Read the manifests of all installed plugins (or of ``candidates``).

        Parameters
        ----------
        failures_file : where import failures are remembered.
        manifests_file : where is remembered what lists show of manifests.
        """
        registry = cls(failures_file)
        failures = registry._read_failures()
        memory = manifest.Memory(manifests_file)
        for candidate in installed() if candidates is None else candidates:
            registry._add(candidate, failures, memory)
        memory.keep()
        return registry

    def _add(self, candidate: Candidate, failures: Mapping[str, Any], memory: manifest.Memory) -> None:
        try:
            found = _read(candidate, memory)
            contributions = found.names()
            for kind, name in contributions:
                owner = self._owners.get((kind, name))
                if owner is not None:
                    raise manifest.ManifestError(
                        f"its {kind} '{name}' has the name of one of {owner.distribution} {owner.version}",
                        f"Uninstall one of the two: pip uninstall {candidate.distribution}",
                    )
            if candidate.plugin in self.plugins:
                other = self.plugins[candidate.plugin]
                raise manifest.ManifestError(
                    f"its entry point '{candidate.plugin}' has the name of one of {other.distribution}",
                    f"Uninstall one of the two: pip uninstall {candidate.distribution}",
                )
        except manifest.ManifestError as error:
            self._break(candidate, error.reason, error.remedy)
            return
        remembered = failures.get(candidate.plugin)
        if remembered and remembered.get("stamp") == _stamp(candidate, found.path):
            self._break(
                candidate,
                f"its import failed: {remembered.get('reason', '')}",
                f"omlab doctor shows the traceback and tries again; reinstalling may help: "
                f"pip install --force-reinstall {candidate.distribution}",
            )
            return
        plugin = Plugin(
            name=candidate.plugin,
            package=candidate.package,
            distribution=candidate.distribution,
            version=candidate.version,
            path=found.path,
            contributions=tuple(contributions),
        )
        self.plugins[plugin.name] = plugin
        for kind, name in contributions:
            self._manifests[kind][name] = found
            self._owners[kind, name] = plugin

    def _break(self, candidate: Candidate, reason: str, remedy: str, details: str = "") -> None:
        self.broken.append(Broken(candidate.plugin, candidate.distribution, candidate.version, reason, remedy, details))

    def cards(self, kind: Kind) -> dict[str, Any]:
        """Name -> card of one kind, sorted by name."""
        return {name: self.card(kind, name) for name in self.names(kind)}

    def names(self, kind: Kind) -> list[str]:
        """Names of one kind, sorted; no card is made for them."""
        return sorted(self._manifests[kind])

    def rows(self, kind: Kind) -> list[dict[str, Any]]:
        """What a list shows of each contribution of one kind, sorted by name: see :func:`omlab.listing.row_of`."""
        manifests = {id(found): found for found in self._manifests[kind].values()}
        rows = [row for found in manifests.values() for row in found.rows if row["kind"] == kind.value]
        return sorted(rows, key=lambda row: row["name"])

    def card(self, kind: Kind, name: str) -> Any:
        """The card of a contribution.

        Raises
        ------
        UnknownName
            There is none; the remedy names near ones, or the broken plugin that may hold it.
        PluginError
            Its manifest has changed since the plugins were looked for.
        """
        if (kind, name) in self._cards:
            return self._cards[kind, name]
        cards = self._manifests[kind]
        if name in cards:
            try:
                card = self._cards[kind, name] = cards[name].card(kind, name)
            except manifest.ManifestError as error:
                raise PluginError(error.reason, remedy=error.remedy) from None
            return card
        import difflib

        lower = name.lower()
        near = difflib.get_close_matches(lower, cards, n=3, cutoff=0.5) or [n for n in cards if lower and lower in n]
        broken = next((b for b in self.broken if b.plugin == name or b.distribution == f"omlab-{name}"), None)
        if broken:
            remedy = f"The plugin {broken.distribution} is broken: {broken.reason} (omlab doctor tells more)"
        elif near:
            remedy = f"Did you mean: {', '.join(near)}?"
        elif cards:
            remedy = f"Known: {', '.join(sorted(cards))}"
        else:
            remedy = f"No plugin installed here contributes a {kind}"
        article = "an" if kind[0] in "aeiou" else "a"
        raise UnknownName(f"'{name}' is not {article} {kind} known here", remedy=remedy)

    def owner(self, kind: Kind, name: str) -> Plugin:
        """The plugin that contributes ``name``."""
        if (kind, name) not in self._owners:
            self.card(kind, name)  # says what is wrong
        return self._owners[kind, name]

    def load(self, kind: Kind, name: str) -> Any:
        """The object behind a card: imports the plugin that owns it and asks its hook.

        Raises
        ------
        UnknownName
            No contribution has this name.
        PluginError
            The plugin cannot be imported, does not implement the hook, or its hook fails.
        """
        card = self.card(kind, name)
        plugin = self._owners[kind, name]
        module = self._register(plugin)
        hook = self._pluggy().subset_hook_caller(f"omlab_{kind}", self._others(module))
        try:
            behind = hook(card=card)
        except Exception as error:  # a stranger's code: whatever it raises is that plugin's failure
            raise self._failed(plugin, f"its hook omlab_{kind} failed for '{name}'", error) from error
        if behind is None:
            raise PluginError(
                f"plugin {plugin.distribution} lists {kind} '{name}' in {manifest.NAME} "
                f"but its hook omlab_{kind} gives nothing for it",
                remedy=f"Implement omlab_{kind} in {plugin.package} with @omlab.hookimpl",
            )
        return behind

    def import_plugin(self, plugin: Plugin) -> None:
        """Import one plugin and check its hooks against the specs; used by ``omlab doctor``."""
        self._register(plugin)

    def _register(self, plugin: Plugin) -> Any:
        manager = self._pluggy()
        module = manager.get_plugin(plugin.name)
        if module is not None:
            return module
        try:
            module = importlib.import_module(plugin.package)
            manager.register(module, name=plugin.name)
            manager.check_pending()
        except Exception as error:  # a stranger's code: whatever it raises is that plugin's failure
            if manager.has_plugin(plugin.name):
                manager.unregister(name=plugin.name)  # else its unknown hooks would be held against the next one
            self._remember(plugin, error)
            raise self._failed(plugin, "it cannot be imported", error) from error
        self._forget(plugin)
        return module

    def _pluggy(self) -> pluggy.PluginManager:
        if self._manager is None:
            import pluggy

            from omlab import hookspecs

            self._manager = pluggy.PluginManager(GROUP)
            self._manager.add_hookspecs(hookspecs)
        return self._manager

    def _others(self, module: Any) -> list[Any]:
        return [other for other in self._pluggy().get_plugins() if other is not module]

    @staticmethod
    def _failed(plugin: Plugin, what: str, error: Exception) -> PluginError:
        return PluginError(
            f"plugin {plugin.distribution} {plugin.version}: {what}: {_last_line(error)}",
            remedy="omlab doctor shows the traceback; reinstalling may help: "
            f"pip install --force-reinstall {plugin.distribution}",
        )

    # What failed to import is remembered by version and manifest, so that `omlab list` can show it as broken
    # without importing anything; a changed or successfully imported plugin is forgotten.
    def _read_failures(self) -> dict[str, Any]:
        if self._failures_file is None:
            return {}
        try:
            found = json.loads(self._failures_file.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write_failures(self, failures: Mapping[str, Any]) -> None:
        if self._failures_file is None:
            return
        from omlab.files import write_text

        try:
            write_text(self._failures_file, json.dumps(failures, indent=1))
        except OSError:
            return  # a read-only home only means that the next start does not know yet

    def _remember(self, plugin: Plugin, error: Exception) -> None:
        failures = self._read_failures()
        reason = _last_line(error)
        candidate = Candidate(plugin.name, plugin.package, plugin.distribution, plugin.version)
        failures[plugin.name] = {"reason": reason, "stamp": _stamp(candidate, plugin.path)}
        self._write_failures(failures)

    def _forget(self, plugin: Plugin) -> None:
        failures = self._read_failures()
        if failures.pop(plugin.name, None) is not None:
            self._write_failures(failures)

    def forget_failures(self) -> None:
        """Forget remembered import failures; ``omlab doctor`` tries every plugin anew."""
        if self._read_failures():
            self._write_failures({})


def _last_line(error: BaseException) -> str:
    """The line that a traceback ends with."""
    import traceback

    return traceback.format_exception_only(error)[-1].strip().replace("\n", " ")


def _read(candidate: Candidate, memory: manifest.Memory) -> manifest.Manifest:
    """A candidate's manifest, without importing its package."""
    try:
        # For a top-level package find_spec imports nothing; the core's own parent is imported already.
        spec = find_spec(candidate.package)
    except (ImportError, ValueError, AttributeError) as error:
        raise manifest.ManifestError(
            f"its package '{candidate.package}' cannot be found: {error}",
            f"Reinstall it: pip install --force-reinstall {candidate.distribution}",
        ) from None
    if spec is None or not spec.submodule_search_locations:
        raise manifest.ManifestError(
            f"its package '{candidate.package}' cannot be found",
            f"Reinstall it: pip install --force-reinstall {candidate.distribution}",
        )
    path = Path(next(iter(spec.submodule_search_locations))) / manifest.NAME
    return memory.read(path, plugin=candidate.distribution, version=candidate.version)


def _stamp(candidate: Candidate, path: Path) -> str:
    """Changes whenever the plugin or what it could import may have changed."""
    package = path.parent
    newest = max((file.stat().st_mtime_ns for file in package.glob("*.py")), default=0)
    return f"{candidate.version} {newest} {sys.prefix}"
