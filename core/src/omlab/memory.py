"""Peak and available memory and usable processors of this process, without extra libraries."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def peak_mb() -> float:
    """Greatest resident memory of this process so far, in MB (10^6 bytes); 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # not on Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def available_bytes() -> int | None:
    """Memory that this process can still take without swapping: that of the machine, or of its control group where
    that is less; ``None`` where the system does not tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            free = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return None  # not on Linux
    try:
        folder = Path("/sys/fs/cgroup")
        limit, used = (int((folder / f"memory.{name}").read_text("ascii")) for name in ("max", "current"))
        return min(free, max(0, limit - used))
    except (OSError, ValueError):
        return free  # no control group, or none with a limit


def usable_cpus() -> int:
    """Processors that this process may use: its affinity mask and, on Linux, its control group's quota; not the
    host's count."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
        if quota != "max":
            count = min(count, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        return count  # no control group, or none with a quota
    return count
