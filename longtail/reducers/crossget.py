from dataclasses import dataclass

import torch
from torch.nn import functional

from ..reducer import Reducer, param, register
from ..tokens import Reduced
from .tome import head_mean_keys


@register
@dataclass(frozen=True)
class CrossGET(Reducer):
    """Merges, in every layer of the vision tower, unimportant patches into any later-ranked one that they resemble.

    CrossGET (ICML 2024), its training-free part: complete-graph soft matching. A cross token, a copy of CLS, is added
    behind the patches. Between attention and MLP, patches are ranked by their highest cosine of keys (mean over heads)
    to any other; each may merge into one ranked behind it. The r patches of the lowest importance less best cosine do;
    importance is the attention received, mean over heads and queries, and that from the cross token. They go to the
    most similar behind them that stays, weighted by softmax of importance and by size; attention is proportional to
    size. Order is kept. With 23 layers and r = 13 this leaves 277 patches and the cross token, 278 of 576.

    Published LLaVA numbers are of fine-tuned models with learned cross tokens; this is the same without training. The
    released weights, twice the softmax of a pair, equal ours at equal sizes; where several patches merge into one, we
    take the softmax over all of them. A budget counts the cross token; one of 1 leaves it out.
    """

    paper = "https://arxiv.org/abs/2305.17455"
    proportional = True
    r: int = param(13, 0, 288, 1, "merges in each layer")
    budget: int = param(0, 0, 577, 1, "visual tokens handed over, the cross token counted; 0: r decides")

    def trim(self, tower):
        states = tower.visual.features
        if tower.place == "entering":
            return self._add_cross(tower, states) if tower.index == 0 and self.budget != 1 else None
        crossed = bool(tower.before) and int(tower.before.keep[-1]) < 0
        patches = len(states) - crossed
        merges = min(self._merges(tower, len(states), patches), patches - 1)
        if merges <= 0:
            return None
        weights = tower.attention(torch.arange(len(states) + 1, device=states.device)).mean(0)  # [1+N, 1+N]
        importance = weights.mean(0)[1:] + (weights[-1, 1:] if crossed else weights[0, 1:])
        source = soft_match(head_mean_keys(tower.read())[:patches], importance[:patches], merges)
        if crossed:
            source = torch.cat([source, source.new_tensor([len(states) - 1])])
        return self._merge(tower.size(), states, importance, source)

    def _add_cross(self, tower, states):
        n = len(states)
        features = torch.cat([states, tower.visual.cls[None]])
        return Reduced.merging(features, torch.tensor([*range(n), -1]), torch.arange(n))

    def _merges(self, tower, tokens: int, patches: int) -> int:
        if not self.budget:
            return self.r
        return -(-(tokens - self.budget) // (tower.running - tower.index))

    def _merge(self, size, states, importance, source):
        """`source` [N]: the token that each goes to, itself where it stays."""
        leaves = source != torch.arange(len(source), device=source.device)
        stays = (~leaves).nonzero().flatten()
        place = torch.full_like(source, -1).index_copy(0, stays, torch.arange(len(stays), device=source.device))
        group = place[source]
        weight = size * importance.exp()
        total = torch.zeros(len(stays), states.shape[1], device=states.device)
        total.index_add_(0, group, states.float() * weight[:, None])
        features = (total / weight.new_zeros(len(stays)).index_add(0, group, weight)[:, None]).to(states)
        moved = torch.zeros(len(stays), dtype=torch.bool, device=states.device)
        moved[group[leaves]] = True
        features = torch.where(moved[:, None], features, states[stays])
        return Reduced.merging(features, stays, group)


def soft_match(metric, importance, merges: int):
    """The token [N] that each of N goes to, itself for all but `merges` of them (at most N - 1)."""
    unit = functional.normalize(metric, dim=-1)
    similarity = unit @ unit.T
    similarity = torch.maximum(similarity, similarity.T).fill_diagonal_(-torch.inf)  # one number a pair, anywhere
    order = similarity.amax(-1).argsort(descending=True, stable=True)
    rank = order.argsort()
    similarity = similarity.masked_fill(rank[None] <= rank[:, None], -torch.inf)  # only those ranked behind
    best = similarity.amax(-1)
    leaving = (importance - best).argsort(stable=True)[:merges]
    source = torch.arange(len(metric), device=metric.device)
    similarity[:, leaving] = -torch.inf
    source[leaving] = similarity[leaving].argmax(-1)
    return source
