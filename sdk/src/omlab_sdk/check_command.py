"""``omlab check``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import attrs
import click

if TYPE_CHECKING:
    from omlab_sdk.contract import Finding, Subject

COLOURS = {"good": "green", "broken": "red", "skipped": "yellow"}


@click.command("check")
@click.argument("plugin")
@click.option("--full", is_flag=True, help="Take networks at their published size, which may take long.")
@click.option("--variant", "variants", multiple=True, help="Only this variant, several allowed.")
@click.option("--only", multiple=True, help="Only this check, several allowed.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def command(plugin: str, full: bool, variants: tuple[str, ...], only: tuple[str, ...], as_json: bool) -> int:
    """Run the contract of PLUGIN: its name, distribution, a contribution of it, or its folder.

    Networks are checked in the small size that the plugin gives for it, if it does, and the end tells so; --full takes
    the published size, with the published weights where they are here. The exit code is 1 if a rule is broken. Skipped
    checks say why they could not look.
    """
    import tempfile
    from pathlib import Path

    from omlab.errors import UsageError
    from omlab_sdk.contract import CHECKS, run_checks, subject_of

    unknown = set(only) - {check.name for check in CHECKS}
    if unknown:
        names = ", ".join(check.name for check in CHECKS)
        raise UsageError(f"there is no check '{sorted(unknown)[0]}'", remedy=f"The checks are: {names}")
    findings = []
    with tempfile.TemporaryDirectory(prefix="omlab-check-") as folder:
        subject = subject_of(plugin, Path(folder), full=full, variants=variants)
        for finding in run_checks(subject, only):
            findings.append(finding)
            if not as_json:
                _show(finding)
        broken = sum(finding.status == "broken" for finding in findings)
        if as_json:
            _dump(subject, findings)
        else:
            _sum_up(subject, findings, plugin)
    return 1 if broken else 0


def _show(finding: Finding) -> None:
    from omlab.cli.text import seconds

    mark = click.style(f"{finding.status:8}", fg=COLOURS[finding.status])
    size = f"{finding.size} size, " if finding.size else ""
    click.echo(f"{mark}{finding.check:12} {finding.detail} ({size}{seconds(finding.seconds)})")
    if finding.remedy:
        click.echo(f"{'':21}{finding.remedy}")


def _sum_up(subject: Subject, findings: list[Finding], plugin: str) -> None:
    from omlab_sdk.contract.models import described

    count = {status: sum(f.status == status for f in findings) for status in COLOURS}
    models = described(subject)
    for one in models:
        click.echo(f"looked at {one.text}")
    click.echo(f"{count['good']} good, {count['skipped']} skipped, {count['broken']} broken")
    if any(one.size == "small" for one in models):
        click.echo(
            "The published size was outlined, not run. To run it: "
            f"omlab check {plugin} --full{''.join(f' --variant {name}' for name in subject.variants)}"
        )


def _dump(subject: Subject, findings: list[Finding]) -> None:
    from omlab_sdk.contract.models import described

    found = {
        "plugin": subject.plugin.name,
        "networks": [attrs.asdict(one) for one in described(subject)],
        "findings": [attrs.asdict(finding) for finding in findings],
    }
    click.echo(json.dumps(found, indent=2))
