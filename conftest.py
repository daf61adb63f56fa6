"""Tests side by side, and without calls to anyone."""

from __future__ import annotations

import os
import sys


def _keep_to_a_share() -> None:
    """Tie a worker of pytest-xdist, and what it starts, to its share of the processors.

    Engines take as many threads as there are processors to use. Those of several workers on the same processors would
    wait for one another, spinning, and small networks would take many times as long.
    """
    worker, workers = os.environ.get("PYTEST_XDIST_WORKER"), int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if worker is None or not hasattr(os, "sched_setaffinity"):
        return
    processors = sorted(os.sched_getaffinity(0))
    share = max(1, len(processors) // workers)
    first = int(worker.removeprefix("gw")) * share % len(processors)
    os.sched_setaffinity(0, processors[first : first + share])


_keep_to_a_share()
# Tests import OpenVINO themselves, and it would report that over the network.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
