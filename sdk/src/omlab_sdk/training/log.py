"""The record of a training: JSON lines, and event files for TensorBoard where tensorboardX is installed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omlab.files import write_text
from omlab.report import jsonable

LINES = "log.jsonl"
EVENTS = "tensorboard"


class Log:
    """``log.jsonl`` with a line a step and a line an epoch, each written as it comes.

    Parameters
    ----------
    folder : where it is kept; without one nothing is written.
    step : last step of the state that a training goes on from; what the log has beyond it is taken back.
    """

    def __init__(self, folder: Path | None, step: int = 0) -> None:
        self._file: Any = None
        self._events: Any = None
        if folder is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / LINES
        kept = [line for line in _lines(path) if line.get("step", 0) <= step] if step else []
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed by close())
        if find_spec("tensorboardX"):
            from tensorboardX import SummaryWriter

            self._events = SummaryWriter(str(folder / EVENTS), purge_step=step + 1 if step else None)

    def write(self, step: int, figures: Mapping[str, Any]) -> None:
        """One line, and each number as a curve."""
        if self._file is None:
            return
        self._file.write(json.dumps({"step": step, **jsonable(figures)}) + "\n")
        self._file.flush()
        if self._events is not None:
            for name, value in figures.items():
                if isinstance(value, int | float) and name != "epoch":
                    self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        if self._file is not None:
            self._file.close()
        if self._events is not None:
            self._events.close()


def _lines(path: Path) -> list[dict[str, Any]]:
    """Lines of a log; one that was being written when the power went is left out."""
    found = []
    for line in path.read_text("utf-8").splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            break
    return found
