"""What the columns hold, as plain values: presets, an equal budget, columns that come and go."""

import dataclasses

from longtail import REDUCERS, Reducer, make
from longtail.reducer import parse

from .controls import chosen

COLUMNS = 4
FIRST = ("Full", "LongTail", "TopK", "Random")  # what the columns start with, so far as the registry has it
FEWEST = 2  # columns at first
PRESETS = {  # text of the button: methods, and the budget they share (0: each its own)
    "preset_paper": (("Full", "LongTail"), 0),
    "preset_leaders": (("Full", "LongTail", "VisionZip", "DivPrune"), 64),
    "preset_random": (("Full", "LongTail", "Random", "Uniform"), 64),
    "preset_stages": (("Full", "LongTail:text_stage=False", "LongTail:visual_stage=False", "LongTail"), 0),
}


@dataclasses.dataclass(frozen=True)
class Lanes:
    """Which columns are shown, and the method and the settings of each."""

    shown: list[bool]
    methods: list[str]
    settings: list[dict]

    @classmethod
    def of(cls, specs: list[str]) -> "Lanes":
        """Columns of `NAME:parameter=value` specs. Raises ValueError for one that no method answers to."""
        if not 1 <= len(specs) <= COLUMNS:
            raise ValueError(f"there are 1 to {COLUMNS} columns, got {len(specs)}")
        reducers = [parse(spec) for spec in specs]
        methods = [type(reducer).__name__ for reducer in reducers]
        settings = [
            {method: {p.name: getattr(r, p.name) for p in r.parameters() if getattr(r, p.name) != p.default}}
            for method, r in zip(methods, reducers, strict=True)
        ]
        more = COLUMNS - len(specs)
        return cls(
            [True] * len(specs) + [False] * more, methods + list(_first()[-more:]) * bool(more), settings + [{}] * more
        )

    def having(self, method: str, values: dict | None = None, at: int | None = None) -> "Lanes":
        """With this method in column `at`; in the first free one, or the last, where none is given."""
        free = next((i for i, on in enumerate(self.shown) if not on), COLUMNS - 1)
        at = free if at is None else at
        settings = [dict(column or {}) for column in self.settings]
        settings[at] = settings[at] | ({method: values} if values is not None else {})
        methods = [*self.methods[:at], method, *self.methods[at + 1 :]]
        return Lanes([on or i == at for i, on in enumerate(self.shown)], methods, settings)

    def reducers(self, budget: int = 0) -> dict[int, Reducer]:
        """The reducer of each shown column. Raises ValueError with a sentence where its settings cannot be."""
        made = zip(self.shown, self.methods, self.settings, strict=True)
        return {
            i: equal(method, settings, budget) if budget else chosen(method, settings)
            for i, (on, method, settings) in enumerate(made)
            if on
        }


def equal(method: str, settings: dict | None, budget: int) -> Reducer:
    """A column's reducer at a shared budget: what the budget itself decides overrules the column's settings."""
    chosen(method, settings)  # whose errors come first
    fair, plain = REDUCERS[method].at(budget), make(method)
    fixed = {p.name for p in fair.parameters() if getattr(fair, p.name) != getattr(plain, p.name)}
    values = (settings or {}).get(method) or {}
    return dataclasses.replace(fair, **{name: value for name, value in values.items() if name not in fixed})


def _first() -> tuple[str, ...]:
    known = [name for name in FIRST if name in REDUCERS]
    return tuple(known + [next(iter(REDUCERS))] * (COLUMNS - len(known)))
