"""A table that sorts in the browser: columns and rows as JSON, every cell written as text, rows that can be clicked."""

import json
from pathlib import Path

import gradio as gr

SCRIPT = Path(__file__).with_name("table.js").read_text(encoding="utf-8")
TEMPLATE = '<div class="sweep-sheet" tabindex="0" role="region" aria-label="${label}"></div>'


def table(label: str, value: str | None = None, **look) -> gr.HTML:
    """A place for a table, `filled(...)` its value; `.row(...)` is the event, `event.key` the key of the row."""
    return gr.HTML(value, label=label, html_template=TEMPLATE, js_on_load=SCRIPT, apply_default_css=False, **look)


def filled(columns: list[str], rows: list[list], keys: list[str] | None = None) -> str:
    """What a table shows: a cell is text, or (text, number to sort by); a cell of None is empty and sorts last.

    With `keys`, one a row, rows can be clicked; an empty key cannot.
    """
    cells = [[cell if isinstance(cell, tuple) else (cell, None) for cell in row] for row in rows]
    return json.dumps({"columns": columns, "rows": cells, "keys": keys or [""] * len(rows)})
