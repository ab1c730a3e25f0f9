"""HTML that notebooks show for results of the Python API: tables and documents, escaped, without scripts or network.

A result's class defines ``_repr_html_`` (the method that Jupyter calls) with these functions.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

COLORS = {
    "pass": "#15803d", "promoted": "#15803d", "ok": "#15803d",
    "fail": "#b91c1c", "refused": "#b91c1c", "drift": "#b91c1c", "degraded": "#b91c1c", "invalid_schema": "#b91c1c",
    "inconclusive": "#a16207",
}  # fmt: skip


def render_table(header: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> str:
    """Returns an HTML table; every cell is escaped, None is shown as a dash, states have a color."""
    head = "".join(f"<th style='text-align:left'>{escape(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    title = f"<caption style='text-align:left;font-weight:bold'>{escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def render_fields(fields: Mapping[str, object]) -> str:
    """Returns an HTML table with one row a field; fields that are None or empty are left out."""
    return render_table(("", ""), [(name, value) for name, value in fields.items() if value not in (None, "")])


def render_document(html: str) -> str:
    """Returns a sandboxed frame with a whole HTML document, so that its styles do not affect the notebook."""
    return (
        f'<iframe sandbox srcdoc="{escape(html, quote=True)}" width="100%" height="600" '
        'style="border:1px solid #ddd"></iframe>'
    )


def _cell(value: object) -> str:
    text = "–" if value is None else str(value)
    color = COLORS.get(text)
    style = f"text-align:left;color:{color};font-weight:bold" if color else "text-align:left"
    return f"<td style='{style}'>{escape(text)}</td>"
