"""Our engine beside stock transformers on the same model, number by number: the command `parity`."""

import json
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import torch
import transformers
from PIL import Image
from torch import Tensor

from .generate import Answer, answer
from .models import load, miniatures
from .models.llava import Llava
from .reducer import parse
from .reducers.full import Full

SIDE = miniatures.SIDE
SIZES = {  # width, height of an image
    "1x1": (1, 1),
    "1:20": (4, 80),
    "20:1": (80, 4),
    "one tile": (SIDE, SIDE),
    "most tiles": (2 * SIDE, 2 * SIDE),
    "odd": (61, 37),
}
PRECISIONS = {  # dtype, quantization, tolerance; that of methods that keep everything inside the tower
    "float32": ("float32", "none", 1e-5, 1e-5),
    "bfloat16": ("bfloat16", "none", 2**-6, 2**-6),
    "float16": ("float16", "none", 2**-9, 2**-9),
    "int8": ("auto", "int8", 1e-5, 2**-7),  # its kernels round activations: 1e-7 more or less can be a whole step
    "int4": ("auto", "int4", 1e-5, 2**-7),
}
EVERYTHING = (  # settings at which a method keeps all there is
    "LongTail:budget=576:heavy=1:recent=1",
    "LongTail:reading=head:alpha=576:heavy=1:recent=1",
    "LongTail:visual_stage=false:text_stage=false",
    *(
        f"{name}:budget=576"
        for name in ("TopK", "Random", "Sequential", "Uniform", "FasterVLM", "VisPruner", "DivPrune")
    ),
    *("Manual", "FastV:ratio=0", "PyramidDrop:ratio=1", "DART:budget=576", "Feather:ratio=0"),
    *("SparseVLM:budget=576", "H2O:heavy=1:recent=1", "SnapKV:capacity=4096"),
)
IN_TOWER = ("LongTail:budget=576:heavy=1:recent=1:cut=in_tower", "ToMe:r=0", "EViT:keep=1", "ATS:budget=576")
CHECKS = ("image features", "hidden states", "first logits", "tokens", "second question")
CHECKS += ("everything kept", "kept in tower")
QUESTION, REPLY, SECOND = "What is here?", "A red ball.", "Where does it lie?"
STEPS, FEWER = 24, 8  # tokens of an answer beside stock's, and beside Full's
COLUMNS = ("family", "precision", "check", "cases", "largest", "tolerance", "verdict", "at")
MEANING = (
    "Largest: absolute difference over the largest absolute value of stock. Of tokens and of a second question: 0 "
    "where all are equal, else how far apart stock's own logits were, for its token and for ours, where the two first "
    "part. Everything kept: beside Full, bit for bit. Kept in tower, which then reads one view after another: first "
    "logits beside Full's. A quantised model: beside stock generate on the same weights."
)


@dataclass(frozen=True)
class Row:
    """The largest difference of one check over all its cases; or the `reason` why it was not run."""

    family: str
    precision: str
    check: str
    cases: int = 0
    largest: float | None = None
    tolerance: float | None = None
    at: str = ""
    reason: str = ""

    @property
    def verdict(self) -> str:
        """equal, within, FAILED, or not run."""
        if self.reason:
            return "not run"
        return "equal" if self.largest == 0 else "within" if self.largest <= self.tolerance else "FAILED"

    def record(self) -> dict:
        """Plain JSON values."""
        return asdict(self) | {"verdict": self.verdict}

    def cells(self) -> tuple[str, ...]:
        """As COLUMNS of text."""
        if self.reason:
            return self.family, self.precision, self.check, "", "", "", self.verdict, self.reason
        measured = str(self.cases), f"{self.largest:.2g}", f"{self.tolerance:.2g}"
        return self.family, self.precision, self.check, *measured, self.verdict, self.at


# ---- the checks


def table(families, precisions, device: str = "auto", sizes: dict = SIZES) -> Iterator[Row]:
    """Every check of each family in each precision, on random miniatures written for the purpose."""
    for family in families:
        with tempfile.TemporaryDirectory() as folder:
            miniatures.write(family, folder)
            for precision in precisions:
                yield from rows(folder, family, precision, device, sizes)


