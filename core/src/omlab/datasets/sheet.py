"""The contact sheet of a dataset, and a page to read and print with its card, figures and that sheet."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from PIL import Image as Pillow
from PIL import ImageDraw

from omlab.cards import DatasetCard
from omlab.datasets.statistics import Read, Statistics
from omlab.page import document
from omlab.results import Classification
from omlab.results.picture import BACKGROUND, FAINT, GAP, MARGIN, TEXT, _font, thumbnail

SIDE, COLUMNS, CAPTION = 220, 6, 40


def contact_sheet(read: Sequence[Read], *, title: str, note: str = "") -> Pillow.Image | None:
    """Thumbnails of cases with the outlines of their references, name and class below; ``None`` where no case has a
    picture."""
    tiles = [(one, found) for one in read if (found := thumbnail(one.case, one.truth, SIDE)) is not None]
    if not tiles:
        return None
    columns = min(COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    top = 78
    width = 2 * MARGIN + columns * SIDE + (columns - 1) * GAP
    sheet = Pillow.new("RGB", (max(width, 460), top + rows * (SIDE + CAPTION + GAP) + MARGIN - GAP), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, 18), _fitting(title, sheet.width - 2 * MARGIN, 24), fill=TEXT, font=_font(24))
    pen.text((MARGIN, 49), _fitting(note, sheet.width - 2 * MARGIN, 15), fill=FAINT, font=_font(15))
    for number, (one, picture) in enumerate(tiles):
        left = MARGIN + (number % columns) * (SIDE + GAP)
        upper = top + (number // columns) * (SIDE + CAPTION + GAP)
        sheet.paste(picture, (left, upper))
        pen.text((left, upper + SIDE + 5), _fitting(one.item.name, end=True), fill=TEXT, font=_font(13))
        pen.text((left, upper + SIDE + 21), _fitting(_said(one)), fill=FAINT, font=_font(13))
    return sheet


def _said(one: Read) -> str:
    """What the reference says, in a few words."""
    from omlab.results import headline

    if isinstance(one.truth, Classification):
        found = [name for name, p in zip(one.truth.classes, one.truth.probabilities, strict=True) if p >= 0.5]
        return ", ".join(found) or "none of the classes"
    return f"{one.item.split}, no reference" if one.truth is None else headline(one.truth)


def _fitting(text: str, width: float = SIDE, size: int = 13, *, end: bool = False) -> str:
    """As much of the text as there is room for: from its end for names of cases, which differ there."""
    if _font(size).getlength(text) <= width:
        return text
    while text and _font(size).getlength(text + "...") > width:
        text = text[1:] if end else text[:-1]
    return f"...{text}" if end else f"{text}..."


def page(card: DatasetCard, statistics: Statistics, steps: Sequence[str], sheet: Pillow.Image | None, name: str) -> str:
    """The card, figures and contact sheet as one HTML page."""
    title = card.title or card.name
    parts = [f"<h1>{escape(title)}</h1>", f'<p class="sub">{escape(name)}</p>', f"<p>{escape(card.summary)}</p>"]
    if card.limits:
        parts.append(f'<p class="note">{escape(card.limits)}</p>')
    if sheet is not None:
        file = io.BytesIO()
        sheet.save(file, format="PNG", compress_level=6)
        data = base64.b64encode(file.getvalue()).decode()
        parts.append(f'<img alt="cases of {escape(title)}" src="data:image/png;base64,{data}">')
    for heading, table in tables(statistics).items():
        parts += [f"<h2>{escape(heading)}</h2>", _table(table)]
    parts += ["<h2>Card</h2>", _table({key: {"": value} for key, value in facts(card).items()})]
    if steps:
        parts += ["<h2>How to obtain it</h2>", f"<ol>{''.join(f'<li>{escape(step)}</li>' for step in steps)}</ol>"]
    return document(title, "\n".join(parts))


def facts(card: DatasetCard) -> dict[str, str]:
    """The card as lines: name -> text."""
    licence = card.licence
    commercial = {True: "commercial use allowed", False: "no commercial use", None: ""}[licence.commercial]
    terms = ", ".join(text for text in (licence.spdx, commercial, licence.note, licence.url) if text)
    found = {
        "task": ", ".join(card.task), "modality": ", ".join(card.modality), "licence": terms,
        "splits": ", ".join(f"{split} ({card.counts[split]})" if split in card.counts else split
                            for split in card.splits or tuple(card.counts)),
        "labels": ", ".join(f"{label.value} {label.name}" for label in card.labels),
        "protocol": card.protocol, "limits": card.limits, "homepage": card.homepage, "upstream": card.upstream,
        "citation": ". ".join(t for t in (card.citation.text, card.citation.doi, card.citation.url) if t)
        if card.citation else "",
        "reported": "; ".join(f"{r.metric} {r.value:g} on {r.on} [{r.source}]" for r in card.reported),
    }  # fmt: skip
    return {key: text for key, text in found.items() if text}


def tables(statistics: Statistics) -> dict[str, dict[str, dict[str, Any]]]:
    """Heading -> row -> column -> figure."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    found["Cases"] = {
        split: {"cases": count, "patients or studies": statistics.groups.get(split, "")}
        for split, count in statistics.splits.items()
    }
    names = list(dict.fromkeys(name for of in statistics.classes.values() for name in of))
    if names:
        rows = {name: {s: of.get(name, 0) for s, of in statistics.classes.items()} for name in names}
        if any(statistics.none.values()):
            rows["none of them"] = {split: statistics.none.get(split, 0) for split in statistics.classes}
        found["Classes"] = rows
    if statistics.measured:
        found[f"Sample of {statistics.sampled} cases"] = statistics.measured  # type: ignore[assignment]
    for heading, table in statistics.tables.items():
        found[heading] = {str(row): {"": value} for row, value in table.items()}
    return found


def _table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    head = "".join(f'<th class="n">{escape(str(c))}</th>' for c in columns)
    lines = [f"<tr><th></th>{head}</tr>"] if any(columns) else []
    for name, row in rows.items():
        cells = "".join(_cell(row.get(column, "")) for column in columns)
        lines.append(f"<tr><td>{escape(str(name))}</td>{cells}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _cell(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f'<td class="n">{shown(value)}</td>'
    return f"<td>{escape(str(value))}</td>"


def shown(value: Any) -> str:
    """A figure as it is printed: whole numbers whole, others to four digits."""
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e9 else f"{value:.4g}"
    return str(value)
