"""Every method through the whole engine at full size, on random weights: the command `bench model`."""

import re
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
from PIL import Image

from ..export import TIMES
from ..generate import answer
from ..models.drawn import CONFIGS, Drawn, drawn
from ..models.loading import gib
from ..models.precision import DTYPES, QUANTIZATIONS, choose, held
from ..reducer import REDUCERS, Reducer, parse
from . import floors, protocol
from .bounds import Bounds
from .record import add_flags as output_flags
from .record import checked, deliver, device_of, machine, write
from .record import conditions as machine_conditions

BLANK = Image.new("RGB", (1, 1))  # what the engine is given in place of an image: the prompt is drawn
SENTENCE = "The weights are random: times and memory mean something, words and what a method chose to keep do not."
COLUMNS = {  # and their widths
    **{"round": 7, "method": 13, "visual": 6, "a layer": 7, "prompt": 6},
    **{name: 11 for name in ("vision", "reduce", "prefill", "first", "later")},
    **{"of Full": 8, "peak GiB": 8, "KV MiB": 7},
}


@dataclass(frozen=True)
class Plan:
    """What is asked for; `size`: width and height of the image."""

    random: str
    dtype: str = "auto"
    quantization: str = "none"
    device: str = "auto"
    methods: str = "all"
    budget: int | None = None
    text: int = 60
    new: int = 16
    repeat: int = 5
    warm_up: int = 1
    view_shape: str | None = None
    time_limit: float | None = None
    threads: int = 0
    seed: int = 0
    eager: bool = False
    clock: str = "wall"

    def __post_init__(self):
        for name, least in (("text", 2), ("new", 1), ("repeat", 1), ("warm_up", 0), ("threads", 0), ("seed", 0)):
            if getattr(self, name) < least:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} must be at least {least}, got {getattr(self, name)}")
        if self.random not in CONFIGS:
            raise ValueError(f"--random takes one of {', '.join(CONFIGS)}, got {self.random!r}")
        if self.time_limit is not None and not self.time_limit > 0:
            raise ValueError(f"--time-limit takes seconds above 0, got {self.time_limit:g}")

    def size(self) -> tuple[int, int] | None:
        """Width and height of the image. Raises ValueError for a shape that cannot be read, or that nothing tiles."""
        if self.view_shape is None:
            return None
        height, cross, width = self.view_shape.partition("x")
        if not (cross and height.isdecimal() and width.isdecimal() and int(height) and int(width)):
            raise ValueError(f"--view-shape takes HEIGHTxWIDTH in pixels, such as 672x672, got {self.view_shape!r}")
        if not hasattr(CONFIGS[self.random](), "image_grid_pinpoints"):
            raise ValueError(f"--view-shape is for LLaVA-1.6, which tiles its image; {self.random} sees one view")
        return int(width), int(height)

    def reducers(self) -> dict[str, Reducer | str]:
        """Each method by its text, Full first; the reason in place of one that does not go with the budget."""
        vision = CONFIGS[self.random]().vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        budget = max(134 * patches // 576, 1) if self.budget is None else self.budget
        if not 1 <= budget <= patches:
            raise ValueError(f"--budget must be between 1 and {patches}, the patches of a view, got {budget}")
        names = [*REDUCERS] if self.methods == "all" else [name.strip() for name in self.methods.split(",")]
        for name in names:
            parse(name)  # an unknown method or parameter is the whole command's fault
        return {name: _at(name, budget) for name in dict.fromkeys(["Full", *names])}


def _at(text: str, budget: int) -> Reducer | str:
    try:
        return parse(text, budget)
    except ValueError as refusal:
        return str(refusal)


# ---- measuring


def rounds(llava: Drawn, plan: Plan) -> Iterator[tuple[int, str, dict]]:
    """Round (0 and below: warm-up), method, and what was measured or the reason why not, one after another.

    The order turns by one each round. A method that cannot run says so once.
    """
    field = plan.reducers()
    able = [name for name, reducer in field.items() if isinstance(reducer, Reducer)]
    yield from ((1, name, {"reason": reason}) for name, reason in field.items() if isinstance(reason, str))
    for turn in range(1 - plan.warm_up, 1 + plan.repeat):
        first = (turn - 1) % len(able)
        for name in able[first:] + able[:first]:
            found = once(llava, field[name], plan)
            yield turn, name, found
            if "reason" in found:
                able = [other for other in able if other != name]


def once(llava: Drawn, reducer: Reducer, plan: Plan) -> dict:
    """One answer: counts, seconds, peak memory; or the reason why there is none."""
    _forget_peak(llava.device)
    try:
        said = answer(llava, BLANK, "?", reducer, max_new_tokens=plan.new, time_limit=plan.time_limit, eager=plan.eager)
    except (ValueError, torch.OutOfMemoryError) as error:
        reason = " ".join(str(error).split())
        torch.cuda.empty_cache()  # nothing where there is no GPU
        return {"reason": reason}
    return {
        "tokens": asdict(said.tokens) | {"layers": list(said.tokens.layers)},
        "seconds": asdict(said.seconds),
        "peak_bytes": said.memory if llava.device.type == "cuda" else _peak(),
        "finished": said.finished,
    }


def row(name: str, runs: dict[int, dict], full: dict[int, dict]) -> dict:
    """A method's rounds as one: medians, and its time to the first token over Full's in the same round."""
    if reasons := [run["reason"] for run in runs.values() if "reason" in run]:
        return {"method": name, "reason": reasons[0]}
    whole = {turn: run for turn, run in runs.items() if run["finished"] == "length"}
    if not whole:
        last = [*runs.values()][-1]
        stopped = f"the time limit came after {last['tokens']['generated']} tokens, {last['seconds']['total']:.1f} s"
        return {"method": name, "reason": stopped}
    firsts = {turn: run["seconds"]["first_token"] for turn, run in whole.items()}
    ratios = [firsts[turn] / full[turn]["seconds"]["first_token"] for turn in firsts if _ended(full.get(turn))]
    last = [*whole.values()][-1]
    return {
        "method": name,
        "rounds": len(whole),
        "tokens": last["tokens"],
        "seconds": {phase: statistics.median(run["seconds"][phase] for run in whole.values()) for phase in TIMES},
        "spread": {phase: _spread([run["seconds"][phase] for run in whole.values()]) for phase in TIMES},
        "first_token_of_full": statistics.median(ratios) if ratios else None,
        "peak_bytes": max((run["peak_bytes"] for run in whole.values() if run["peak_bytes"]), default=None),
    }


def _ended(run: dict | None) -> bool:
    return run is not None and run.get("finished") == "length"


def _spread(values: list[float]) -> list[float]:
    return [min(values), max(values)]


def _forget_peak(device: torch.device):
    """Let the highest resident memory of this process start anew, where the system can (Linux)."""
    mark = Path("/proc/self/clear_refs")
    if device.type == "cpu" and mark.exists():
        mark.write_text("5")


def _peak() -> int | None:
    """Highest resident memory of this process since it was forgotten, bytes; None where the system does not say."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else None


# ---- the record and its table


@dataclass
class Board:
    """What has been measured so far: printed, and written to a file, after every answer."""

    conditions: dict
    plan: Plan
    out: str | None
    silent: bool
    runs: dict[str, dict[int, dict]] = field(default_factory=dict)

    def take(self, turn: int, name: str, found: dict):
        """One more answer, or the reason why there is none."""
        if turn > 0 or "reason" in found:
            self.runs.setdefault(name, {})[turn] = found
        if not self.silent:
            label = f"{turn} of {self.plan.repeat}" if turn > 0 else "warm-up"
            print(_line(label, row(name, {turn: found}, self.runs.get("Full", {}))), flush=True)
        write(self.record(), self.out)

    def record(self) -> dict:
        """Plain JSON values."""
        full, names = self.runs.get("Full", {}), [name for name in self.plan.reducers() if name in self.runs]
        rows = [row(name, self.runs[name], full) for name in names]
        return {"bench": "model", "note": SENTENCE, "conditions": self.conditions, "rows": rows}


def conditions(llava: Drawn, plan: Plan) -> dict:
    """What the numbers depend on, as plain JSON values."""
    return {
        **machine_conditions(str(llava.device)),
        **{"model": llava.name, "dtype": str(llava.dtype).removeprefix("torch."), "quantization": llava.quantization},
        **{"weights_bytes": held(llava.model)},
        **{"patches": sum(llava.drawn.layout.sizes), "views": len(llava.drawn.layout.sizes)},
        **{
            name: getattr(plan, name)
            for name in ("budget", "text", "new", "repeat", "warm_up", "time_limit", "seed", "eager", "clock")
        },
    }


def in_words(c: dict) -> str:
    """Conditions as a paragraph."""
    quantized = "" if c["quantization"] == "none" else f", decoder layers in {c['quantization']}"
    return (
        f"{machine(c)}; {c['model']}{quantized}, {gib(c['weights_bytes'])} GiB of weights; {c['patches']} patches in "
        f"{c['views']} views, {c['text']} text tokens, {c['new']} new ones, seed {c['seed']}; medians of {c['repeat']} "
        f"rounds in turning order after {c['warm_up']} of warm-up; of Full: time to the first token over Full's of the "
        "same round; later: each token behind the first; peak: of all memory, weights included; prompts are drawn, so "
        "nothing is preprocessed"
    )


def _line(label: str, row: dict) -> str:
    if "reason" in row:
        return f"{_cells([label, row['method']])}  not measured: {row['reason']}"
    tokens, seconds, ratio = row["tokens"], row["seconds"], row["first_token_of_full"]
    times = [f"{1000 * seconds[p]:,.1f} ms" for p in ("vision", "method", "prefill", "first_token", "per_token")]
    peak = f"{row['peak_bytes'] / 2**30:.2f}" if row["peak_bytes"] else "unknown"
    counts = tokens["visual"], f"{tokens['layer_mean']:.0f}", tokens["prompt"]
    share = f"{100 * ratio:.1f} %" if ratio else ""
    return _cells([label, row["method"], *counts, *times, share, peak, f"{tokens['kv_bytes'] / 2**20:.2f}"])


def _cells(cells: list) -> str:
    widths = list(COLUMNS.values())[: len(cells)]
    return "  ".join(str(cell).ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


# ---- the command


def add_flags(command):
    """The flags of `bench model`."""
    command.add_argument("--random", required=True, metavar="NAME", help=f"one of {', '.join(CONFIGS)}")
    command.add_argument("--dtype", default="auto", help=", ".join(DTYPES))
    command.add_argument("--quantization", default="none", help=", ".join(QUANTIZATIONS))
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    command.add_argument("--methods", default="all", help="all, or NAME or NAME:parameter=value, comma between")
    command.add_argument("--budget", type=int, help="visual tokens of a view; else 134 of 576, or that share")
    command.add_argument(
        "--text", type=int, default=60, help="text tokens, half of them before the image (%(default)s)"
    )
    command.add_argument("--new", type=int, default=16, help="tokens of an answer (%(default)s)")
    command.add_argument("--repeat", type=int, default=5, help="rounds (%(default)s)")
    command.add_argument("--warm-up", type=int, default=1, help="rounds before them, not counted (%(default)s)")
    command.add_argument("--view-shape", help="HEIGHTxWIDTH of the image for LLaVA-1.6; else twice a view's")
    command.add_argument("--time-limit", type=float, help="seconds that an answer may take")
    command.add_argument("--threads", type=int, default=0, help="of the CPU; 0: torch's own choice")
    command.add_argument("--seed", type=int, default=0, help="of weights, ids and pixels (%(default)s)")
    command.add_argument("--eager", action="store_true", help="never replay a captured CUDA graph")
    command.add_argument("--clock", default="wall", help=protocol.CLOCK_HELP)
    output_flags(command)


def command(arguments):
    """`bench model`: a line as soon as it is measured, the medians and their floors, and on the last line the record as
    JSON; the file is rewritten after every answer. Ends with status 1 where a time is below its floor."""
    checked(arguments.out)
    plan = Plan(**{item.name: getattr(arguments, item.name) for item in fields(Plan)})
    plan.reducers()  # refused before anything is built
    size, where = plan.size(), device_of(plan.device)
    precision = choose(plan.dtype, plan.quantization, where)
    protocol.clock_of(plan.clock, where, plan.threads)
    with protocol.threads(plan.threads), protocol.phases_by(plan.clock):
        llava, peaks = drawn(plan.random, precision, where, plan.text, size, plan.seed), floors.peaks(where)
        board = Board(conditions(llava, plan), plan, arguments.out, arguments.json)
        if not board.silent:
            print(_cells([*COLUMNS]), flush=True)
        for turn, name, found in rounds(llava, plan):
            board.take(turn, name, found)
        bounds = Bounds(llava, peaks.best(floors.peaks(where)))
    record = bounds.beside(board.record())
    medians = [_line("medians", row) for row in record["rows"]]
    said = ["", _cells([*COLUMNS]), *medians, "", bounds.words(record), "", SENTENCE, in_words(board.conditions)]
    deliver(record, "\n".join(said), arguments)
