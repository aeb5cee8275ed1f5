from dataclasses import dataclass

import torch

from ..reducer import Reducer, param, register
from ..tokens import Reduced
from .evit import cls_attention


@register
@dataclass(frozen=True)
class ATS(Reducer):
    """Samples patches inside the vision tower along the distribution of their significance, fewer where it is peaked.

    Adaptive Token Sampling (ECCV 2022). Significance is CLS attention, summed over heads, times the norm of the value,
    normalised over patches. Sorted ascending, its cumulative sum is stretched to 0..1; `samples` - 1 even points from
    the smallest positive value to 1 each draw the nearest entry, and what is drawn at least once stays. Only rows of
    the attention are left out, the keys and values of the layer stay complete, which is what leaving tokens out
    between attention and MLP does. The released code samples along scores, as here; another release along the raster
    is another method. It acts in layers `first` to 22 of 24 (the paper: from a quarter of the depth on). The count is
    a ceiling; a budget makes it exact: at the first layer points are added until that many different patches are
    drawn.
    """

    paper = "https://arxiv.org/abs/2111.15667"
    samples: int = param(288, 3, 577, 1, "points on the distribution, a ceiling of what stays")
    first: int = param(6, 0, 22, 1, "first tower layer that samples, of 24")
    budget: int = param(0, 0, 576, 1, "visual tokens handed over, drawn at the first layer; 0: the points decide")

    def trim(self, tower):
        here = len(tower.visual.features)
        if tower.between(self.first) is None and (self.budget or tower.between(*range(self.first, 23)) is None):
            return None
        if here <= (self.budget or 1):
            return None
        norm = tower.value()[1:].float().norm(dim=-1)
        score = cls_attention(tower) * norm
        keep = exactly(score, self.budget) if self.budget else sample(score, self.samples)
        return Reduced.select(tower.visual, keep) if len(keep) < here else None


def sample(score, points: int):
    """Indices drawn by `points` - 1 even points on the rescaled cumulative sum of the ascending scores [N]."""
    ascending, order = score.double().sort(stable=True)
    total = (ascending / ascending.sum()).nan_to_num(1 / len(score)).cumsum(0)
    span = total[-1] - total[0]
    total = (total - total[0]) / span if span > 0 else torch.linspace(0, 1, len(total), dtype=total.dtype).to(total)
    positive = total[total > 0]
    lowest = positive[0] if len(positive) else total[-1]
    where = lowest + (1 - lowest) * torch.linspace(0, 1, max(points - 1, 1), dtype=total.dtype, device=total.device)
    right = torch.searchsorted(total, where).clamp(1, max(len(total) - 1, 1)).clamp_max(len(total) - 1)
    left = (right - 1).clamp_min(0)
    nearest = torch.where(where - total[left] <= total[right] - where, left, right)
    return order[nearest.unique()]


def exactly(score, budget: int):
    """The first draw of at least `budget` different indices, without the lowest scores that are too many."""
    low, high = max(budget, 2), max(budget + 1, 3)  # two points, the ends, are the fewest
    while high < 2**14 and len(sample(score, high)) < budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if len(sample(score, middle)) >= budget else (middle, high)
    drawn = torch.zeros_like(score, dtype=torch.bool)
    drawn[sample(score, high)] = True
    order = score.argsort(descending=True, stable=True)
    return torch.cat([order[drawn[order]], order[~drawn[order]]])[:budget]
