"""A measured comparison and its files: JSON, CSV, and one self-contained HTML page."""

import base64
import csv
import io
import json
import platform
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch
from PIL import Image

from .generate import Answer, answer
from .given import number
from .models.llava import Llava
from .reducer import Reducer
from .versus import versus

COLUMNS = ("method", "answer", "finished", "visual", "patches", "prompt", "generated", "kv_entries", "kv_bytes")
TIMES = ("preprocess", "vision", "method", "prefill", "first_token", "per_token", "total")
VERSUS = ("agreement", "kl")
PHASES = ("preprocess", "vision", "method", "prefill", "decode")


@dataclass(frozen=True, eq=False)
class Comparison:
    """Records of several methods on one image and question, and the conditions of their numbers."""

    records: list[dict]
    conditions: str
    crop: Image.Image
    grid: tuple[int, int]

    def record(self) -> dict:
        """Plain JSON values."""
        return {"conditions": self.conditions, "grid": list(self.grid), "answers": self.records}

    def file(self) -> dict:
        """What a file holds: the record, and the crop that its pictures are drawn on."""
        return self.record() | {"crop": picture(self.crop)}


def measure(
    llava: Llava,
    image,
    question: str,
    reducers: list[Reducer],
    repeat: int = 1,
    warm_up: bool = True,
    then: Sequence[str] = (),
    **options,
) -> Comparison:
    """Each reducer alone on the engine, `repeat` rounds in rotated order after one uncounted run; seconds are medians.

    With follow-ups in `then`, each round asks all of them in a row, and the last answer is the one compared.
    Raises ValueError for a repeat below 1, and whatever `generate` raises.
    """
    number("repeat", repeat, 1, whole=True)
    image = llava.open(image)
    if warm_up:
        answer(llava, image, question, reducers[0], **options)
    rounds: list[list[Answer]] = [[] for _ in reducers]
    for turn in range(repeat):
        for i in range(len(reducers)):
            at = (i + turn) % len(reducers)
            *_, last = in_a_row(llava, image, (question, *then), reducers[at], **options)
            rounds[at].append(last)
    warmed = "after one warm-up run" if warm_up else "without warm-up"
    conditions = (
        f"{llava.description} on {device_name(llava.device)}, "
        f"{torch.get_num_threads()} threads; {warmed}, seconds are the median of {repeat} in rotated order; "
        f"{date.today()}"
    )
    records = [medians([a.record() for a in answers]) for answers in rounds]
    compared(records, [answers[-1].first_logits for answers in rounds])
    return Comparison(records, conditions, llava.crop(image), llava.grid)


def in_a_row(llava: Llava, image, questions: Sequence[str], reducer: Reducer, **options) -> Iterator[Answer]:
    """The answer to each question, which has the turns before it and what may be taken over of them; a model that was
    trained on single turns is asked each on its own."""
    history, seen = (), None
    for question in questions:
        said = answer(llava, image, question, reducer, history=history, seen=seen, **options)
        history, seen = () if llava.single_turn else said.turns, said.seen
        yield said


def medians(records: list[dict]) -> dict:
    """Records of one method's repeated runs as one: the last, its seconds medians, `spread` their least and most."""
    runs = [record["seconds"] for record in records]
    seconds = {name: statistics.median(run[name] for run in runs) for name in TIMES}
    spread = {name: [min(run[name] for run in runs), max(run[name] for run in runs)] for name in TIMES}
    repeated = {"spread": spread} if len(records) > 1 else {}
    return records[-1] | {"seconds": seconds, "repeat": len(records)} | repeated


def compared(records: list[dict], logits: list):
    """Tell each record how it stands to the unpruned one, where that is among them: its `versus`."""
    plain = next((i for i, record in enumerate(records) if record["method"] == "Full"), None)
    for i, record in enumerate(records):
        if plain is not None and i != plain:
            record["versus"] = versus(record, records[plain], logits[i], logits[plain])


def phases(record: dict) -> dict[str, float]:
    """Seconds of each phase; together they are the total of one run (medians of several need not add up)."""
    s = record["seconds"]
    decode = max(s["total"] - s["first_token"], 0.0)
    return dict(zip(PHASES, (s["preprocess"], s["vision"], s["method"], s["prefill"], decode), strict=True))


def write(comparison: Comparison, path: str):
    """Write a .json, .csv or .html file. Raises ValueError for another ending."""
    ending = Path(path).suffix
    if ending not in WRITERS:
        raise ValueError(f"a comparison is written as {', '.join(WRITERS)}, got {path!r}")
    Path(path).write_text(WRITERS[ending](comparison), encoding="utf-8")


def picture(crop: Image.Image) -> str:
    """A picture as a data URI, lossless."""
    png = io.BytesIO()
    crop.save(png, "PNG")
    return f"data:image/png;base64,{base64.b64encode(png.getvalue()).decode()}"


def device_name(device: torch.device) -> str:
    """What the numbers were taken on."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"


def _json(comparison: Comparison) -> str:
    return json.dumps(comparison.file())


def _csv(comparison: Comparison) -> str:
    out = io.StringIO()
    columns = [*COLUMNS, "params", *(f"seconds_{name}" for name in TIMES), *VERSUS, "repeat", "conditions"]
    writer = csv.DictWriter(out, columns)
    writer.writeheader()
    for record in comparison.records:
        flat = record | record["tokens"]
        row = {name: flat[name] for name in COLUMNS} | {"params": json.dumps(record["params"])}
        times = {} if record.get("shared") else record["seconds"]  # what was decoded beside others has no latency
        row |= {f"seconds_{name}": times.get(name) for name in TIMES}
        row |= {name: record.get("versus", {}).get(name) for name in VERSUS}
        writer.writerow(row | {"repeat": record["repeat"], "conditions": comparison.conditions})
    return out.getvalue()


def _html(comparison: Comparison) -> str:
    from .report import page  # which reads and writes what is made here

    return page(comparison)


WRITERS = {".json": _json, ".csv": _csv, ".html": _html}
