from dataclasses import dataclass

import torch

from ..reducer import Reducer, param, register
from ..tokens import Reduced


@register
@dataclass(frozen=True)
class Uniform(Reducer):
    """Keeps the patches at the cell centres of an even grid over the image: PruMerge's spatial control (table 4).

    PruMerge prints grids (6 x 6, 5 x 8, 8 x 5, 5 x 7, 7 x 5, 4 x 4) and no formula: set `rows` and `columns` for them.
    With both at 0 the budget is spread over about as many rows as columns; rows one token fuller make any count exact.
    """

    paper = "https://arxiv.org/abs/2403.15388"
    budget: int = param(144, 1, 576, 1, "visual tokens kept, where rows and columns are 0")
    rows: int = param(0, 0, 24, 1, "rows of the grid; 0: from the budget")
    columns: int = param(0, 0, 24, 1, "columns of the grid; 0: from the budget")

    def reduce(self, visual):
        height, width = visual.grid
        per_row = self._per_row(height, width)
        keep = [
            centre(i, len(per_row), height) * width + centre(j, count, width)
            for i, count in enumerate(per_row)
            for j in range(count)
        ]
        return Reduced.select(visual, torch.tensor(keep))

    def _per_row(self, height, width):
        """How many patches each grid row holds."""
        if self.rows and self.columns:
            return [min(self.columns, width)] * min(self.rows, height)
        budget = min(self.budget, height * width)
        rows = self.rows or (budget // self.columns if self.columns else round((budget * height / width) ** 0.5))
        rows = min(max(rows, -(-budget // width), 1), height, budget)
        return [budget * (i + 1) // rows - budget * i // rows for i in range(rows)]


def centre(i: int, cells: int, side: int) -> int:
    """Middle patch of cell i, when `side` patches are cut into that many cells."""
    return (2 * i + 1) * side // (2 * cells)
