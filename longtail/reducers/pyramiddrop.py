from dataclasses import dataclass

from ..reducer import Reducer, param, register
from ..tokens import Survivors
from .fastv import rank


@register
@dataclass(frozen=True)
class PyramidDrop(Reducer):
    """Drops visual tokens in three stages inside the language model, half of them each time.

    PyramidDrop (CVPR 2025). Entering layers 8, 16 and 24 of 32, int(N r), int(N r^2), int(N r^3) visual tokens stay:
    those that the prompt's last token attends to most by the queries and keys of the layer entered, mean over heads,
    softmax over its full causal row. Positions become contiguous, as in the released code (the paper is silent). The
    released ranking computes q, k and v of all tokens; here it is one query row. A budget is what the last stage
    leaves, by three steps of equal ratio.
    """

    paper = "https://arxiv.org/abs/2410.17247"
    ratio: float = param(0.5, 0, 1, 0.05, "share of the visual tokens that each stage keeps (r)")
    budget: int = param(0, 0, 576, 1, "visual tokens left by the last stage; 0: the ratio decides")

    def drop(self, prefill):
        stage = prefill.entering(8, 16, 24)
        if stage is None:
            return None
        patches, left = prefill.entered, prefill.across(self.budget)
        counts = steps(patches, left, 3) if self.budget else [int(patches * self.ratio**k) for k in (1, 2, 3)]
        return Survivors(prefill.best(rank(prefill.this, prefill.newest()), counts[stage]), renumber=True)


def steps(patches: int, budget: int, stages: int) -> list[int]:
    """Counts after each stage when the same share goes each time and `budget` are left at the end."""
    budget = min(budget, patches)
    return [max(round(patches * (budget / patches) ** (k / stages)), budget) for k in range(1, stages + 1)]
