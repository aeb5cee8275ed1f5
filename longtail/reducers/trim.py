from dataclasses import dataclass

import torch

from ..reducer import Reducer, param, register
from ..similarity import above_fence, top
from ..tokens import Reduced


@register
@dataclass(frozen=True)
class TRIM(Reducer):
    """Keeps the patches whose fit to the question stands out, and the mean of all others as one more token.

    TRIM (Less is More): CLIP's cosine of question and patch, a softmax over the patches, and as many as lie above the
    upper fence Q3 + 1.5 IQR. Raster order, the mean of the rest last, in the space that the projector reads.

    Sign: the paper keeps what is most similar to the question; the released code negates before the softmax (CLIP's
    patches answer inversely) and is the default. It also leaves the two vectors unnormalised, which makes that softmax
    much sharper; the cosine is the paper's and ours, so that the counts of the fence differ from its own. Where nothing
    stands out, the mean of all patches is the only token.
    """

    paper = "https://arxiv.org/abs/2409.10994"
    budget: int = param(0, 0, 577, 1, "visual tokens handed over, the mean counted; 0: the fence decides")
    sign: str = param("released", choices=("released", "paper"), help="patches unlike, or like, the question (CLIP)")

    def reduce(self, visual):
        n, device = len(visual.features), visual.features.device
        score = (visual.relevance().float() * (1 if self.sign == "paper" else -1)).softmax(-1)
        count = min(self.budget, n) - 1 if self.budget else above_fence(score)
        order = top(score, n)
        keep, rest = order[:count].sort().values, order[count:]
        mean = visual.features[rest].float().mean(0, keepdim=True).to(visual.features.dtype)
        source = torch.full((n,), count, device=device)
        source[keep] = torch.arange(count, device=device)
        features = torch.cat([visual.features.index_select(0, keep), mean])
        return Reduced.merging(features, torch.cat([keep, keep.new_tensor([-1])]), source)
