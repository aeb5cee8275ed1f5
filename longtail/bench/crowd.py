"""Many answers at once while they grow: stage 2's fixed caches against the unpruned ones, as `generate_batch` steps.

The weights are read once for all of them, each cache for itself, so what pruning saves grows with the batch.
"""

from dataclasses import dataclass

import numpy as np
import torch

from .. import merged
from ..decoder import Decoder
from ..models.drawn import Drawn
from ..reducer import make
from ..reducers.full import Full
from . import floors, reading
from .goals import Goal
from .protocol import Stopwatch, milliseconds, order, paired, rounded
from .record import span, table
from .synthetic import Prompts

METHODS = "LongTail", "Full"
SKIPPED = 8  # steps that warm up, a captured one included
LARGE, FASTER = 32, 1.5  # answers at once, and how much faster a step of theirs shall be


class Crowd:
    """So many answers of one method; a call reads a token of each, chooses the next ones and fetches them."""

    def __init__(self, llava: Drawn, prompts: Prompts, method: str, plan, batch: int):
        reducer = make(method, budget=plan.budget) if method != "Full" else Full()
        self.llava, self.rows = llava, [Decoder(llava, reducer) for _ in range(batch)]
        spliced = prompts.spliced(reducer.reduce(prompts.visual))
        self.tokens = reading.together(llava, prompts, spliced, self.rows, plan.new).argmax(-1).tolist()

    def __call__(self):
        newest = torch.tensor(self.tokens, device=self.llava.device)
        read = torch.stack(merged.step(self.llava, self.rows, newest))
        chosen = read.argmax(-1).split(1)
        self.tokens = [row.fetch(token) for row, token in zip(self.rows, chosen, strict=True)]


@dataclass(frozen=True, eq=False)
class Grown:
    """Seconds of the steps [METHODS, new - 1], and what the caches held in the end, in bytes."""

    batch: int
    seconds: np.ndarray
    held: tuple[int, ...]


def grown(llava: Drawn, prompts: Prompts, plan, batch: int) -> Grown:
    """So many answers of each method, a step of each in turn."""
    watch, seconds = Stopwatch(plan.device, plan.clock), np.empty((len(METHODS), plan.new - 1))
    crowds = [Crowd(llava, prompts, method, plan, batch) for method in METHODS]
    for step in range(plan.new - 1):
        for i in order(len(crowds), step):
            seconds[i, step] = watch(crowds[i])
    return Grown(batch, seconds, tuple(sum(map(reading.held, crowd.rows)) for crowd in crowds))


def row(run: Grown, plan, spec, peaks: floors.Peaks, width: int, dtype: torch.dtype) -> dict:
    """A batch: each method's steps beside their floor and its KV bytes beside their arithmetic, and how much faster the
    fixed caches are than the unpruned ones, step by step."""
    settled, batch = run.seconds[:, SKIPPED:], run.batch
    prompts = plan.budget + plan.text, spec.vision.patches + plan.text
    mean = prompts[0], prompts[1] + plan.new // 2  # entries that a step reads
    slots = prompts[0] + 1, prompts[1] + plan.new
    least = [floors.decode(spec, peaks, entries, width, batch) for entries in mean]
    each = {
        name: {
            **milliseconds(settled[i]),
            **{"floor_ms": least[i] and rounded(1e3 * least[i]), "kv_bytes": run.held[i]},
            "kv_arithmetic": int(batch * slots[i] * spec.kv_bytes(8 * dtype.itemsize)),
        }
        for i, name in enumerate(METHODS)
    }
    bound = least[0] and rounded(least[1] / least[0])
    return {"batch": batch, **each, **paired(settled[1], settled[0]), "bound": bound}


def aims(found: dict) -> list[Goal]:
    """What 32 answers on a GPU shall gain, and how far all caches are off their arithmetic."""
    cuda, at = found["conditions"]["device"] != "cpu", {line["batch"]: line for line in found["batches"]}
    ratio = at[LARGE]["ratio"] if cuda and LARGE in at else None
    aims = [Goal(f"a step of {LARGE} answers, fixed caches over unpruned ones, GPU", ratio, least=FASTER, unit=" x")]
    if at:
        off = max(
            abs(line[name]["kv_bytes"] / line[name]["kv_arithmetic"] - 1) for line in at.values() for name in METHODS
        )
        aims.append(Goal("KV bytes of a batch off their arithmetic", rounded(100 * off), most=5, unit=" %"))
    return aims


def words(found: dict) -> str:
    """The table of batches."""
    head = ("answers", "stage 2, ms", "floor", "KV MB", "unpruned, ms", "floor", "KV MB", "faster", "95 %", "bound")
    rows = [
        (
            line["batch"],
            *(cell for name in METHODS for cell in _cells(line[name])),
            *(f"{line['ratio']:.2f} x", span(line["ratio_95"]), line["bound"] or "unknown"),
        )
        for line in found["batches"]
    ]
    return (
        f"Answers at once, as generate_batch steps: a fixed cache each, or all {found['conditions']['patches']} visual "
        f"tokens and growing; floors at the mean of entries:\n{table(head, rows)}"
    )


def _cells(each: dict) -> tuple[str, ...]:
    floor = "unknown" if each["floor_ms"] is None else f"{each['floor_ms']:.2f}"
    return f"{each['ms']:.2f}", floor, f"{each['kv_bytes'] / 1e6:.1f}"
