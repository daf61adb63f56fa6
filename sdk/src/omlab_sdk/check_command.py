"""``omlab check``."""

from __future__ import annotations

import json

import attrs
import click

COLOURS = {"good": "green", "broken": "red", "skipped": "yellow"}


@click.command("check")
@click.argument("plugin")
@click.option("--only", multiple=True, help="Only this check, several allowed.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def command(plugin: str, only: tuple[str, ...], as_json: bool) -> int:
    """Run the contract of PLUGIN: its name, distribution, a contribution of it, or its folder.

    The exit code is 1 if a rule is broken. Skipped checks say why they could not look.
    """
    from omlab.cli.text import seconds
    from omlab.errors import UsageError
    from omlab_sdk.contract import CHECKS, check_plugin

    unknown = set(only) - {check.name for check in CHECKS}
    if unknown:
        names = ", ".join(check.name for check in CHECKS)
        raise UsageError(f"there is no check '{sorted(unknown)[0]}'", remedy=f"The checks are: {names}")
    findings = []
    for finding in check_plugin(plugin, only):
        findings.append(finding)
        if not as_json:
            mark = click.style(f"{finding.status:8}", fg=COLOURS[finding.status])
            click.echo(f"{mark}{finding.check:12} {finding.detail} ({seconds(finding.seconds)})")
            if finding.remedy:
                click.echo(f"{'':21}{finding.remedy}")
    broken = [f for f in findings if f.status == "broken"]
    if as_json:
        click.echo(json.dumps([attrs.asdict(f) for f in findings], indent=2))
    else:
        skipped = sum(f.status == "skipped" for f in findings)
        click.echo(f"{len(findings) - len(broken) - skipped} good, {skipped} skipped, {len(broken)} broken")
    return 1 if broken else 0
