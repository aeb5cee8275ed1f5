from dataclasses import dataclass

import numpy as np
import torch

from ..reducer import Reducer, param, register
from ..similarity import cosines
from ..tokens import Reduced


@register
@dataclass(frozen=True)
class DivPrune(Reducer):
    """Keeps patches as far from each other as it can, by cosine of what the language model would read.

    DivPrune: the max-min diversity problem, solved greedily over the projected patches. The first is the
    one farthest from its nearest neighbour, each next one the farthest from those picked. 56 = round(0.098 x 576).

    The released code gathers every row picked anew for each pick; a running minimum picks the same. It computes in half
    precision, which rounds distances to about 0.0005 and lets the lower index win near ties; from the first of these on
    the picks differ, so `precision` has both. It may pick a patch twice where all are alike, which cannot happen here.
    """

    paper = "https://arxiv.org/abs/2503.02175"
    budget: int = param(56, 1, 576, 1, "visual tokens kept")
    precision: str = param("float32", choices=("float32", "half"), help="rounding of the distances; released: half")

    def reduce(self, visual):
        similarity = cosines(visual.project(visual.features))
        distance = 1 - (similarity.half() if self.precision == "half" else similarity)
        return Reduced.select(visual, torch.from_numpy(farthest(distance.detach().float().cpu().numpy(), self.budget)))


def farthest(distance: np.ndarray, count: int) -> np.ndarray:
    """Indices of `count` points by greedy max-min of `distance` [n, n], in order of picking.

    On the host: each pick waits for the one before, and there it costs less than one launch of a kernel.
    """
    others = distance.copy()
    np.fill_diagonal(others, np.inf)
    picked = np.empty(min(count, len(distance)), dtype=np.int64)
    pick, nearest = others.min(0).argmax(), np.full(len(distance), np.inf, dtype=distance.dtype)
    for i in range(len(picked)):
        picked[i] = pick
        np.minimum(nearest, distance[pick], out=nearest)
        nearest[pick] = -np.inf  # and stays there
        pick = nearest.argmax()
    return picked
