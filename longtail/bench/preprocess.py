"""From a file to a prompt, stage by stage, as transformers does it and as we do: the command `bench preprocess`."""

import io
from dataclasses import dataclass, field

import numpy as np
import PIL
import torch
from PIL import Image

from ..clock import Clock
from ..generate import answer
from ..image import open_image
from ..models import FAMILIES, load, miniatures
from ..models.llava import Llava
from ..models.pixels import KINDS, Stock
from ..tiny.examine import FINAL_SEED
from ..tiny.questions import SHORT
from ..tiny.scenes import questions, scene, score
from . import goals, protocol
from .goals import Goal
from .protocol import milliseconds, paired, rounded
from .record import add_flags as output_flags
from .record import checked, conditions, deliver, device_of, machine, span, table

GOAL, MEGAPIXEL = 3.0, (0.9e6, 1.1e6)  # milliseconds from the bytes of a JPEG to a prompt, for so many pixels
SIDE, PATCH, QUALITY = 336, 14, 90  # of a view and a patch, as in LLaVA; of the JPEG
WAYS = ("transformers", *KINDS)
STAGES = ("open", "resize", "normalise", "text")
QUESTION = "What is unusual about this picture, and what stands in the corner behind it?"
SCENE = 480  # a held-out scene of 192 pixels a side, enlarged, before it becomes a JPEG
HELP = {
    "sizes": "WIDTHxHEIGHT of the images, comma between (%(default)s)",
    "families": f"comma between, of {', '.join(miniatures.FAMILIES)} (%(default)s)",
    "repeat": "timed repetitions (%(default)s)",
    "threads": "of the CPU; 0: torch's own choice (%(default)s)",
    "device": "where the prompt shall be: auto, cpu, cuda or cuda:N (%(default)s)",
    "clock": protocol.CLOCK_HELP,
    "scenes": "held-out scenes on which the bundled model answers with either pixels (%(default)s)",
    "seed": "of the images (%(default)s)",
}


