"""Whole processes: wall time and peak memory as the operating system accounts for them."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import attrs


@attrs.frozen
class Measured:
    """One finished process: wall seconds, and greatest resident memory in MB (10^6 bytes)."""

    seconds: float
    peak_mb: float


def measure(
    command: Sequence[str], *, environment: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Measured:
    """Run a command and account for it. Raises ``RuntimeError`` with its output if it fails."""
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}, cwd=cwd
    ) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command[:4])} ... failed:\n{output.decode(errors='replace')[-2000:]}")
    return Measured(seconds, usage.ru_maxrss * 1024 / 1e6)


def interleaved(commands: Mapping[str, Sequence[str]], rounds: int, **how: object) -> dict[str, list[Measured]]:
    """Rounds of every command in turn; one round before is not counted."""
    found: dict[str, list[Measured]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            measured = measure(command, **how)  # type: ignore[arg-type]
            if number:
                found[name].append(measured)
    return found


def median(values: Sequence[Measured]) -> Measured:
    """Median of each figure."""
    return Measured(statistics.median(v.seconds for v in values), statistics.median(v.peak_mb for v in values))
