from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..reducer import Reducer, param, register
from ..similarity import above_fence, top
from ..tokens import Reduced, VisualTokens
from .prumerge import cosine, gathered, merge, others


@register
@dataclass(frozen=True)
class PruMergePlus(Reducer):
    """Keeps the patches with outlying CLS attention and an even grid of others, and merges similar patches into them.

    PruMerge, section 3.4 and algorithm 1; the outliers m of n patches and the merging are `PruMerge`'s. With
    s = int(n / m), every int(s/3)-th patch of the raster but the last joins the centres.

    `released` (default): the code as it stands, about 4m tokens. `earlier`: as it stood in April 2024, every
    int(s/4)-th patch; which of the two a published number used depends on the day the code was cloned. `training`: the
    branch behind the paper's 144 tokens: n/8 patches by attention, every 8th from the 5th on, and no check for
    duplicates, so that a patch may be two tokens and as many of the first unselected patches are lost. `paper`:
    algorithm 1 as printed, 2m tokens (m spread evenly over the patches not selected), merged as PruMerge's `paper`
    does. Tokens come as released: attention order, then the grid, the extra one last (`paper` has none).

    Ours, where the released code stops with an error: without outliers s is that of one; with so many that the step is
    0, every patch stays. `budget` takes a quarter by attention and spreads the rest evenly over the others.
    """

    paper = "https://arxiv.org/abs/2403.15388"
    variant: str = param(
        "released", choices=("released", "earlier", "training", "paper"), help="how dense the grid is, as published"
    )
    budget: int = param(0, 0, 577, 1, "visual tokens handed over, the extra one counted; 0: the outliers decide")

    def layers_read(self):
        return (23,)

    def reduce(self, visual):
        attention = visual.layer(23).similarity("attention").cpu()  # the one host synchronisation
        n, literal = len(attention), self.variant == "paper"
        if self.budget:
            count = min(self.budget, n) - (not literal)
            best = -(-count // 4)
            centres = spread(top(attention, best), count - best, n)
        elif literal:
            count = max(above_fence(attention), 1)
            centres = spread(top(attention, count), min(count, n - count), n)
        elif self.variant == "training":
            return doubled(visual, attention, torch.cat([top(attention, n // 8), torch.arange(n)[4 : n - 1 : 8]]))
        else:
            count = above_fence(attention)
            best, grid = top(attention, count), raster(count, n, 3 if self.variant == "released" else 4)
            centres = torch.cat([best, grid[~torch.isin(grid, best)]])
        return gathered(visual, attention, centres, literal)


def raster(count: int, n: int, parts: int) -> Tensor:
    """The grid beside `count` outliers of n patches: every int(s / parts)-th of the raster, s = int(n / count)."""
    step = int(1 / (max(count, 1) / n)) // parts
    return torch.arange(0, n - 1, step) if step else torch.arange(n)


def spread(best: Tensor, count: int, n: int) -> Tensor:
    """`best`, then `count` patches spread evenly over the others in raster order."""
    other = others(best, n)
    return torch.cat([best, other[(2 * torch.arange(count) + 1) * len(other) // max(2 * count, 1)]])


def doubled(visual: VisualTokens, attention: Tensor, centres: Tensor) -> Reduced:
    """`gathered` where a patch may be a centre twice: so it is two tokens, of which the second stands on no patch.

    As many of the first patches that are no centres leave no trace, not even in the extra token.
    """
    n, m = len(attention), len(centres)
    other = others(centres, n)
    pool = torch.cat([centres, other[m + len(other) - n :]])
    index, places = pool.to(visual.features.device), torch.arange(m)
    affinity = cosine(visual.layer(23).key[1:][index], places.to(index.device))
    tokens, source = merge(
        visual.features.index_select(0, index), attention[pool].to(index.device), affinity, places.to(index.device)
    )
    patch, first = map(torch.from_numpy, np.unique(pool.numpy(), return_index=True))
    keep, spoken = torch.full((m + 1,), -1), torch.full((n,), -1)
    spoken[patch] = source.cpu()[first]
    first = first[first < m]
    keep[first] = pool[first]
    return Reduced.merging(tokens, keep, spoken)
