from dataclasses import dataclass

import torch

from ..reducer import Reducer, param, register


@register
@dataclass(frozen=True)
class FastV(Reducer):
    """Drops the visual tokens that the prompt's last token looks at least, behind an early layer of the language
    model.

    An Image is Worth 1/2 Tokens After Layer 2 (ECCV 2024). The attention of the layer before door K ranks the image's
    columns, averaged over heads; round(N (1 - R)) stay, at their true positions. The paper ranks by the attention from
    all tokens, the released code by the last query row alone, which is the default because the paper's numbers were
    made so. Either way only the rows that rank are recomputed, and every layer keeps SDPA. The released scripts start
    the image at position 36, one late for Vicuna's prompt; here it starts where it stands. K counts as in a language
    model of 32 layers. A budget is what stays behind the door; K layers still read every token (`tokens.layer_mean`).
    """

    paper = "https://arxiv.org/abs/2403.06764"
    layer: int = param(2, 1, 31, 1, "first layer with fewer visual tokens (K), of 32")
    ratio: float = param(0.5, 0, 1, 0.05, "share of the visual tokens dropped (R)")
    variant: str = param("released", choices=("released", "paper"), help="ranked by the last token, or by all tokens")
    budget: int = param(0, 0, 576, 1, "visual tokens left, whatever the ratio says; 0: the ratio decides")

    def drop(self, prefill):
        if prefill.entering(self.layer) is None:
            return None
        rows = (
            prefill.newest()
            if self.variant == "released"
            else torch.arange(len(prefill.hidden)).to(prefill.visual.device)
        )
        count = prefill.across(self.budget) or max(round(int(prefill.visual.sum()) * (1 - self.ratio)), 0)
        return prefill.best(rank(prefill.last, rows), count)


def rank(layer, rows):
    """What each entry [T] receives from those query rows, averaged over rows and heads."""
    return layer.attention(rows).mean((0, 1))