def rows(place: str, family: str, precision: str, device: str = "auto", sizes: dict = SIZES) -> Iterator[Row]:
    """The checks of one model in one precision; one row with the reason where it cannot be loaded so."""
    dtype, quantization, tolerance, in_tower = PRECISIONS[precision]
    try:
        llava = load(place, dtype, quantization, device)
    except ValueError as refusal:
        yield Row(family, precision, "all", reason=str(refusal))
        return
    found: dict[str, dict[str, float]] = {check: {} for check in CHECKS}
    for name, size in sizes.items():
        for check, at, difference in (*_beside_stock(llava, picture(size)), *_beside_full(llava, picture(size))):
            found[check][f"{name}, {at}" if at else name] = difference
    for check, differences in found.items():
        at = max(differences, key=differences.get)
        limit = {"everything kept": 0.0, "kept in tower": in_tower}.get(check, tolerance)
        yield Row(family, precision, check, len(differences), differences[at], limit, at if differences[at] else "")


Found = Iterator[tuple[str, str, float]]  # check, where beside the image's shape, difference


@torch.inference_mode()
def _beside_stock(llava: Llava, image: Image.Image) -> Found:
    """One prompt through transformers' public methods, and through the engine."""
    inputs, watched = _stock_inputs(llava, image, QUESTION), Watched()
    sizes = {"image_sizes": inputs["image_sizes"]} if "image_sizes" in inputs else {}
    packed = llava.model.get_image_features(pixel_values=inputs["pixel_values"], **sizes).pooler_output[0]
    stock = llava.model(**inputs, output_hidden_states=True)
    ours = answer(llava, image, QUESTION, watched, max_new_tokens=STEPS)
    first, after = watched.notes[0].span
    yield "image features", "", apart(watched.notes[0].embeddings[first:after], packed)
    for note in watched.notes:
        yield "hidden states", f"entering layer {note.layer}", apart(note.hidden, stock.hidden_states[note.layer][0])
    yield "first logits", "", apart(ours.first_logits, stock.logits[0, -1])
    yield "tokens", "", _parting(llava, inputs, ours.token_ids)
    history = ((QUESTION, REPLY),)
    again = answer(llava, image, SECOND, max_new_tokens=STEPS, history=history, seen=ours.seen)
    yield "second question", "", _parting(llava, _stock_inputs(llava, image, QUESTION, REPLY, SECOND), again.token_ids)


def _beside_full(llava: Llava, image: Image.Image) -> Found:
    """Reducers that keep everything: how far their first logits are from Full's, infinite for other counts or, outside
    the tower, other tokens."""
    full = answer(llava, image, QUESTION, max_new_tokens=FEWER)
    for method in (*EVERYTHING, *IN_TOWER):
        same, inside = answer(llava, image, QUESTION, parse(method), max_new_tokens=FEWER), method in IN_TOWER
        equal = same.tokens.layers == full.tokens.layers if inside else _told(same) == _told(full)
        difference = apart(same.first_logits, full.first_logits) if equal else float("inf")
        yield "kept in tower" if inside else "everything kept", method, difference


def _told(said: Answer) -> tuple:
    return said.token_ids, said.tokens


@dataclass(frozen=True)
class Watched(Full):
    """Full, with a note of what enters each decoder layer."""

    notes: list = field(default_factory=list, compare=False, repr=False)

    def drop(self, prefill):
        self.notes.append(prefill)


def apart(ours: Tensor, stock: Tensor) -> float:
    """Largest absolute difference over stock's largest absolute value; infinite where shapes differ or it is NaN."""
    ours, stock = ours.float().cpu(), stock.float().cpu()
    if ours.shape != stock.shape:
        return float("inf")
    return float(((ours - stock).abs().max() / stock.abs().max()).nan_to_num(float("inf")))


