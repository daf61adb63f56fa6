"""``omlab plugins``: list, freeze, sync."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click

from omlab.cli.main import registry_of
from omlab.errors import InputError, MissingDependency, OmlabError
from omlab.installed import GROUP


@click.group("plugins")
def command() -> None:
    """List the installed plugins; freeze the set to a file and sync an environment to it."""


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
@click.pass_context
def list_(context: click.Context, as_json: bool) -> None:
    """List the installed plugins and what each contributes."""
    from omlab.cli.text import table

    registry = registry_of(context)
    if as_json:
        rows = [
            {
                "plugin": p.name,
                "distribution": p.distribution,
                "version": p.version,
                "contributes": [f"{kind.value} {name}" for kind, name in p.contributions],
            }
            for p in registry.plugins.values()
        ]
        broken = [{"plugin": b.plugin, "distribution": b.distribution, "reason": b.reason} for b in registry.broken]
        click.echo(json.dumps({"plugins": rows, "broken": broken}, indent=2))
        return
    cells = [
        [p.distribution, p.version, ", ".join(f"{name}" for _, name in p.contributions)]
        for p in registry.plugins.values()
    ]
    cells += [[b.distribution, b.version, f"BROKEN: {b.reason}"] for b in registry.broken]
    click.echo(table(["distribution", "version", "contributes"], cells))


def requirements() -> list[str]:
    """A pip requirement for every distribution with a plugin, pinned, sorted."""
    from importlib_metadata import distribution, entry_points

    names = {entry.dist.name for entry in entry_points(group=GROUP) if entry.dist is not None}
    lines = []
    for name in sorted(names):
        found = distribution(name)
        direct = found.read_text("direct_url.json")
        if direct:
            origin = json.loads(direct)
            editable = "-e " if origin.get("dir_info", {}).get("editable") else ""
            url = origin["url"]
            if "vcs_info" in origin:
                vcs = origin["vcs_info"]
                url = f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
            path = Path(url.removeprefix("file://"))
            lines.append(f"{editable}{path}" if editable else f"{name} @ {url}")
        else:
            lines.append(f"{name}=={found.version}")
    return lines


@command.command("freeze")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="File to write. [standard output]")
def freeze(out: Path | None) -> None:
    """Print the plugins of this environment as pip requirements, pinned."""
    text = "\n".join(requirements()) + "\n"
    if out is None:
        click.echo(text, nl=False)
        return
    from omlab.files import write_text

    write_text(out, text)
    click.echo(f"wrote {out}", err=True)


@command.command("sync")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Only tell what would be installed.")
@click.option("--upgrade", is_flag=True, help="Take the newest versions instead of the frozen ones.")
def sync(file: Path, dry_run: bool, upgrade: bool) -> int:
    """Install what FILE (of `omlab plugins freeze`) names and is not here, with your own pip configuration."""
    try:
        wanted = [line.strip() for line in file.read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{file} cannot be read: {error}", remedy="Make it with: omlab plugins freeze -o FILE"
        ) from None
    wanted = [line for line in wanted if line and not line.startswith("#")]
    if upgrade:
        wanted = [line.partition("==")[0] if "==" in line else line for line in wanted]
    here = set(requirements())
    absent = [line for line in wanted if line not in here]
    if not absent:
        click.echo("nothing to do: all plugins of the file are here")
        return 0
    for line in absent:
        click.echo(("would install " if dry_run else "installing ") + line)
    if dry_run:
        return 0
    command_line = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    command_line += ["--upgrade"] if upgrade else []
    for line in absent:
        command_line += ["-e", line.removeprefix("-e ")] if line.startswith("-e ") else [line]
    done = subprocess.run(command_line, check=False, capture_output=True, text=True)
    if done.returncode:
        if "No module named pip" in done.stderr:
            raise MissingDependency(
                "installing plugins needs pip, which this environment lacks", remedy="python -m ensurepip"
            )
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
        raise OmlabError(f"pip: {errors[-1].removeprefix('ERROR: ')}", remedy="Nothing else was changed")
    return 0
