"""From a file to a prompt, stage by stage, as transformers does it and as we do: the command `bench preprocess`."""

import io
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import PIL
import torch
import transformers
from PIL import Image

from ..generate import answer
from ..image import open_image
from ..models import FAMILIES, load, miniatures
from ..models.llava import Llava
from ..models.pixels import KINDS, Stock
from ..tiny.examine import FINAL_SEED
from ..tiny.questions import SHORT
from ..tiny.scenes import questions, scene, score

GOAL, MEGAPIXEL = 3.0, (0.9e6, 1.1e6)  # milliseconds from the bytes of a JPEG to a prompt, for so many pixels
SIDE, PATCH, QUALITY = 336, 14, 90  # of a view and a patch, as in LLaVA; of the JPEG
WAYS = ("transformers", *KINDS)
STAGES = ("decode", "resize", "normalise", "text")
QUESTION = "What is unusual about this picture, and what stands in the corner behind it?"
SCENE = 480  # a held-out scene of 192 pixels a side, enlarged, before it becomes a JPEG
RESAMPLES = 2000
HELP = {
    "sizes": "WIDTHxHEIGHT of the images, comma between (%(default)s)",
    "families": f"comma between, of {', '.join(miniatures.FAMILIES)} (%(default)s)",
    "repeat": "timed repetitions (%(default)s)",
    "warm_up": "repetitions before them, not counted (%(default)s)",
    "threads": "of the CPU (%(default)s)",
    "scenes": "held-out scenes on which the bundled model answers with either pixels (%(default)s)",
    "seed": "of the images (%(default)s)",
}


@dataclass(frozen=True)
class Plan:
    """What is asked for; `sizes`: WIDTHxHEIGHT of images, comma between; `scenes`: held-out scenes for the answers."""

    sizes: str = "640x480,1152x864,2048x1536"
    families: str = "llava-1.5,llava-1.6-vicuna"
    repeat: int = 20
    warm_up: int = 3
    threads: int = 1
    scenes: int = 0
    seed: int = 0

    def __post_init__(self):
        for name, least in (("repeat", 1), ("warm_up", 0), ("threads", 1), ("scenes", 0), ("seed", 0)):
            if getattr(self, name) < least:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} must be at least {least}, got {getattr(self, name)}")
        for family in self.families.split(","):
            if family not in miniatures.FAMILIES:
                raise ValueError(f"--families takes some of {', '.join(miniatures.FAMILIES)}, got {family!r}")

    def images(self) -> list[tuple[int, int]]:
        """Width and height of each. Raises ValueError for what cannot be read."""
        parts = [part.strip().partition("x") for part in self.sizes.split(",")]
        if not all(wide.isdecimal() and tall.isdecimal() and int(wide) * int(tall) for wide, _, tall in parts):
            raise ValueError(f"--sizes takes WIDTHxHEIGHT in pixels, comma between, got {self.sizes!r}")
        return [(int(wide), int(tall)) for wide, _, tall in parts]


