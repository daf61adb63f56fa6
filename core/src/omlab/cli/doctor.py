"""``omlab doctor``."""

from __future__ import annotations

import json
import platform
import traceback
from typing import Any

import click

from omlab import __version__
from omlab.errors import OmlabError
from omlab.vocabulary import Kind


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def command(as_json: bool) -> int:
    """Import every plugin, check every engine library and folder, and show the traceback of what fails.

    The exit code is 1 if anything is broken.
    """
    from omlab.memory import usable_cpus
    from omlab.plugins import Registry
    from omlab.settings import Settings

    settings = Settings.from_environment()
    Registry(settings.failures_file).forget_failures()
    registry = Registry.discover(failures_file=settings.failures_file)
    problems: list[dict[str, Any]] = [
        {"plugin": b.distribution, "reason": b.reason, "remedy": b.remedy, "traceback": b.details}
        for b in registry.broken
    ]
    for plugin in registry.plugins.values():
        try:
            registry.import_plugin(plugin)
        except OmlabError as error:
            trace = "".join(traceback.format_exception(error.__cause__ or error))
            problems.append(
                {"plugin": plugin.distribution, "reason": error.message, "remedy": error.remedy, "traceback": trace}
            )
    overlooked = _overlooked(registry)
    if overlooked:
        problems.append(
            {
                "plugin": ", ".join(overlooked),
                "reason": "Python finds these plugins, omlab does not",
                "remedy": "They may lie in a zip archive or come by an importer of their own: use pip",
                "traceback": "",
            }
        )
    engines = {}
    for name in registry.cards(Kind.ENGINE):
        try:
            backend = registry.load(Kind.ENGINE, name)
            reason = backend.unavailable()
            engines[name] = f"not usable: {reason}" if reason else f"version {backend.version()}"
        except OmlabError as error:
            engines[name] = f"not usable: {error}"
    facts = {
        "omlab": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "usable processors": usable_cpus(),
        "home": str(settings.home),
        "home writable": _writable(settings),
        "offline": settings.offline,
    }
    if as_json:
        click.echo(json.dumps({"facts": facts, "engines": engines, "problems": problems}, indent=2))
        return 1 if problems else 0
    for key, value in facts.items():
        click.echo(f"{key:18} {value}")
    click.secho("engines", bold=True)
    for key, value in engines.items():
        click.echo(f"  {key:14} {value}")
    click.secho("plugins", bold=True)
    for plugin in registry.plugins.values():
        if plugin.distribution not in {p["plugin"] for p in problems}:
            click.echo(f"  {plugin.distribution} {plugin.version}: " + click.style("good", fg="green"))
    for problem in problems:
        click.echo(
            f"  {problem['plugin']}: " + click.style("broken", fg="red") + f": {problem['reason']}. {problem['remedy']}"
        )
        if problem["traceback"]:
            click.echo("    " + problem["traceback"].rstrip().replace("\n", "\n    "))
    return 1 if problems else 0


def _overlooked(registry: Any) -> list[str]:
    """Entry points that the general library finds and our fast search does not."""
    from importlib_metadata import entry_points

    known = set(registry.plugins) | {broken.plugin for broken in registry.broken}
    return sorted({entry.name for entry in entry_points(group="omlab")} - known)


def _writable(settings: Any) -> bool:
    import tempfile

    try:
        settings.home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=settings.home):
            return True
    except OSError:
        return False