@dataclass(frozen=True)
class Plan:
    """What is asked for; `sizes`: WIDTHxHEIGHT of images, comma between; `scenes`: held-out scenes for the answers."""

    sizes: str = "640x480,1152x864,2048x1536"
    families: str = "llava-1.5,llava-1.6-vicuna"
    repeat: int = 20
    threads: int = 1
    device: str = "auto"
    clock: str = "wall"
    scenes: int = 0
    seed: int = 0

    def __post_init__(self):
        for name, least in (("repeat", 1), ("threads", 0), ("scenes", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}, got {getattr(self, name)}")
        for family in self.families.split(","):
            if family not in miniatures.FAMILIES:
                raise ValueError(f"--families takes some of {', '.join(miniatures.FAMILIES)}, got {family!r}")

    def settled(self) -> "Plan":
        """This plan on the device it names. Raises ValueError for a clock that cannot be read there."""
        plan = Plan(**vars(self) | {"device": device_of(self.device)})
        protocol.clock_of(plan.clock, plan.device, plan.threads)
        return plan

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


def model(family: str, pixels: str, device: str = "cpu") -> Llava:
    """A random LLaVA that sees views of 336 pixels as the real ones do, and is never run: for its prompts alone."""
    config = miniatures.config(family, side=SIDE, patch=PATCH)
    processor = miniatures.processor(family, PATCH, SIDE)
    return FAMILIES[config.model_type](miniatures.random_model(config).to(device), processor, family, pixels=pixels)


# ---- measuring


def quickly(family: str, size: tuple[int, int] = (1152, 864), repeat: int = 7) -> dict:
    """Seconds from a JPEG's bytes to a prompt on this machine, the median of a few in about a second, and of what."""
    llava, data = model(family, "exact"), photograph(size)
    (seconds,) = protocol.timed([lambda: llava.prompt(llava.open(data), QUESTION)], "cpu", repeat)
    of = (
        f"measured on this machine just now, the median of {repeat}: a drawn JPEG of {size[0]} x {size[1]} and "
        f"{len(data) / 1000:.0f} kB, exact pixels, {torch.get_num_threads()} threads"
    )
    return {"seconds": float(np.median(seconds)), "of": of}


@dataclass(frozen=True, eq=False)
class Cell:
    """One family, image and way: `whole` goes from bytes to a prompt."""

    family: str
    size: tuple[int, int]
    way: str
    llava: Llava
    data: bytes
    laps: list[dict[str, float]] = field(default_factory=list)  # seconds of the stages of every call

    def whole(self):
        """The way in one go. That of transformers is its processor, called as its documentation says."""
        if self.way != WAYS[0]:
            return self.llava.prompt(self.llava.open(self.data), QUESTION)
        content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
        asked, processor = [{"role": "user", "content": content}], self.llava.processor
        text = processor.apply_chat_template(asked, add_generation_prompt=True)
        return processor(images=open_image(self.data), text=text, return_tensors="pt").to(self.llava.device)

    def staged(self):
        """Our way with a clock between; what transformers does inside has no seams for one."""
        llava, clock = self.llava, Clock(self.llava.device)
        picture = llava.open(self.data)
        clock.lap("open")
        levels = llava.eye.views(picture, llava.device).to(llava.device)
        clock.lap("resize")
        llava.eye.normalise(levels, llava.dtype)
        clock.lap("normalise")
        llava.text(QUESTION, places=len(llava.layout(picture.size)))
        clock.lap("text")
        self.laps.append(dict(clock.laps))


def cells(plan: Plan) -> list[Cell]:
    """Every combination, the ways of one image beside each other."""
    jpegs, made = {size: photograph(size, plan.seed) for size in plan.images()}, []
    for family in plan.families.split(","):
        llavas = {kind: model(family, kind, plan.device) for kind in KINDS}
        llavas = {WAYS[0]: llavas["exact"]} | llavas
        made += [Cell(family, size, way, llava, data) for size, data in jpegs.items() for way, llava in llavas.items()]
    return made


@torch.inference_mode()
def measure(plan: Plan) -> dict:
    """The record of a settled plan: conditions, a row for each cell, and the answers where scenes were asked for."""
    with protocol.threads(plan.threads), protocol.phases_by(plan.clock):
        under, every = conditions(plan.device), cells(plan)
        ours = [cell for cell in every if cell.way != WAYS[0]]
        forms = [*(cell.whole for cell in every), *(cell.staged for cell in ours)]
        seconds = protocol.timed(forms, plan.device, plan.repeat, least=0, clock=plan.clock)
        stock = seconds[: len(every) : len(WAYS)].repeat(len(WAYS), axis=0)  # transformers', for each way of an image
        rows = [row(*of, plan.repeat) for of in zip(every, seconds, stock, strict=False)]
        told = {"answers": answers(plan.scenes)} if plan.scenes else {}
    under |= {"dtype": "float32", "pillow": PIL.__version__, "quality": QUALITY}
    under |= {name: getattr(plan, name) for name in ("seed", "repeat", "clock")}
    aimed = [goal.record() for goal in aims(rows, plan.device)]
    return {"bench": "preprocess", "conditions": under, "rows": rows, **told, "goals": aimed}


def row(cell: Cell, seconds: np.ndarray, stock: np.ndarray, repeat: int) -> dict:
    """A cell's times, its stages beside the whole, how much faster it is than transformers, and how far off."""
    laps, whole = cell.laps[-repeat:], milliseconds(seconds)
    stages = {name: rounded(1e3 * np.median([lap[name] for lap in laps])) for name in STAGES} if laps else None
    return {
        **{"family": cell.family, "size": list(cell.size), "bytes": len(cell.data), "way": cell.way, **whole},
        **{"stages_ms": stages, "closes": rounded(sum(stages.values()) / whole["ms"]) if stages else None},
        **{**paired(stock, seconds), "grey_levels": _apart(cell)},
    }


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


def aims(rows: list[dict], device: str) -> list[Goal]:
    """What LLaVA-1.5 aims at for an image of about a megapixel."""
    took = {
        row["way"]: row["ms"]
        for row in rows
        if row["family"] == "llava-1.5" and MEGAPIXEL[0] <= row["size"][0] * row["size"][1] <= MEGAPIXEL[1]
    }
    where, reason = "CPU" if device == "cpu" else "GPU", "not run here: needs llava-1.5 and a size of a megapixel"
    return [
        Goal(f"a JPEG of a megapixel to a prompt, {way} pixels, {where}", took.get(way), None, GOAL, " ms", reason)
        for way in KINDS
    ]


# ---- in words


def words(found: dict) -> str:
    """The rows, the goals, the answers and the conditions as text."""
    head = ("family", "image", "way", *(f"{stage}, ms" for stage in STAGES), "all, ms", "best", "faster", "95 %", "off")
    c = found["conditions"]
    parts = [
        table(head, [_line(row) for row in found["rows"]]),
        goals.words(found["goals"]),
        *([_said(found["answers"])] if "answers" in found else []),
        f"{machine(c)}, Pillow {c['pillow']}; drawn JPEGs of quality {c['quality']}, seed {c['seed']}, views of {SIDE} "
        f"pixels; medians of {c['repeat']} repetitions in an order that turns, all: in one go, apart from the stages; "
        "faster: median ratio of transformers' time to ours in the same repetition, bootstrap 95 % interval; off: grey "
        "levels of 255 that pixels are off transformers', the most and the mean",
    ]
    return "\n\n".join(parts)


def _line(row: dict) -> tuple[str, ...]:
    stages, off = row["stages_ms"] or dict.fromkeys(STAGES), row["grey_levels"]
    ours = ("", "", "") if off is None else (
        f"{row['ratio']:.2f} x", span(row["ratio_95"]), f"{off['most']}, mean {off['mean']:.3f}"
    )  # fmt: skip
    return (
        *(row["family"], "x".join(map(str, row["size"])), row["way"]),
        *("" if value is None else f"{value:.2f}" for value in stages.values()),
        *(f"{row['ms']:.2f}", f"{row['best_ms']:.2f}", *ours),
    )


def _said(told: dict) -> str:
    right = ", ".join(f"{count} with {kind}" for kind, count in told["right"].items())
    return (
        f"The bundled model on {told['scenes']} held-out scenes (from seed {told['first']}; Full, greedy, float32): "
        f"fast pixels give the same answer to {told['agree']} of {told['questions']} questions; right are {right}."
    )


# ---- the command


def add_flags(command):
    """The flags of `bench preprocess`."""
    for name, entry in Plan.__dataclass_fields__.items():
        command.add_argument(f"--{name}", type=entry.type, default=entry.default, help=HELP[name])
    output_flags(command)


def command(arguments):
    """`bench preprocess`: the table, and the record as JSON."""
    checked(arguments.out)
    found = measure(protocol.planned(Plan, arguments))
    deliver(found, words(found), arguments)