def photograph(size: tuple[int, int], seed: int = 0) -> bytes:
    """A JPEG with the power spectrum of photographs: noise at every scale, the coarser the stronger."""
    draws, grey = np.random.default_rng(seed), np.zeros((size[1], size[0], 3))
    for step in (2, 8, 32, 128):
        few = draws.integers(0, 256, (size[1] // step + 2, size[0] // step + 2, 3), dtype=np.uint8)
        grey += step**0.5 * np.asarray(Image.fromarray(few).resize(size, Image.Resampling.BICUBIC), dtype=float)
    grey = 255 * (grey - grey.min()) / (grey.max() - grey.min())
    return jpeg(Image.fromarray(grey.astype(np.uint8)))


def jpeg(image: Image.Image) -> bytes:
    """The image as a JPEG."""
    out = io.BytesIO()
    image.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def model(family: str, pixels: str) -> Llava:
    """A random LLaVA that sees views of 336 pixels as the real ones do, and is never run: for its prompts alone."""
    config = miniatures.config(family, side=SIDE, patch=PATCH)
    processor = miniatures.processor(family, PATCH, SIDE)
    return FAMILIES[config.model_type](miniatures.random_model(config), processor, family, pixels=pixels)


# ---- measuring


@torch.inference_mode()
def quickly(family: str, size: tuple[int, int] = (1152, 864), repeat: int = 7) -> dict:
    """Seconds from a JPEG's bytes to a prompt on this machine, the median of a few in about a second, and of what."""
    llava, data, seconds = model(family, "exact"), photograph(size), []
    for _ in range(2 + repeat):
        start = time.perf_counter()
        llava.prompt(llava.open(data), QUESTION)
        seconds.append(time.perf_counter() - start)
    of = (
        f"measured on this machine just now, the median of {repeat}: a drawn JPEG of {size[0]} x {size[1]} and "
        f"{len(data) / 1000:.0f} kB, exact pixels, {torch.get_num_threads()} threads"
    )
    return {"seconds": float(np.median(seconds[2:])), "of": of}


@dataclass(frozen=True, eq=False)
class Cell:
    """One family, image and way: `whole` goes from bytes to a prompt; `stages` does the same with a clock between."""

    family: str
    size: tuple[int, int]
    way: str
    llava: Llava
    data: bytes
    whole: Callable
    stages: Callable[[], list[float]]  # seconds


def cells(plan: Plan) -> list[Cell]:
    """Every combination, the ways of one image beside each other."""
    jpegs = {size: photograph(size, plan.seed) for size in plan.images()}
    made = []
    for family in plan.families.split(","):
        llavas = {kind: model(family, kind) for kind in KINDS}
        for size, data in jpegs.items():
            made.append(Cell(family, size, WAYS[0], llavas["exact"], data, *_stock(llavas["exact"], data)))
            made += [Cell(family, size, kind, llava, data, *_ours(llava, data)) for kind, llava in llavas.items()]
    return made


def _ours(llava: Llava, data: bytes) -> tuple[Callable, Callable]:
    def stages():
        marks = [time.perf_counter()]
        picture = llava.open(data)
        marks.append(time.perf_counter())
        levels = llava.eye.views(picture, llava.device).to(llava.device)
        marks.append(time.perf_counter())
        llava.eye.normalise(levels, llava.dtype)
        marks.append(time.perf_counter())
        llava.text(QUESTION, places=len(llava.layout(picture.size)))
        marks.append(time.perf_counter())
        return np.diff(marks).tolist()

    return lambda: llava.prompt(llava.open(data), QUESTION), stages


def _stock(llava: Llava, data: bytes) -> tuple[Callable, Callable]:
    """transformers' processor, called as its documentation says; what it does inside has no seams for a clock."""
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]

    def whole():
        text = llava.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        return llava.processor(images=open_image(data), text=text, return_tensors="pt")

    return whole, lambda: []


@torch.inference_mode()
def measure(plan: Plan) -> dict:
    """The record: conditions, a row for each cell, and the answers where scenes were asked for."""
    before = torch.get_num_threads()
    torch.set_num_threads(plan.threads)
    try:
        field = cells(plan)
        whole, stages = _timed(field, plan)
        record = {"bench": "preprocess", "conditions": _conditions(plan), "rows": _rows(field, whole, stages)}
        return record | ({"answers": answers(plan.scenes)} if plan.scenes else {})
    finally:
        torch.set_num_threads(before)


def _timed(field: list[Cell], plan: Plan) -> tuple[np.ndarray, list[list[list[float]]]]:
    """Seconds [cells, repeat] of the whole, and of the stages; each repetition begins one cell further on."""
    whole, stages = np.empty((len(field), plan.repeat)), [[] for _ in field]
    for turn in range(-plan.warm_up, plan.repeat):
        for i in np.roll(np.arange(len(field)), -turn):
            start = time.perf_counter()
            field[i].whole()
            took, parts = time.perf_counter() - start, field[i].stages()
            if turn >= 0:
                whole[i, turn] = took
                stages[i].append(parts)
    return whole, stages


def _rows(field: list[Cell], whole: np.ndarray, stages: list) -> list[dict]:
    rows = []
    for i, cell in enumerate(field):
        parts, total = np.median(np.array(stages[i]), axis=0), float(np.median(whole[i]))
        large = MEGAPIXEL[0] <= cell.size[0] * cell.size[1] <= MEGAPIXEL[1]
        rows.append(
            {
                **{"family": cell.family, "size": list(cell.size), "bytes": len(cell.data), "way": cell.way},
                **{"total_ms": 1e3 * total, "best_ms": 1e3 * float(whole[i].min())},
                **{"stages_ms": dict(zip(STAGES, (1e3 * parts).tolist(), strict=True)) if parts.size else None},
                **{"closes": float(parts.sum() / total) if parts.size else None},
                **{"faster": _paired(whole[i - WAYS.index(cell.way)] / whole[i]), "grey_levels": _apart(cell)},
                **{"goal_ms": GOAL if large else None, "met": 1e3 * total <= GOAL if large else None},
            }
        )
    return rows


def _paired(ratios: np.ndarray) -> list[float]:
    """The median of paired ratios, and its bootstrap's 95 %."""
    draws = np.random.default_rng(0).integers(0, len(ratios), (RESAMPLES, len(ratios)))
    return [float(np.median(ratios)), *np.percentile(np.median(ratios[draws], axis=1), [2.5, 97.5]).tolist()]


def _apart(cell: Cell) -> dict | None:
    """How far the pixels are from those of transformers' processor, in grey levels of 255: the most, and on average."""
    if cell.way == WAYS[0]:
        return None
    stock = Stock(cell.llava.processor.image_processor)
    ours, theirs = (eye.views(eye.open(cell.data), cell.llava.device).int() for eye in (cell.llava.eye, stock))
    apart = (ours - theirs).abs()
    return {"most": int(apart.max()), "mean": float(apart.float().mean())}


def answers(scenes: int) -> dict:
    """The bundled model on held-out scenes as JPEGs: how often fast pixels give the answer of exact ones, and how many
    answers are right with either."""
    llavas, agree, right, asked = [load("tiny", device="cpu", pixels=kind) for kind in KINDS], 0, np.zeros(2, int), 0
    for seed in range(FINAL_SEED, FINAL_SEED + scenes):
        shown = scene(seed)
        data = jpeg(shown.image.resize((SCENE, SCENE), Image.Resampling.BICUBIC))
        for question in questions(shown, SHORT):
            said = [answer(llava, data, question.text, max_new_tokens=24).text for llava in llavas]
            right += [score(question.family, text, question.answer) == 1 for text in said]
            agree, asked = agree + (said[0] == said[1]), asked + 1
    marks = dict(zip(KINDS, right.tolist(), strict=True))
    return {"scenes": scenes, "first": FINAL_SEED, "questions": asked, "agree": agree, "right": marks}


def _conditions(plan: Plan) -> dict:
    return {
        **{"device_name": f"{platform.machine()} CPU", "threads": plan.threads, "processors": os.cpu_count()},
        **{"load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None, "torch": torch.__version__},
        **{"transformers": transformers.__version__, "pillow": PIL.__version__, "quality": QUALITY, "seed": plan.seed},
        **{"repeat": plan.repeat, "warm_up": plan.warm_up, "order": "rotated", "resamples": RESAMPLES},
    }


# ---- in words


def table(record: dict) -> str:
    """The rows, the goal's verdict, the answers and the conditions as text."""
    head = ("family", "image", "way", *(f"{stage}, ms" for stage in STAGES), "all, ms", "of transformers", "levels off")
    lines = [head, *(_line(row) for row in record["rows"])]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    body = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*body, "", *map(_verdict, filter(_judged, record["rows"])), *_said(record), _words(record)])


