from dataclasses import dataclass

import numpy as np
import torch

from ..reducer import Reducer, param, register
from ..similarity import cosines
from ..tokens import Reduced


@register
@dataclass(frozen=True)
class CDPruner(Reducer):
    """Keeps patches that fit the question and differ from each other, by a determinantal point process.

    CDPruner. The kernel is r_i S_ij r_j: S the cosines of what the language model would read, r CLIP's cosine of
    question and patch, scaled to (0, 1]. The greedy search for the most likely subset adds, one at a time, the patch
    that multiplies the determinant most (by Cholesky updates). Raster order.

    Sign: the paper keeps the patches most similar to the question; the released code negates the cosine (its issues
    14, 19, 22), as CLIP's patches answer inversely; `released` is the default. It divides by zero where all patches
    are equally relevant (here the cosines alone decide then) and takes roots of negative numbers once the kernel is
    exhausted (here what is left comes by relevance).
    """

    paper = "https://arxiv.org/abs/2506.10967"
    budget: int = param(64, 1, 576, 1, "visual tokens kept")
    sign: str = param("released", choices=("released", "paper"), help="patches unlike, or like, the question (CLIP)")

    def reduce(self, visual):
        relevance = visual.relevance().float() * (1 if self.sign == "paper" else -1)
        low, high = relevance.aminmax()
        quality = torch.where(high > low, (relevance - low + 1e-6) / (high - low), 1)
        kernel = quality[:, None] * cosines(visual.project(visual.features)) * quality
        picked = most_likely(kernel.detach().to("cpu", torch.float64).numpy(), self.budget)
        return Reduced.select(visual, torch.from_numpy(picked))


def most_likely(kernel: np.ndarray, count: int) -> np.ndarray:
    """Indices of `count` items by greedy MAP of the determinantal point process of `kernel` [n, n], in order.

    An item whose gain is rounding noise of its own kernel entry is exhausted: such ones come last, the largest entry
    first. On the host, as each pick waits for the one before.
    """
    own, count = kernel.diagonal(), min(count, len(kernel))
    gain, picked, basis = own.copy(), [], np.empty((count, len(kernel)))
    for i in range(count):
        pick = int(gain.argmax())
        if gain[pick] <= 0:
            break
        picked.append(pick)
        basis[i] = (kernel[pick] - basis[:i, pick] @ basis[:i]) / gain[pick] ** 0.5
        gain -= basis[i] ** 2
        gain[gain <= 1e-6 * own] = -np.inf  # the pick itself among them
    left = np.setdiff1d(np.arange(len(kernel)), picked)
    left = left[np.argsort(-own[left], kind="stable")]
    return np.concatenate([np.array(picked, dtype=np.int64), left])[:count]
