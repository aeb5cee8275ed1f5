"""The command `models`: what can be loaded by name, and what it takes by arithmetic."""

import json

from .catalogue import KNOWN, PRECISIONS
from .loading import gib

NOTE = "GiB of weights by arithmetic, nothing loaded: int8 and int4 of the decoder's linear layers, the rest bfloat16."


def command(arguments) -> None:
    """Print the table, or the rows as JSON."""
    rows = [known.record() for known in KNOWN.values()]
    print(json.dumps(rows) if arguments.json else table(rows))


def table(rows: list[dict]) -> str:
    """Rows as aligned text."""
    head = ["model", "parameters", *PRECISIONS, "views", "visual tokens", "CLIP text tower", "weights from"]
    lines = [head, *map(_cells, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*text, "", NOTE])


def _cells(row: dict) -> list[str]:
    sizes = [gib(count) for count in row["bytes_by_arithmetic"].values()]
    tokens = f"{row['most_visual_tokens']:,}" if row["views"] == 1 else f"up to {row['most_visual_tokens']:,}"
    views = "1" if row["views"] == 1 else f"up to {row['views']}"
    return [row["name"], f"{row['parameters'] / 1e6:,.0f} M", *sizes, views, tokens, row["clip"], row["place"]]
