"""The main paper's mathematics: the long-tailed curve of CLS similarity, its knee, what alpha keeps, stage 2's scores;
and what several other papers share: the best of a score, its outliers, cosines.

Sparsity Meets Similarity, sections 3.2 and 3.3. Pure functions; float64 where an argmax decides.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from .tokens import Curve

READINGS = ("tail", "head", "threshold")


def objective(curve: np.ndarray) -> np.ndarray:
    """f(i) = (n-i)(d1-di)/(d1-dn) for i = 1..n-1 (eq. 2), of a descending curve [n]; zeros where the curve is flat."""
    n, fall = len(curve), curve[0] - curve[-1]
    if fall == 0:
        return np.zeros(max(n - 1, 1))
    return (n - np.arange(1, n)) * (curve[0] - curve[:-1]) / fall


def knee(curve: np.ndarray) -> int:
    """i* = first argmax of the objective (eq. 3), 1-based; 1 where the curve is flat or holds one patch."""
    return _first_best(objective(curve))


def _first_best(f: np.ndarray) -> int:
    return int(f.argmax()) + 1


def kept(curve: np.ndarray, i: int, alpha: float, reading: str) -> int:
    """How many patches alpha keeps of a descending curve [n] with knee i, clamped to 1..n.

    `tail`: floor(alpha (n - i)), which reproduces the counts the paper reports; `head`: ceil(alpha i), its formula as
    printed; `threshold`: every d >= alpha d_i. Raises ValueError for any other reading.
    """
    n = len(curve)
    if reading == "tail":
        count = math.floor(alpha * (n - i))
    elif reading == "head":
        count = math.ceil(alpha * i)
    elif reading == "threshold":
        count = int((curve >= alpha * curve[i - 1]).sum())
    else:
        raise ValueError(f"reading must be one of {', '.join(READINGS)}, got {reading!r}")
    return min(max(count, 1), n)


def long_tail(similarity: Tensor, alpha: float, reading: str, budget: int = 0) -> Curve:
    """All of stage 1 on similarities [n]: stable order, objective, knee, count (`budget`, if any, overrules alpha)."""
    values = similarity.detach().to("cpu", torch.float64).numpy()  # the one host synchronisation
    order = np.argsort(-values, kind="stable")
    curve = values[order]
    f = objective(curve)
    i = _first_best(f)
    count = min(budget, len(curve)) if budget else kept(curve, i, alpha, reading)
    return Curve(order, curve, f, i, count)


def top(score: Tensor, count: int) -> Tensor:
    """Indices of the `count` highest of `score` [n], highest first; the lower index first where scores tie."""
    return score.argsort(descending=True, stable=True)[:count]


def above_fence(score: Tensor) -> int:
    """How many of `score` [n] lie strictly above Q3 + 1.5 (Q3 - Q1), quartiles by linear interpolation."""
    score = score.detach().to("cpu", torch.float32).numpy()  # the one host synchronisation
    low, high = np.percentile(score, [25, 75])
    return int((score > high + 1.5 * (high - low)).sum())


def cosines(vectors: Tensor) -> Tensor:
    """Cosine of each vector [n, D] with each, float32 [n, n]; 0 for zero vectors."""
    unit = functional.normalize(vectors.float(), dim=-1)
    return unit @ unit.T


def received(embeddings: Tensor) -> Tensor:
    """What each of T embeddings [T, D] receives: column sums of softmax(causal(E E^T / sqrt(D))), float32 [T]."""
    x = embeddings.float()
    similarity = x @ x.T / x.shape[-1] ** 0.5
    return similarity.masked_fill(torch.ones_like(similarity, dtype=torch.bool).triu(1), -torch.inf).softmax(-1).sum(0)
