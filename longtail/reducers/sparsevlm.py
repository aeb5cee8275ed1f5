from dataclasses import dataclass

import torch

from ..reducer import Reducer, param, register
from ..similarity import top
from ..tokens import Survivors
from .fastv import rank
from .pyramiddrop import steps

COUNTS = {"192": (300, 200, 110), "128": (303, 110, 36), "96": (238, 48, 26), "64": (66, 30, 17)}


@register
@dataclass(frozen=True)
class SparseVLM(Reducer):
    """Drops visual tokens in three stages by what the words of the question attend to, and recycles the best dropped.

    SparseVLM (ICML 2025), as released in v1.5. Raters are the text tokens behind the image whose share of softmax(V
    T^T) on input embeddings lies above the mean. Behind layers 2, 6 and 15 of 32, their attention in the layer just
    run (mean over heads and raters) ranks the visual tokens. Of the d dropped, the int(0.3 d) + 1 best are grouped
    into a tenth as many clusters (density peaks) and their means go on behind the kept; positions are numbered anew.

    The paper's rank-based count (eq. 7, 8) is not in the released code: lists of counts are, `setting` names them.
    Their name is the mean over layer outputs, what is recycled included; `tokens.layer_mean` is that over layer inputs,
    206.5 for 192. The released code breaks density ties by noise, here the first token wins. A budget is
    what the last stage leaves, recycled tokens counted, by three steps of equal ratio.
    """

    paper = "https://arxiv.org/abs/2410.04417"
    setting: str = param("192", choices=tuple(COUNTS), help="the released list of counts, for 576 patches")
    recycle: bool = param(True, help="merge the best of the dropped into a few tokens")
    budget: int = param(
        0, 0, 576, 1, "visual tokens left by the last stage, recycled ones counted; 0: the list decides"
    )

    def drop(self, prefill):
        stage = prefill.entering(3, 7, 16)
        if stage is None:
            return None
        here = prefill.visual.nonzero().flatten()
        count, merged = self._counts(prefill, stage, len(here))
        if count >= len(here):
            return None
        score = rank(prefill.last, raters(prefill))
        if not merged:
            return Survivors(prefill.best(score, count), renumber=True)
        order = here[top(score[here], len(here))]
        kept, pool = order[:count].sort().values, order[count : count + int(0.3 * (len(here) - count)) + 1]
        centre, cluster = clusters(prefill.hidden[pool].float(), merged)
        members = torch.nn.functional.one_hot(cluster, len(centre)).T.float()  # [C, P]
        means = members @ prefill.hidden[pool].float() / members.sum(1, keepdim=True)
        return self._survivors(prefill, kept, pool, centre, cluster, means.to(prefill.hidden))

    def _survivors(self, prefill, kept, pool, centre, cluster, means):
        """System text, kept, recycled, rest of the text: in this order."""
        first = prefill.span[0]  # text before the image never goes
        ends = torch.arange(len(prefill.hidden), device=kept.device)
        before, after = ends[:first], prefill.behind()
        newlines = (~prefill.visual[first : len(ends) - len(after)]).nonzero().flatten() + first
        kept = torch.cat([kept, newlines]).sort().values
        keep = torch.cat([before, kept, pool[centre], after])
        hidden = torch.cat([prefill.hidden[before], prefill.hidden[kept], means, prefill.hidden[after]])
        speaks = torch.full_like(ends, -1)
        speaks[pool] = first + len(kept) + cluster
        stands = torch.cat([before, kept, after])
        places = torch.arange(len(keep), device=kept.device)
        speaks[stands] = torch.cat([places[: first + len(kept)], places[len(keep) - len(after) :]])
        return Survivors(keep, hidden, speaks, renumber=True)

    def _counts(self, prefill, stage: int, here: int) -> tuple[int, int]:
        """How many of the `here` visual tokens stay at this stage, and into how many the recycled ones are merged."""
        patches = prefill.entered
        if not self.budget:
            count = max(round(COUNTS[self.setting][stage] * patches / 576), 1)
            return count, self._recycled(here - count)
        wanted = steps(patches, prefill.across(self.budget), 3)[stage]
        count = min(wanted, here)
        while count < here and count > 0 and count + self._recycled(here - count) > wanted:
            count -= 1
        return count, min(self._recycled(here - count), wanted - count)

    def _recycled(self, dropped: int) -> int:
        return int((int(0.3 * dropped) + 1) / 10) + 1 if self.recycle and dropped > 0 else 0


def raters(prefill):
    """Rows (of the T here) of the text behind the image that the image is most like; all where none stands out."""
    first, after = prefill.span
    image, text = prefill.embeddings[first:after].float(), prefill.embeddings[after:].float()
    share = (image @ text.T).softmax(-1).mean(0)
    rows = prefill.behind()[share > share.mean()]
    return rows if len(rows) else prefill.behind()


def clusters(states, count: int):
    """Density-peak clusters of states [P, D]: the centres [C] and the cluster of each [P]; the first wins a tie.

    Density: exp(-mean squared distance to the C nearest, itself included), distances over sqrt(D). A centre is dense
    and far from anything denser. In logarithms: the states of a language model may lie so far apart that exp gives 0.
    """
    exact = "donot_use_mm_for_euclid_dist"  # by products, equal states would not lie at distance 0
    distance = torch.cdist(states, states, compute_mode=exact) / states.shape[-1] ** 0.5
    count = min(count, len(states))
    density = -distance.topk(count, largest=False).values.square().mean(-1)  # its logarithm
    place = torch.arange(len(states), device=states.device)
    denser = (density > density[:, None]) | ((density == density[:, None]) & (place < place[:, None]))
    parent = distance.masked_fill(~denser, torch.inf).amin(-1)
    parent = torch.where(denser.any(-1), parent, distance.max())
    centre = top(parent.log() + density, count)
    cluster = distance[:, centre].argmin(-1)
    return centre, cluster.index_copy(0, centre, place[: len(centre)])
