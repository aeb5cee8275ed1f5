from dataclasses import dataclass
from math import ceil

import torch

from ..reducer import Reducer, param, register
from ..similarity import top
from ..tokens import Reduced
from .pyramiddrop import steps


@register
@dataclass(frozen=True)
class EViT(Reducer):
    """Keeps, at three layers of the vision tower, the patches CLS attends to and fuses the others into one token.

    Not All Patches Are What You Need (ICLR 2022). Between attention and MLP of layers 6, 12 and 18 of 24 (ViT-B: 4, 7
    and 10 of 12), the ceil(keep n) patches of the highest CLS attention, mean over heads, stay; one token more is the
    sum of the others weighted by their attention, as released, or their weighted mean, as the paper says: its norm
    shrinks with what was dropped, or not. The released code leaves patches in the order of their score; here they stay
    in raster order, which a tower does not notice and a language model does. The paper trains with it; here nothing is
    trained. Fused tokens count, and take part in later stages.
    """

    paper = "https://arxiv.org/abs/2202.07800"
    keep: float = param(0.7, 0.05, 1, 0.05, "share of the tokens that stays at each of the three layers")
    variant: str = param("released", choices=("released", "paper"), help="fused token: weighted sum, or weighted mean")
    budget: int = param(0, 0, 576, 1, "visual tokens handed over, the fused one counted; 0: `keep` decides")

    def trim(self, tower):
        stage = tower.between(6, 12, 18)
        if stage is None:
            return None
        count = self._count(tower, stage)
        states, score = tower.visual.features, cls_attention(tower)
        if count >= len(states):
            return None
        order = top(score, len(score))
        keep, out = order[:count].sort().values, order[count:]
        weight = score[out] if self.variant == "released" else score[out] / score[out].sum().clamp_min(1e-30)
        fused = weight @ states[out].float()
        source = torch.full_like(order, count).index_copy(0, keep, torch.arange(count, device=keep.device))
        features = torch.cat([states.index_select(0, keep), fused[None].to(states)])
        return Reduced.merging(features, torch.cat([keep, keep.new_tensor([-1])]), source)

    def _count(self, tower, stage: int) -> int:
        """Tokens that stay beside the fused one."""
        here = len(tower.visual.features)
        if not self.budget:
            return ceil(self.keep * here)
        patches = here if tower.before is None else len(tower.before.source)
        wanted = steps(patches, self.budget, 3)[stage]
        return here if wanted >= here else wanted - 1


def cls_attention(tower):
    """Attention [N] of CLS to each token, float32, mean over heads."""
    return tower.attention(torch.zeros(1, dtype=torch.long, device=tower.visual.features.device))[:, 0, 1:].mean(0)
