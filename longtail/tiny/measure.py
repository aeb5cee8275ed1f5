"""Exact match per question family on held-out scenes, by teacher forcing: equal to that of greedy decoding."""

import random
from dataclasses import dataclass, field

import torch

from .choose import pick
from .data import Encoder, Plan, batch
from .losses import Passes, answer, letters_read, look, teach
from .questions import FAMILIES, SHORT, questions
from .scenes import scene
from .world import GRID

TEXT = 400


@dataclass
class Marks:
    """Counts of right and asked, by family; `tokens` of descriptions."""

    right: torch.Tensor = field(default_factory=lambda: torch.zeros(len(FAMILIES) + 3))
    asked: torch.Tensor = field(default_factory=lambda: torch.zeros(len(FAMILIES) + 3))

    def add(self, logits, learnt, columns) -> None:
        hit = logits.argmax(-1) == columns["target"][learnt]
        family = columns["family"][learnt]
        block = columns["block"][learnt] + 1000 * torch.nonzero(learnt)[:, 0]
        index, inverse = block.unique(return_inverse=True)
        whole = torch.ones(len(index), device=hit.device).scatter_reduce(0, inverse, hit.float(), "amin")
        of = torch.zeros_like(index).scatter(0, inverse, family)
        self.right[: len(FAMILIES)] += torch.bincount(of, whole, minlength=len(FAMILIES)).cpu()
        self.asked[: len(FAMILIES)] += torch.bincount(of, minlength=len(FAMILIES)).cpu()
        said = family == FAMILIES.index("describe")
        self.right[-3] += hit[said].sum().cpu()
        self.asked[-3] += said.sum().cpu()

    def add_letters(self, counts) -> None:
        self.right[-2:] += counts[::2].cpu()
        self.asked[-2:] += counts[1::2].cpu()

    def table(self) -> dict[str, float]:
        names = (*FAMILIES, "describe_tokens", "patch_letters", "patch_shapes")
        shares = {n: round((r / a).item(), 4) for n, r, a in zip(names, self.right, self.asked, strict=True) if a}
        short = [shares[f] for f in SHORT if f in shares]
        return shares | ({"mean": round(sum(short) / len(short), 4)} if short else {})


@torch.no_grad()
def measure(model, seeds, kept, patches=GRID * GRID, rounds=1, size=16, text=TEXT) -> dict[str, Marks]:
    """Marks for every (chooser, count) of `kept`; `patches` < 576 hides ground from the tower, as early stages do."""
    encode, passes, seeds = Encoder(), Passes(), list(seeds)
    marks = {f"{chooser}-{count}": Marks() for chooser, count in kept} | {"heads": Marks()}
    for start in range(0, len(seeds), size):
        scenes = [scene(seed) for seed in seeds[start : start + size]]
        asked = [[q for k in range(rounds) for q in questions(s, rng=random.Random(f"{s.seed} {k}"))] for s in scenes]
        asked = [list({q.text: q for q in one}.values()) for one in asked]
        columns = batch(scenes, asked, Plan(len(scenes), patches, text * rounds), encode, random.Random(start))
        used = int((columns["block"] >= 0).sum(1).max())
        columns |= {n: columns[n][:, :used] for n in ("token", "block", "offset", "target", "family", "needs")}
        columns = {n: c.to(model.phrase_scale.device) for n, c in columns.items()} | {"user": encode.user}
        features, cls, _, seen = look(model, columns, passes)
        marks["heads"].add_letters(letters_read(teach(model, features, cls, columns)[2], columns))
        for chooser, count in kept:
            chosen = pick(chooser, columns["owner"], seen, count, seed=start)
            positions = torch.arange(count, device=chosen.device).expand(len(scenes), -1) + 2
            logits, learnt = answer(model, features, columns, chosen, positions, passes)
            marks[f"{chooser}-{count}"].add(logits, learnt, columns)
    return marks
