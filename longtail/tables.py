"""The papers' cost tables, every printed cell beside the arithmetic, and what it should be where print is inconsistent.

Sources: tables 6 of Sparsity Meets Similarity (2409.01162) and of Recoverable Compression (2409.01179), table 2 of
PruMerge (2403.15388).
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal
from functools import cached_property

from .cost import MODELS, VIEWER, prefill

COLUMNS = ("FLOPs T", "prefill ms", "moved GB", "written GB")
AGREES = {
    "": "rounded",
    "t": "truncated, not rounded",
    "z": "one decimal, a zero behind it",
    "r": "rounded from a rounded number",
    "u": "less than a unit of the last digit off",
}
INCONSISTENT = "!"


@dataclass(frozen=True)
class Row:
    """One printed row. `tokens`: what the numbers hold, text included; `why`: column -> how a wrong cell came about."""

    name: str
    model: str
    bits: int
    tokens: int
    printed: tuple[str, str, str, str]
    why: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """A printed number and the same by arithmetic; `mark`: a key of AGREES, or INCONSISTENT with the reason `why`."""

    row: Row
    column: int
    ours: float
    mark: str

    @property
    def printed(self) -> str:
        return self.row.printed[self.column]

    @property
    def should(self) -> str:
        """Our number with the printed one's decimals."""
        return f"{self.ours:.{_places(self.printed)}f}"

    def record(self) -> dict:
        """Plain JSON values."""
        return {
            **{"row": self.row.name, "model": self.row.model, "bits": self.row.bits, "tokens": self.row.tokens},
            **{"column": COLUMNS[self.column], "printed": self.printed, "ours": self.ours},
            **{"agrees": self.mark in AGREES, "how": AGREES.get(self.mark) or self.row.why[self.column]},
        }


@dataclass(frozen=True)
class Table:
    """A paper's table; the tool's hardware and revision that give its numbers; what its token counts tell."""

    paper: str
    gpu: str
    rev: str
    note: str
    rows: tuple[Row, ...]

    @cached_property
    def cells(self) -> list[Cell]:
        """Every cell, row by row."""
        return [cell for row in self.rows for cell in self._of(row)]

    def _of(self, row: Row) -> Iterator[Cell]:
        cost = prefill(MODELS[row.model], VIEWER[self.gpu], row.tokens, row.bits, rev=self.rev)
        ours = (cost.flops * row.bits / 16e12, 1e3 * cost.seconds, cost.moved / 1e9, cost.written / 1e9)
        wide = next(r for r in self.rows if (r.model, r.tokens, r.bits) == (row.model, row.tokens, 16))
        for column, value in enumerate(ours):
            scaled = Decimal(wide.printed[0]) * row.bits / 16 if column == 0 else None
            yield Cell(row, column, value, mark(row.printed[column], value, scaled))


def mark(printed: str, ours: float, scaled: Decimal | None = None) -> str:
    """How `printed` follows from `ours`; `scaled`: the printed FP16 number times bits / 16, where print made that."""
    unit, value = 10.0 ** -_places(printed), float(printed)
    if abs(ours - value) <= unit / 2:
        return ""
    if printed[-1] == "0" and _places(printed) > 1 and mark(printed[:-1], ours) == "":
        return "z"
    if 0 <= ours - value < unit:
        return "t"
    if abs(ours - value) >= unit:
        return INCONSISTENT
    twice = scaled is not None and scaled.quantize(Decimal(str(unit)), ROUND_HALF_UP) == Decimal(printed)
    return "r" if twice else "u"


def _places(printed: str) -> int:
    return len(printed.partition(".")[2])


WEIGHTS = "Print has the weights alone (13.2, 6.6, 3.3 GB) beside baselines of all traffic: a saving of 32 %, not 41 %."
QUARTER = "Print has a quarter of FP16's 9.7 ms; INT4 computes at the INT8 peak and is bound by it: 3.6 x, not 5.9 x."
COPIED = "Print repeats the activations' digits; a quarter of FP16's 0.91 is 0.23."
S, L = "LLaVA-1.5-7B", "LLaVA-1.5-13B"

