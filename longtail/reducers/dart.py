from dataclasses import dataclass

import torch
from torch.nn import functional

from ..reducer import Reducer, param, register
from ..similarity import top


@register
@dataclass(frozen=True)
class DART(Reducer):
    """Keeps a few pivot tokens and, for each of them, the visual tokens that repeat it least.

    Stop Looking for Important Tokens: Duplication Matters More (EMNLP 2025). Entering layer 2 of 32, the pivots are
    the 4 visual tokens and the 4 text tokens behind the image whose keys in the layer just run (rotated, heads
    concatenated) have the largest L1 norm. Each pivot in turn takes the visual tokens still free of the lowest cosine
    to it, on normed states. Image pivots and all that was taken stay, at true positions. The released code's "128" is
    16 for each of 8 pivots and the 4 image pivots, 132, the default here. It walks pivots in the order of a Python
    set; here the order is by norm, the image's first. Counts that 8 does not divide give the first pivots one more.
    """

    paper = "https://arxiv.org/abs/2502.11494"
    layer: int = param(2, 1, 31, 1, "first layer with fewer visual tokens, of 32")
    pivots: int = param(4, 0, 16, 1, "visual pivots")
    text_pivots: int = param(4, 1, 16, 1, "text pivots, of the text behind the image")
    budget: int = param(132, 1, 576, 1, "visual tokens left, pivots counted")

    def drop(self, prefill):
        if prefill.entering(self.layer) is None:
            return None
        visual = prefill.visual.nonzero().flatten()
        behind, budget = prefill.behind(), prefill.across(self.budget)
        norm = prefill.last.key(True).float().abs().sum((0, 2))  # [T], L1 over the concatenated heads
        pivots = visual[top(norm[visual], min(self.pivots, budget))]
        guides = torch.cat([pivots, behind[top(norm[behind], self.text_pivots)]])
        states = functional.normalize(prefill.norm(prefill.hidden).float(), dim=-1)
        similarity = states[guides] @ states[visual].T  # [pivots, N]
        taken = torch.isin(visual, pivots)
        wanted = min(budget, len(visual)) - len(pivots)
        for i, row in enumerate(similarity):
            count = wanted // len(guides) + (i < wanted % len(guides))
            taken[top(-row.masked_fill(taken, torch.inf), count)] = True
        stay = ~prefill.visual
        stay[visual[taken]] = True
        return stay.nonzero().flatten()
