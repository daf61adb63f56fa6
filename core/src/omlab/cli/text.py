"""Plain text for terminals: tables that fit, sizes and times that read well."""

from __future__ import annotations

import shutil
from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, indent: str = "  ") -> str:
    """Columns padded to their widest cell; the last column is cut where the terminal ends."""
    cells = [list(map(str, head)), *[list(map(str, row)) for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    terminal = shutil.get_terminal_size((160, 24)).columns
    lines = []
    for row in cells:
        line = indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        lines.append(line if len(line) <= terminal else line[: max(terminal - 1, 1)] + "…")
    return "\n".join(lines)


def size(count: float | None) -> str:
    """Bytes in the unit that reads best, ``8.7 MB``."""
    if count is None:
        return "size unknown"
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def seconds(value: float) -> str:
    """``0.42 s``, ``12.3 s``, ``3 min 05 s``."""
    if value < 60:
        return f"{value:.2f} s" if value < 10 else f"{value:.1f} s"
    return f"{int(value // 60)} min {int(value % 60):02d} s"
