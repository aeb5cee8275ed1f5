from dataclasses import dataclass

import torch
from torch.nn import functional

from ..reducer import Reducer, param, register
from ..tokens import Reduced


@register
@dataclass(frozen=True)
class ToMe(Reducer):
    """Merges, in every layer of the vision tower, the tokens whose keys are most alike.

    Token Merging (ICLR 2023). Between attention and MLP the tokens are dealt in turn into sets A and B, CLS into A;
    each of A proposes to merge with the one of B of the highest cosine of keys (mean over heads), CLS never; the r
    best do, as means weighted by how many patches each speaks for. Attention logits grow by the log of that number
    (proportional attention). With 23 layers, r = 22, 17, 20 leave 70, 185, 116 of 576.

    Paper and released code agree on classification; for a language model the order matters too: released merging
    leaves the rest of A before all of B, layer after layer. Here the tower sees that order, and what comes out is
    sorted by the patch each token stands on (`order` raster); `released` leaves it. A budget spreads its merges evenly
    over the layers, with more than one round in a layer where half the tokens are not enough.
    """

    paper = "https://arxiv.org/abs/2210.09461"
    r: int = param(17, 0, 288, 1, "merges in each layer")
    weigh: bool = param(True, help="proportional attention: merged tokens weigh as many patches as they speak for")
    order: str = param("raster", choices=("raster", "released"), help="order of the tokens handed over")
    budget: int = param(0, 0, 576, 1, "visual tokens handed over; 0: r decides")

    @property
    def proportional(self):
        return self.weigh

    def trim(self, tower):
        if tower.place != "between":
            return None
        states, here, wanted = tower.visual.features, tower.size(), self._wanted(tower)
        metric = head_mean_keys(tower.read())
        tokens = torch.arange(len(states))
        keep, source = tokens, tokens
        while len(states) > max(wanted, 1):
            step = match(metric, min(len(states) - wanted, len(states) // 2))
            states = average(states, here, step)
            metric = average(metric, here, step) if len(states) > max(wanted, 1) else metric
            here = here.new_zeros(len(states)).index_add(0, step[1].to(here.device), here)
            keep, source = keep[step[0]], step[1][source]
        if tower.last and self.order == "raster":
            stands = keep if tower.before is None else tower.before.keep[keep]
            order = stands.argsort()
            states, keep, source = states[order.to(states.device)], keep[order], order.argsort()[source]
        return Reduced.merging(states, keep, source)

    def _wanted(self, tower) -> int:
        """Tokens that go on from this layer."""
        here = len(tower.visual.features)
        if not self.budget:
            return max(here - self.r, here - here // 2)
        left = tower.running - tower.index  # layers that still merge, this one counted
        return here - max(-(-(here - self.budget) // left), 0)


def head_mean_keys(layer):
    """Keys [N, D / H] of a tower layer without CLS, mean over heads, float32."""
    return layer.key[1:].float().view(len(layer.key) - 1, layer.heads, -1).mean(1)


def match(metric, r: int):
    """`r` merges of N tokens: the token [N - r] each new one stands on, and the new one [N] that speaks for each.

    Without CLS, which leads set A, the even tokens are B and the odd ones A.
    """
    unit = functional.normalize(metric, dim=-1)
    best, partner = (unit[1::2] @ unit[0::2].T).max(-1)
    order = best.argsort(descending=True, stable=True)
    merged, alone = order[:r], order[r:].sort().values
    count = len(metric)
    source = torch.empty(count, dtype=torch.long, device=metric.device)
    source[2 * alone + 1] = torch.arange(len(alone), device=metric.device)
    source[0::2] = torch.arange(len(alone), count - r, device=metric.device)
    source[2 * merged + 1] = len(alone) + partner[merged]
    return torch.cat([2 * alone + 1, torch.arange(0, count, 2, device=metric.device)]).cpu(), source.cpu()


def average(x, size, step):
    """Means [M, D] of the tokens x [N, D] that each new token speaks for, weighted by `size` [N]."""
    source, count = step[1].to(x.device), len(step[0])
    share = size / size.new_zeros(count).index_add(0, source, size)[source]
    order = source.argsort(stable=True)  # the members of each new token one after another
    first = torch.searchsorted(source[order], torch.arange(count, device=x.device))
    mean = functional.embedding_bag(order, x.float(), first, mode="sum", per_sample_weights=share[order])
    return mean.to(x.dtype)