def _line(row: dict) -> tuple[str, ...]:
    stages = row["stages_ms"] or dict.fromkeys(STAGES)
    off, (ratio, low, high) = row["grey_levels"], row["faster"]
    return (
        *(row["family"], "x".join(map(str, row["size"])), row["way"]),
        *("" if value is None else f"{value:.2f}" for value in stages.values()),
        *(f"{row['total_ms']:.2f}", "" if off is None else f"{ratio:.2f}x faster ({low:.2f} to {high:.2f})"),
        "" if off is None else f"{off['most']}, mean {off['mean']:.3f}",
    )


def _judged(row: dict) -> bool:
    return row["met"] is not None and row["family"] == "llava-1.5" and row["way"] != WAYS[0]


def _verdict(row: dict) -> str:
    met = "met" if row["met"] else "missed"
    return f"Goal of {row['goal_ms']:g} ms for a JPEG of a megapixel, {row['way']}: {met}, {row['total_ms']:.2f} ms."


def _said(record: dict) -> list[str]:
    if "answers" not in record:
        return []
    told = record["answers"]
    right = ", ".join(f"{count} with {kind}" for kind, count in told["right"].items())
    return [
        f"The bundled model on {told['scenes']} held-out scenes (from seed {told['first']}; Full, greedy, float32): "
        f"fast pixels give the same answer to {told['agree']} of {told['questions']} questions; right are {right}."
    ]


def _words(record: dict) -> str:
    c = record["conditions"]
    return (
        f"{c['device_name']}, {c['threads']} thread{'s' * (c['threads'] > 1)}, load {c['load']} on {c['processors']} "
        f"processors, torch {c['torch']}, transformers {c['transformers']}, Pillow {c['pillow']}; drawn JPEGs of "
        f"quality {c['quality']}, seed {c['seed']}, views of {SIDE} pixels; medians of {c['repeat']} repetitions in "
        f"rotated order after {c['warm_up']} of warm-up, all: in one go, apart from the stages; faster: median of "
        "paired ratios and its bootstrap 95 %; levels: grey levels of 255 that pixels are off transformers', the most "
        "and the mean"
    )


# ---- the command


def add_flags(command):
    """The flags of `bench preprocess`."""
    for item in fields(Plan):
        command.add_argument(
            f"--{item.name.replace('_', '-')}", type=item.type, default=item.default, help=HELP[item.name]
        )
    command.add_argument("--out", help="write the record to this .json file")
    command.add_argument("--json", action="store_true", help="print JSON alone, without the table")


def command(arguments):
    """`bench preprocess`: the table, and on the last line the record as JSON."""
    if arguments.out and Path(arguments.out).suffix != ".json":
        raise ValueError(f"--out takes a .json file, got {arguments.out!r}")
    record = measure(Plan(**{item.name: getattr(arguments, item.name) for item in fields(Plan)}))
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    if not arguments.json:
        print(table(record), end="\n\n")
    print(json.dumps(record))
