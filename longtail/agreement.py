"""How an answer compares with the unpruned one: words in common, first token; means over questions, Pareto front.

Rows are those of `sweep`.
"""

from difflib import SequenceMatcher
from statistics import mean

from torch import Tensor

MEANS = ("patches", "visual", "layer_mean", "agreement", "same", "kl", "first_token", "total")
SHARES = ("first_of_full", "total_of_full")


def agreement(words: str, reference: str) -> float:
    """Share of words in common, in order: difflib's ratio over words, 1 for two empty answers."""
    return SequenceMatcher(None, words.split(), reference.split(), autojunk=False).ratio()


def divergence(reference: Tensor, other: Tensor) -> float:
    """KL(reference || other) in nats of two rows of logits [V]."""
    p, q = (logits.float().log_softmax(-1) for logits in (reference, other))
    return max(float((p.exp() * (p - q)).sum()), 0.0)


def summary(rows: list[dict]) -> list[dict]:
    """A row for each reducer, by method and value: means over its questions, n how many.

    Keys as of a row; `image`, `question` and `answer` are those of the least agreement. Rows with a reason are left
    out; so is a reducer that was refused on every question.
    """
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        if "reason" not in row:
            groups.setdefault((row["method"], row["spec"], row["value"]), []).append(row)
    means = [
        min(group, key=lambda row: row["agreement"])
        | {key: mean(map(float, (row[key] for row in group))) for key in (*MEANS, *SHARES)}
        | {"n": len(group)}
        for group in groups.values()
    ]
    return sorted(means, key=lambda row: (row["method"] != "Full", row["method"], row["value"] or 0))


def front(rows: list[dict], cost: str = "layer_mean") -> list[dict]:
    """The Pareto front: the rows that nothing as cheap agrees better than, cheapest first.

    `cost` is a key of a row, `first_of_full` for time. Rows with a reason are left out.
    """
    best, chosen = -1.0, []
    fine = (row for row in rows if "reason" not in row)
    for row in sorted(fine, key=lambda row: (row[cost], -row["agreement"])):
        if row["agreement"] > best:
            best = row["agreement"]
            chosen.append(row)
    return chosen