def _parting(llava: Llava, inputs, ours: tuple[int, ...]) -> float:
    """0 where stock `generate` writes our tokens; else the gap of its logits where they part, over the largest."""
    asked = {"max_new_tokens": STEPS, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    written = llava.model.generate(**inputs, **asked)
    stock = written.sequences[0, inputs["input_ids"].shape[1] :].tolist()
    if list(ours) == stock:
        return 0.0
    step = next((i for i, (a, b) in enumerate(zip(ours, stock, strict=False)) if a != b), None)
    if step is None:  # one ends, the other goes on
        return float("inf")
    logits = written.logits[step][0].float()
    return float((logits[stock[step]] - logits[ours[step]]) / logits.abs().max())


def _stock_inputs(llava: Llava, image: Image.Image, *texts: str):
    """What the model's own processor makes of an image and a question, or a question, its answer, the next question."""
    turns = [
        {"role": ("user", "assistant")[i % 2], "content": [{"type": "text", "text": t}]} for i, t in enumerate(texts)
    ]
    turns[0]["content"].insert(0, {"type": "image"})
    text = llava.processor.apply_chat_template(turns, add_generation_prompt=True)
    return llava.processor(images=image, text=text, return_tensors="pt").to(llava.device, llava.dtype)


def picture(size: tuple[int, int]) -> Image.Image:
    """A seeded picture of that width and height."""
    generator = torch.Generator().manual_seed(3)
    pixels = torch.rand(9, 12, 3, generator=generator).mul(255).byte().numpy()
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


# ---- the command


def add_flags(command):
    """The flags of `parity`."""
    command.add_argument("--families", default="all", help=f"{', '.join(miniatures.FAMILIES)} (comma between), or all")
    command.add_argument("--precisions", default="all", help=f"{', '.join(PRECISIONS)} (comma between), or all")
    command.add_argument("--shapes", default="all", help=f"of images: {', '.join(SIZES)} (comma between), or all")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (%(default)s)")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument("--markdown", action="store_true", help="print a Markdown table")


def command(arguments):
    """`parity`: a row as soon as it is known, then what the numbers mean. Ends with status 1 where a check fails."""
    families = _chosen("--families", arguments.families, miniatures.FAMILIES)
    precisions = _chosen("--precisions", arguments.precisions, PRECISIONS)
    shapes = _chosen("--shapes", arguments.shapes, SIZES)
    found, line = [], _markdown if arguments.markdown else _text
    if not arguments.json:
        print(line(COLUMNS) + ("\n|" + "---|" * len(COLUMNS)) * arguments.markdown)
    for row in table(families, precisions, arguments.device, {shape: SIZES[shape] for shape in shapes}):
        found.append(row)
        if not arguments.json:
            print(line(row.cells()), flush=True)
    under = _conditions(arguments.device)
    if arguments.json:
        print(json.dumps({"conditions": under, "meaning": MEANING, "rows": [row.record() for row in found]}))
    else:
        print(f"\n{MEANING}\n{under}")
    if failed := [row for row in found if row.verdict == "FAILED"]:
        raise SystemExit(f"longtail: {len(failed)} of {len(found)} checks failed")


def _chosen(flag: str, text: str, known) -> list[str]:
    """The names given, each known; all for `all`. Raises ValueError for another, and for none."""
    names = list(known) if text == "all" else [name.strip() for name in text.split(",") if name.strip()]
    if not names or not set(names) <= set(known):
        raise ValueError(f"{flag} takes {', '.join(known)} or all, comma between, got {text!r}")
    return names


def _text(cells) -> str:
    widths = (17, 9, 15, 5, 9, 9, 7, 0)
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _markdown(cells) -> str:
    return f"| {' | '.join(cells)} |"


def _conditions(device: str) -> str:
    cuda = torch.cuda.is_available() and device != "cpu"
    name = torch.cuda.get_device_name(None if device == "auto" else device) if cuda else f"{platform.machine()} CPU"
    return (
        f"random miniatures, seed 0, sdpa; {name}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )
