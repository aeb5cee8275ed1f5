from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..reducer import Reducer, param, register
from ..similarity import top
from ..tokens import Reduced
from .prumerge import cosine, merge, others

PROJECTION = 768**0.5  # CLIP's text similarity is divided by the root of its width
PULL = 50  # weight of the text similarity beside the cosine of keys


@register
@dataclass(frozen=True)
class Recoverable(Reducer):
    """Keeps patches of outlying CLS attention, brings back patches by their likeness to the question, merges the rest.

    Recoverable Compression. Three times a local outlier factor (LOF) above 1.5, on values of one dimension, says how
    many, and the highest that many are taken: of the full-width CLS attention of the tower's last layer; of the text
    similarity t = cos / sqrt(768) of the others; of the attention of what is left, as centres. A centre merges as in
    PruMerge, its 32 neighbours by key cosine + 50 t. Order: the patches of the first two steps in raster order, the
    centres by attention, an extra token for what is left.

    `intended` (default) is the method as described, with the question. `released` is the code: its text is the constant
    preamble before the image, without CLIP's last norm; the second LOF also sees the first step's patches, all at the
    lowest t, and its share is of all patches; the centres are int(D share), D the channels of a feature where the
    number of patches left was meant; keys are not those of the patches left but of the first ones; without centres
    there is no extra token. The paper's LOF threshold is 1, its code's 1.5; its neighbours 20, 30 or 90 by data set.

    `sign`: paper and code take the patches like the text; CLIP's answer best when negated. Ours: the extra token stays
    where nothing else would, and speaks, as in PruMerge, for what no centre merged. `budget`, less the extra token:
    60 % by attention, 25 % by text, 15 % centres.
    """

    paper = "https://arxiv.org/abs/2409.01179"
    variant: str = param("intended", choices=("intended", "released"), help="the method as described, or its code")
    neighbours: int = param(20, 1, 575, 1, "neighbours of the LOF on attention and on text similarity")
    centre_neighbours: int = param(10, 1, 575, 1, "neighbours of the LOF that counts the centres")
    threshold: float = param(1.5, 1, 10, 0.1, "LOF above which a value is an outlier")
    sign: str = param("like", choices=("like", "unlike"), help="bring back patches like, or unlike, the text (CLIP)")
    budget: int = param(0, 0, 577, 1, "visual tokens handed over, the extra one counted; 0: the outliers decide")

    def layers_read(self):
        return (23, 24) if self.variant == "released" else (23,)

    def reduce(self, visual):
        released, n = self.variant == "released", len(visual.features)
        asked = visual.preamble.relevance(visual) if released and visual.preamble else visual.relevance()
        text = asked.float() / (PROJECTION if self.sign == "like" else -PROJECTION)
        attention, device = visual.layer(23).similarity("attention"), text.device
        seen, found, place = self._choose(*torch.stack([attention, text]).cpu(), visual.features.shape[1])

        main = torch.cat([seen, found]).sort().values
        rest = others(main, n)
        centres, left = rest[place], rest.to(device)
        key, among = visual.layer(23).key[1:], torch.zeros_like(text, dtype=torch.bool).index_fill(0, left, True)
        if released:  # the keys of the first patches, for those left
            affinity = cosine(key[: len(rest)], place.to(device))
            affinity = affinity.new_zeros(len(place), n).index_copy(1, left, affinity)
        else:
            affinity = cosine(key, centres.to(device))
        merged, source = merge(visual.features, attention, affinity + PULL * text, centres.to(device), among=among)
        features = torch.cat([visual.features.index_select(0, main.to(device)), merged])
        keep = torch.cat([main, centres, torch.tensor([-1])])
        source = source.cpu() + len(main)
        source[main] = torch.arange(len(main))
        idle = not len(rest) or (released and not len(place))
        if idle and len(main) and not self.budget:  # no extra token
            features, keep = features[:-1], keep[:-1]
            source[source == len(keep)] = -1
        reduced = Reduced.merging(features, keep, source)
        return replace(reduced, role=np.where(np.isin(np.arange(n), found), "recovered", reduced.role))

    def _choose(self, attention, text, channels):
        """Patches kept for their attention, patches brought back by text, and the centres' places among the others."""
        n, released = len(text), self.variant == "released"
        fixed = min(self.budget, n) - 1  # less the extra token
        shares = (fixed - fixed // 4 - fixed * 3 // 20, fixed // 4, fixed * 3 // 20) if self.budget else None

        seen = top(attention, shares[0] if shares else self._outliers(attention))
        rest = others(seen, n)
        if shares:
            count = shares[1]
        elif released:
            count = int(len(rest) * (self._outliers(text.index_fill(0, seen, text.min())) / n))
        else:
            count = self._outliers(text[rest])
        found = rest[top(text[rest], count)]

        left = attention[others(torch.cat([seen, found]), n)]
        if shares:
            count = shares[2]
        else:
            count = outliers(left, self.centre_neighbours, self.threshold)
            count = int(channels * (count / max(len(left), 1))) if released else count
        return seen, found, top(left, count)

    def _outliers(self, values):
        return outliers(values, self.neighbours, self.threshold)


def outliers(values: Tensor, neighbours: int, threshold: float) -> int:
    """How many of `values` [n] have a local outlier factor above `threshold`, as scikit-learn counts them.

    In one dimension the k nearest of a value, and itself, are a run of k + 1 sorted values: the one that reaches least
    far. Of a lower and a higher value equally far the lower is taken, where scikit-learn's choice hangs on its tree.
    """
    n = len(values)
    if n < 2:
        return 0
    x, k = values.double().sort().values, max(1, min(neighbours, n - 1))
    place = torch.arange(n)[:, None]
    start = (place - torch.arange(k, -1, -1)).clamp(0, n - 1 - k)  # [n, k+1] runs that hold the value
    ends = torch.stack([x[:, None] - x[start], x[start + k] - x[:, None]])
    far = ends.amax(0).amin(1)  # distance of the k-th neighbour
    best = ends.amin(0).masked_fill(ends.amax(0) > far[:, None], -1).argmax(1)  # equal values: all nearer ones first
    run = start.gather(1, best[:, None]) + torch.arange(k + 1)
    run = run[run != place].view(n, k)
    density = 1 / (torch.maximum((x[run] - x[:, None]).abs(), far[run]).mean(1) + 1e-10)
    return int(((density[run] / density[:, None]).mean(1) > threshold).sum())
