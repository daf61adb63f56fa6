"""A report as one HTML page that needs nothing else and reads well on paper."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from omlab.report import jsonable

if TYPE_CHECKING:
    from omlab.report import Report, Value

#: Rows of single cases that a page shows; the JSON has all.
_CASES = 200
_RIGHT = ' class="n"'
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1c1e24;max-width:62rem;margin:2.5rem auto;padding:0 1.5rem}
h1{font-size:1.6rem;margin:0 0 .2rem}h2{font-size:1.1rem;margin:2.2rem 0 .6rem}
p.sub,td.why,caption{color:#70768a}img{max-width:100%;margin:1rem 0}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.92em}
th{text-align:left;border-bottom:2px solid #1c1e24;padding:.25rem .7rem .25rem 0}
td{border-bottom:1px solid #dee0e6;padding:.25rem .7rem .25rem 0;vertical-align:top}
td.n,th.n{text-align:right}.note{border-left:3px solid #d59a00;padding:.2rem .8rem;margin:.4rem 0;background:#fdf7e6}
.bar{position:relative;top:.45rem;height:9px;width:9rem;background:#eef0f4;border-radius:5px}
.bar i{position:absolute;top:0;bottom:0;background:#a6c4e8;border-radius:5px}
.bar b{position:absolute;top:-2px;bottom:-2px;width:3px;background:#245ca8;border-radius:2px}
pre{white-space:pre-wrap;font-size:.85em;background:#f6f7f9;padding:.8rem 1rem;border-radius:6px}
@media print{body{max-width:none;margin:0;font-size:11px}tr{break-inside:avoid}h2{break-after:avoid}}
"""


def html(report: Report, *, rows: str = "Single cases") -> str:
    """The page: figures with their intervals, notes, the picture, single cases, and what is needed to do it again.

    ``rows`` is the heading of the table of single cases."""
    title = report.title or report.evaluator
    parts = [f"<h1>{escape(title)}</h1>", f'<p class="sub">{escape(_subtitle(report))}</p>']
    parts += [f'<p class="note">{escape(text)}</p>' for text in report.warnings]
    if report.table:
        parts.append(_together(report.table))
    parts.append(_figures(report.summary))
    picture = _picture(report, title)
    if picture:
        parts.append(f'<img alt="{escape(title)}" src="data:image/png;base64,{picture}">')
    if report.cases:
        parts.append(_cases(report.cases, rows))
    again = {"evaluator": report.evaluator, "options": report.options, "environment": report.environment}
    parts += [
        "<h2>How it was made</h2>",
        f"<pre>{escape(json.dumps(jsonable(again), indent=2, ensure_ascii=False))}</pre>",
    ]
    return document(title, "\n".join(parts))


def document(title: str, body: str) -> str:
    """A whole page around ``body``, which is HTML already."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def _subtitle(report: Report) -> str:
    made = report.environment
    words = [str(made[key]) for key in ("model", "variant", "dataset", "split") if made.get(key)]
    return " · ".join([report.evaluator, *words])


def _together(rows: Sequence[Sequence[str]]) -> str:
    """A table of texts, its first row the headings; all columns but the first are figures."""
    lines = []
    for number, row in enumerate(rows):
        tag = "td" if number else "th"
        cells = [f"<{tag}{_RIGHT if column else ''}>{escape(text)}</{tag}>" for column, text in enumerate(row)]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _figures(summary: Mapping[str, Value]) -> str:
    shares = {
        name
        for name, value in summary.items()
        if value.value is not None
        and value.low is not None
        and value.high is not None
        and 0 <= value.low <= value.high <= 1
    }
    rows = []
    for name, value in summary.items():
        if value.value is None:
            why = f'<td class="why" colspan="3">undefined: {escape(value.undefined)}</td>'
            rows.append(f'<tr><td>{escape(name)}</td>{why}<td class="n">{value.n}</td></tr>')
            continue
        number = f"{value.value:.5g} {escape(value.unit)}".strip()
        bounds, bar = "", ""
        if value.low is not None and value.high is not None:
            bounds = f"{value.low:.4g} to {value.high:.4g}"
            if name in shares:
                left, width = 100 * value.low, 100 * (value.high - value.low)
                bar = (
                    f'<div class="bar"><i style="left:{left:.1f}%;width:{max(width, 0.5):.1f}%"></i>'
                    f'<b style="left:calc({100 * value.value:.1f}% - 1px)"></b></div>'
                )
        rows.append(
            f'<tr><td>{escape(name)}</td><td class="n">{number}</td><td>{bounds}</td><td>{bar}</td>'
            f'<td class="n">{value.n}</td></tr>'
        )
    head = '<tr><th>figure</th><th class="n">value</th><th>95 % interval</th><th></th><th class="n">cases</th></tr>'
    return f"<table>{head}{''.join(rows)}</table>"


def _picture(report: Report, title: str) -> str:
    if report.illustration is None:
        return ""
    file = io.BytesIO()
    report.illustration(title).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def _cases(cases: Sequence[Mapping[str, Any]], heading: str) -> str:
    shown = cases[:_CASES]
    columns = list(dict.fromkeys(key for row in shown for key in row))
    numeric = {column for column in columns if all(_number(row.get(column)) for row in shown)}
    head = "".join(f"<th{_RIGHT if column in numeric else ''}>{escape(str(column))}</th>" for column in columns)
    rows = "".join(f"<tr>{''.join(_cells(row.get(column) for column in columns))}</tr>" for row in shown)
    more = f" (the first {_CASES} of {len(cases)}; the JSON file has all)" if len(cases) > _CASES else ""
    return f"<h2>{escape(heading)}{more}</h2><table><tr>{head}</tr>{rows}</table>"


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cells(values: Iterable[Any]) -> Iterable[str]:
    for value in values:
        if not _number(value):
            plain = jsonable(value)
            text = "" if plain is None else plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False)
            yield f"<td>{escape(text)}</td>"
        else:
            yield f'<td class="n">{value:.4g}</td>'
