from dataclasses import dataclass

import torch

from ..reducer import Reducer, param, register
from ..similarity import cosines, top
from ..tokens import Reduced
from .fastervlm import most_attended

ROUND = 8  # at most as many patches leave at a time


@register
@dataclass(frozen=True)
class VisPruner(Reducer):
    """Keeps the patches that CLS attends most and, of the rest, those least like each other.

    Beyond Text-Visual Attention. The share `important` comes from CLS (`layers[22]`, heads averaged). The
    others, most attended first, are dealt into evens and odds; the evens most similar to any odd (cosine of what the
    tower hands over) leave, eight at a time, until the budget is met; what stays of the evens goes first into the next
    deal, most similar first. Raster order. The paper and the released code agree.

    The released code stops with an error where an odd number is dealt, for instance at budget 127; here the evens are
    then one more. The similarities are computed once, not in each round; ties go to the earlier one, where it leaves
    them to an unstable sort.
    """

    paper = "https://arxiv.org/abs/2412.01818"
    budget: int = param(128, 1, 576, 1, "visual tokens kept")
    important: float = param(0.5, 0, 1, 0.05, "share of the budget that CLS attention chooses, rounded down")

    def layers_read(self):
        return (22,)

    def reduce(self, visual):
        n = len(visual.features)
        budget = min(self.budget, n)
        important = int(budget * self.important)
        diverse, order = budget - important, most_attended(visual, n)
        rest = order[important:] if diverse else order[:0]
        similarity = cosines(visual.features)
        while (surplus := len(rest) - diverse) > 0:
            even, odd = rest[::2], rest[1::2]
            nearest = similarity[even[:, None], odd].amax(1)
            distinct = even[top(nearest, len(even))[min(ROUND, surplus) :]]
            rest = torch.cat([distinct, odd])
        return Reduced.select(visual, torch.cat([order[:important], rest]))