TABLES = {
    "main": Table(
        "Sparsity Meets Similarity (2409.01162), table 6", "A100", "new",
        "636 = 576 visual + 60 text; FP16 and INT8 together hold 180 = 120 visual + 60 text and no other count. The "
        "text says 127 visual tokens, which would print 2.4 T, 9.8 ms, 15.2 GB, 0.8 GB in FP16.",
        (
            Row("LLaVA-1.5", S, 16, 636, ("8.5", "30.3", "22.2", "4.1")),
            Row("LongTail", S, 16, 180, ("2.3", "9.7", "13.2", "0.8"), {2: WEIGHTS}),
            Row("LLaVA-1.5", S, 8, 636, ("4.3", "15.2", "11.1", "2.0")),
            Row("LongTail", S, 8, 180, ("1.2", "4.9", "6.6", "0.4"), {2: WEIGHTS}),
            Row("LLaVA-1.5", S, 4, 636, ("2.1", "14.2", "5.6", "1.0")),
            Row("LongTail", S, 4, 180, ("0.6", "2.4", "3.3", "0.2"), {1: QUARTER, 2: WEIGHTS}),
        ),
    ),
    "recoverable": Table(
        "Recoverable Compression (2409.01179), table 6", "A100", "new",
        "636 = 576 visual + 60 text, 117 = 57 visual + 60 text: 57 is a tenth of 576, as its text says.",
        (
            Row("LLaVA-1.5", S, 16, 636, ("8.5", "30.3", "22.2", "4.1")),
            Row("Recoverable", S, 16, 117, ("1.5", "9.2", "14.4", "0.49")),
            Row("LLaVA-1.5", S, 8, 636, ("4.3", "15.2", "11.1", "2.0")),
            Row("Recoverable", S, 8, 117, ("0.8", "4.6", "7.2", "0.24")),
            Row("LLaVA-1.5", S, 4, 636, ("2.1", "14.2", "5.56", "1.0")),
            Row("Recoverable", S, 4, 117, ("0.4", "2.6", "3.6", "0.12")),
        ),
    ),
    "prumerge": Table(
        "LLaVA-PruMerge (2403.15388), table 2", "V100", "old",
        "700 and 70 tokens in all fit, no other count does; the text says 576 + 40 and 40 + 40, for which the ratios "
        "are 7.9 x in FLOPs and 5.0 x in time, not 10.2 x and 5.8 x.",
        (
            Row("LLaVA-1.5", S, 16, 700, ("9.3", "88.6", "23.3", "4.60")),
            Row("PruMerge", S, 16, 70, ("0.91", "15.3", "13.7", "0.28")),
            Row("LLaVA-1.5", S, 4, 700, ("2.3", "151.6", "5.9", "1.20")),
            Row("PruMerge", S, 4, 70, ("0.28", "14.9", "3.5", "0.07"), {0: COPIED}),
            Row("LLaVA-1.5", L, 16, 700, ("18.2", "170.5", "41.6", "7.30")),
            Row("PruMerge", L, 16, 70, ("1.80", "29.5", "26.6", "0.44")),
            Row("LLaVA-1.5", L, 4, 700, ("4.6", "294.9", "10.5", "1.80")),
            Row("PruMerge", L, 4, 70, ("0.45", "29.0", "6.8", "0.11")),
        ),
    ),
}  # fmt: skip


def distinct() -> list[Cell]:
    """The cells of all tables, Recoverable's baseline rows left out: they are the main paper's."""
    return [c for name, t in TABLES.items() for c in t.cells if name != "recoverable" or c.row.name != "LLaVA-1.5"]


def text(table: Table) -> str:
    """A table as text: printed : ours with its mark, the marks' meanings, the inconsistent cells with what they
    should be."""
    head = ("", "model", "bits", "tokens", *COLUMNS)
    lines = [head]
    for i, row in enumerate(table.rows):
        cells = table.cells[4 * i : 4 * i + 4]
        numbers = (f"{c.printed} : {c.ours:.3f} {c.mark}".rstrip() for c in cells)
        lines.append((row.name, row.model, str(row.bits), str(row.tokens), *numbers))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    body = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    used = {c.mark for c in table.cells}
    marks = [f"{key}: {words}" for key, words in AGREES.items() if key and key in used]
    wrong = [c for c in table.cells if c.mark == INCONSISTENT]
    listed = [
        f"! {c.row.name}, {c.row.bits} bits, {COLUMNS[c.column]}: {c.printed} should be {c.should}" for c in wrong
    ]
    reasons = dict.fromkeys(c.row.why[c.column] for c in wrong)
    legend = ["; ".join(marks)] if marks else []
    end = [total(table.cells), _how(table)]
    return "\n".join([f"{table.paper}, printed : computed", *body, *legend, *listed, *reasons, *end])


def _how(table: Table) -> str:
    return (
        f"LLM-Viewer's {table.gpu}{', lm_head one byte a weight' if table.rev == 'old' else ''}; FLOPs x bits / 16, as "
        f"all three papers print them; moved: traffic, not memory in use; written: all activations. {table.note}"
    )


def total(cells: list[Cell]) -> str:
    """How many agree, in words."""
    wrong = sum(cell.mark == INCONSISTENT for cell in cells)
    return f"{len(cells) - wrong} of {len(cells)} cells agree to the printed digit, {wrong} are inconsistent in print."
