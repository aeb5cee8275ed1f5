from dataclasses import dataclass

import torch
from torch.nn import functional

from ..reducer import Reducer, param, register
from ..tokens import Reduced
from .fastervlm import most_attended


@register
@dataclass(frozen=True)
class VisionZip(Reducer):
    """Keeps CLS and the patches it attends most, and merges all others into a few contextual tokens.

    VisionZip. Dominant: CLS, always, then the patches that CLS attends most (`layers[22]`, heads averaged)
    in raster order. Contextual: of the other patches every R // C-th is a target, the first C of them; each patch left
    joins the target of the most similar key (cosine, keys averaged over heads). The published pairs are 162 + 30,
    108 + 20 and 54 + 10, and 191 + 30 in the function itself, all with CLS counted.

    The paper speaks of averaging; the released code adds the mean of those that joined to the target, both with weight
    one, so that the norm about doubles; `released` is the default. The first C targets can leave the bottom of the
    image without one, as released.
    """

    paper = "https://arxiv.org/abs/2412.04467"
    dominant: int = param(54, 1, 577, 1, "visual tokens that stand for themselves, CLS counted")
    contextual: int = param(10, 0, 576, 1, "visual tokens merged from the other patches; 0: these are dropped")
    merge: str = param("released", choices=("released", "average"), help="target + mean of those that joined, or mean")

    @classmethod
    def at(cls, budget):
        contextual = budget * 5 // 32  # the share in each published pair
        return cls(dominant=budget - contextual, contextual=contextual)

    def layers_read(self):
        return (22,)

    def reduce(self, visual):
        features = visual.features
        order = most_attended(visual, len(features))
        dominant, rest = (part.sort().values for part in order.tensor_split([self.dominant - 1]))
        step = max(len(rest) // max(self.contextual, 1), 1)
        target = rest[::step][: self.contextual]
        source = torch.full_like(order, -1)
        source[dominant] = torch.arange(1, 1 + len(dominant), device=order.device)
        tokens = [visual.cls[None], features.index_select(0, dominant)]
        if len(target):
            group = self._join(visual.layer(22), rest, step, target)
            source[rest] = 1 + len(dominant) + group
            tokens.append(self._merge(features[rest], group, rest == target[:, None]))
        return Reduced.merging(torch.cat(tokens), torch.cat([order.new_tensor([-1]), dominant, target]), source)

    @staticmethod
    def _join(layer, rest, step, target):
        """Which target, counted from 0, each patch of `rest` joins; a target joins itself."""
        key = functional.normalize(layer.key[1:].float().unflatten(1, (layer.heads, -1)).mean(1), dim=-1)
        group = (key[rest] @ key[target].T).argmax(1)
        group[: len(target) * step : step] = torch.arange(len(target), device=group.device)
        return group

    def _merge(self, features, group, itself):
        """One token for each target, which is `itself` [C, R] of the patches [R, D] that joined a `group` [R]."""
        member = (group == torch.arange(len(itself), device=group.device)[:, None]).float()  # [C, R]
        if self.merge == "released":
            member = member.masked_fill(itself, 0)
        weight = member / member.sum(1, keepdim=True).clamp_min(1)
        if self.merge == "released":
            weight = weight + itself
        return (weight @ features.float()).to(features.dtype)
