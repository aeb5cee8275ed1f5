"""`bench decode`: later tokens while an answer grows, with stage 2's fixed cache and without; slope, floor, KV bytes.

All answers grow side by side, a token each in an order that turns, and beside them a control that only reads weights:
what the machine does to all of them cancels out of the slope of a step over the control's. Many answers at once, where
they are asked for, are a file of their own: `crowd`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from ..decoder import Decoder
from ..graph import Steps
from ..models.drawn import CONFIGS, Drawn, stack
from ..models.precision import DTYPES, QUANTIZATIONS, choose
from ..reducer import make
from . import counted, crowd, floors, goals, protocol
from .crowd import SKIPPED
from .goals import REFUSED, Goal
from .protocol import Stopwatch, milliseconds, order, rounded
from .reading import held
from .record import add_flags as output_flags
from .record import checked, conditions, deliver, device_of, machine, span, table
from .synthetic import Prompts, Quiet

METHODS = "LongTail", "TopK"  # the same visual tokens: a cache of fixed size, and one that grows
WINDOWS = 16  # their medians carry the slope
DRAWS = 500  # of the bootstrap of a slope
STEP_FLOOR = 1.15  # a captured step over the time to read weights and cache


@dataclass(frozen=True)
class Plan:
    """What is asked for; None is decided by the device: see `settled`."""

    random: str = "llava-1.5-7b"
    layers: int | None = None
    dtype: str = "auto"
    quantization: str = "none"
    device: str = "auto"
    batch: str | None = None
    budget: int = 127
    text: int = 60
    new: int = 512
    threads: int | None = None
    repeat: int | None = None
    seed: int = 0
    clock: str = "wall"
    batches: tuple[int, ...] = field(default=(), init=False)

    def __post_init__(self):
        least = (("layers", 1), ("text", 2), ("new", SKIPPED + WINDOWS + 1), ("threads", 0), ("repeat", 1), ("seed", 0))
        for name, low in least:
            if getattr(self, name) is not None and getattr(self, name) < low:
                raise ValueError(f"--{name} must be at least {low}, got {getattr(self, name)}")
        if self.random not in CONFIGS:
            raise ValueError(f"--random takes one of {', '.join(CONFIGS)}, got {self.random!r}")

    def settled(self) -> "Plan":
        """This plan for the device it runs on: on a CPU two layers, one thread and one answer at a time; on a GPU the
        whole model, and 8 and 32 answers at once too.

        Raises ValueError for more positions than the model has, and for a budget above its patches.
        """
        device, config = device_of(self.device), CONFIGS[self.random]()
        cuda, text, patches = device != "cpu", config.get_text_config(), floors.spec(config).vision.patches
        if not 1 <= self.budget <= patches:
            raise ValueError(f"--budget must be between 1 and {patches}, the patches of a view, got {self.budget}")
        if patches + self.text + self.new > text.max_position_embeddings:
            raise ValueError(f"--new must leave room: {self.random} has {text.max_position_embeddings} positions")
        defaults = {"layers": text.num_hidden_layers if cuda else min(2, text.num_hidden_layers)}
        defaults |= {"threads": 0 if cuda else 1, "repeat": 3 if cuda else 2}
        defaults |= {"batch": "1,8,32" if cuda else "1"}
        given = {name: getattr(self, name) for name, entry in self.__dataclass_fields__.items() if entry.init}
        filled = {name: defaults.get(name) if value is None else value for name, value in given.items()}
        protocol.clock_of(self.clock, device, filled["threads"])
        plan = Plan(**filled | {"device": device})
        object.__setattr__(plan, "batches", protocol.numbers("batch", filled["batch"], 256))
        return plan


class Growing:
    """One answer that grows by a token a call, as the engine does it: step, choose, fetch."""

    def __init__(self, llava: Drawn, prompts: Prompts, method: str, plan: Plan, graph: bool):
        reducer = make(method, budget=plan.budget)
        before = _allocated(plan.device)
        self.decoder = Decoder(llava, reducer)
        spliced = prompts.spliced(reducer.reduce(prompts.visual))
        self.token = self.decoder.prefill(spliced, prompts.unpruned, plan.new, Quiet()).argmax(-1, keepdim=True)
        self.taken = _allocated(plan.device) - before
        self.method, self.mode, self.stepping = method, "graph" if graph else "eager", self.decoder
        if graph:
            self.stepping = Steps(self.decoder)

    def __call__(self) -> int:
        self.token = self.stepping.step(self.token).argmax(-1, keepdim=True)
        return self.decoder.fetch(self.token)

    def held(self) -> int:
        """Bytes of the cache's slots, written or not."""
        return held(self.decoder)


def control(llava: Drawn) -> tuple[Callable, int]:
    """One token through the layers' MLPs alone, no cache, and the bytes of weights it reads."""
    parts = [layer.mlp for layer in llava.decoder_layers]
    states = torch.randn(1, 1, llava.model.config.get_text_config().hidden_size).to(llava.device, llava.dtype)

    def run():
        for part in parts:
            part(states)

    return run, sum(weight.nbytes for part in parts for weight in part.parameters())


def _allocated(device: str) -> int:
    return torch.cuda.memory_allocated(device) if device != "cpu" else 0


# ---- measuring


@torch.inference_mode()
def measure(plan: Plan) -> dict:
    """The record of a settled plan. Raises ValueError for weights that do not fit."""
    with protocol.threads(plan.threads):
        precision = choose(plan.dtype, plan.quantization, plan.device)
        llava = stack(plan.random, precision, plan.device, plan.layers, plan.text, plan.seed)
        prompts, spec = Prompts(llava, plan.seed), floors.spec(llava.model.config)
        under, peaks = conditions(plan.device), floors.peaks(plan.device)
        modes = [False, True] if llava.capturable else [False]
        alone, weights = control(llava)
        if plan.device != "cpu":
            torch.cuda.reset_peak_memory_stats(plan.device)
        runs, seconds = grown(llava, prompts, plan, modes, alone)
        together = [crowd.grown(llava, prompts, plan, batch) for batch in plan.batches if batch > 1]
        peak = torch.cuda.max_memory_allocated(plan.device) if plan.device != "cpu" else None
    peaks = peaks.reads_at_least(weights, seconds[-1].min())
    width = floors.bits(precision.dtype, plan.quantization)
    rows = [row(run, seconds[i], seconds[-1], plan, spec, peaks, width, precision.dtype) for i, run in enumerate(runs)]
    found = {"bench": "decode", "conditions": under | _asked(plan, spec, precision), "peaks": peaks.record(),
             "control": milliseconds(seconds[-1]), "peak_bytes": peak, "rows": rows,
             "batches": [crowd.row(one, plan, spec, peaks, width, precision.dtype) for one in together]}  # fmt: skip
    found["goals"] = [goal.record() for goal in aims(found)]
    at = [(f"a token of {r['method']}, {r['mode']}", r["best_ms"] / 1e3, r["floor_ms"]) for r in rows]
    at += [
        (f"a step of {line['batch']} answers, {name}", line[name]["best_ms"] / 1e3, line[name]["floor_ms"])
        for line in found["batches"]
        for name in crowd.METHODS
    ]
    below = [floors.below(what, best, floor and floor / 1e3, peaks) for what, best, floor in at]
    refused = any(run.mode == "graph" and run.stepping.refused for run in runs)
    found["failures"] = [sentence for sentence in below if sentence] + [REFUSED.format("steps")] * refused
    return found


def grown(llava: Drawn, prompts: Prompts, plan: Plan, modes: list[bool], alone: Callable):
    """The answers of the last repetition, counted through, and seconds [answers + control, repeat, new - 1]."""
    watch = Stopwatch(plan.device, plan.clock)
    seconds = np.empty((len(METHODS) * len(modes) + 1, plan.repeat, plan.new - 1))
    for turn in range(plan.repeat):
        runs = [Growing(llava, prompts, method, plan, graph) for graph in modes for method in METHODS]
        for step in range(plan.new - 1):
            for i in order(len(seconds), turn + step):
                seconds[i, turn, step] = watch((*runs, alone)[i])
    for run in runs:
        run.entries, run.live, run.slots = run.decoder.entries(), run.decoder.bytes(), run.held()
        run.counts = _counts(Growing(llava, prompts, run.method, plan, run.mode == "graph"), plan.device)
    return runs, seconds


def _counts(fresh: Growing, device: str) -> dict[str, int]:
    """Kernels and waits of a token of an answer that has begun; a captured one is captured by then."""
    if device == "cpu":
        return {}
    for _ in range(SKIPPED):
        fresh()
    return counted.count(fresh, device)


def row(run: Growing, seconds, beside, plan: Plan, spec, peaks, width: int, dtype: torch.dtype) -> dict:
    """An answer's steps: times, slope alone and over the control, floor, KV bytes beside their arithmetic."""
    fixed = run.method == "LongTail"
    entries = plan.budget + plan.text + (0 if fixed else plan.new - 1)
    kv = spec.kv_bytes(8 * dtype.itemsize) * (entries if fixed else entries + 1)
    floor = floors.decode(spec, peaks, plan.budget + plan.text, width)
    settled = seconds[:, SKIPPED:]
    return {
        **{"method": run.method, "mode": run.mode, **milliseconds(settled)},
        **{"floor_ms": floor and rounded(1e3 * floor), "over_floor": floor and rounded(np.median(settled) / floor)},
        **{"slope": slope(settled), "slope_over_control": slope(settled / beside[:, SKIPPED:])},
        **{"entries": run.entries, "kv_live_bytes": run.live, "kv_bytes": run.slots, "kv_arithmetic": int(kv)},
        **{"allocated_bytes": run.taken or None, **run.counts},
        "windows_ms": [rounded(1e3 * value) for value in np.median(_windows(settled), axis=1)],
    }


def slope(values: np.ndarray) -> dict:
    """Least-squares change of `values` [repeat, steps] from first to last step, per cent of their mean, through the
    medians of windows; and its interval, steps drawn anew within each window."""
    windows = _windows(values)
    draws = np.random.default_rng(0).integers(0, windows.shape[1], (DRAWS, *windows.shape))
    drawn = np.median(np.take_along_axis(windows[None], draws, 2), axis=2)
    ends = np.percentile([_change(medians) for medians in drawn], [2.5, 97.5])
    found = _change(np.median(windows, axis=1))
    return {"per_cent": rounded(found), "per_cent_95": [rounded(end) for end in ends]}


def _windows(values: np.ndarray) -> np.ndarray:
    """Steps of all repetitions [WINDOWS, repeat * length], those left over at the start dropped."""
    length = values.shape[1] // WINDOWS
    part = values[:, values.shape[1] - WINDOWS * length :].reshape(len(values), WINDOWS, length)
    return part.transpose(1, 0, 2).reshape(WINDOWS, -1)


def _change(medians: np.ndarray) -> float:
    """Per cent of the mean that a straight line through the windows gains over all steps."""
    return 100 * len(medians) * np.polyfit(np.arange(len(medians)), medians, 1)[0] / medians.mean()


def _asked(plan: Plan, spec, precision) -> dict:
    return {
        **{"model": plan.random, "dtype": str(precision.dtype).removeprefix("torch.")},
        **{"quantization": plan.quantization, "layers": spec.layers, "hidden": spec.hidden},
        **{"intermediate": spec.intermediate, "vocabulary": spec.vocabulary, "budget": plan.budget},
        **{"patches": spec.vision.patches, "text": plan.text, "new": plan.new, "batches": list(plan.batches)},
        **{"repeat": plan.repeat, "skipped": SKIPPED, "windows": WINDOWS},
        **{"seed": plan.seed, "clock": plan.clock},
    }


def aims(found: dict) -> list[Goal]:
    """The goals, those of a GPU with None where there is none."""
    at = {(r["method"], r["mode"]): r for r in found["rows"]}
    best = "graph" if ("LongTail", "graph") in at else "eager"
    fixed, growing, graph = at["LongTail", best], at["TopK", best], at.get(("LongTail", "graph"), {})
    off = 100 * abs(fixed["kv_bytes"] / fixed["kv_arithmetic"] - 1)
    new, eager, unit = found["conditions"]["new"], at["LongTail", "eager"], " %"
    gigabytes = found["peak_bytes"] and found["peak_bytes"] / 1e9
    steps = f"step time over {new} tokens"
    return [
        Goal(f"{steps}, stage 2: change over the control", fixed["slope_over_control"]["per_cent"], most=1, unit=unit),
        Goal(
            f"{steps}, cache growing: lower end of its interval",
            growing["slope_over_control"]["per_cent_95"][0],
            least=0,
            unit=unit,
        ),
        Goal("KV bytes off their arithmetic", rounded(off), most=5, unit=unit),
        Goal("a captured step over the bandwidth floor, GPU", graph.get("over_floor"), most=STEP_FLOOR, unit=" x"),
        Goal("waits of the host for a token, GPU", (graph or eager).get("synchronisations"), most=1),
        Goal("kernels for a token launched op by op, GPU", eager.get("kernels")),
        Goal(
            "memory that the fixed cache spares, of its arithmetic, GPU",
            spared(at["LongTail", "eager"], at["TopK", "eager"]),
            least=95,
            unit=" %",
        ),
        Goal("peak memory, GPU", gigabytes, unit=" GB"),
        *crowd.aims(found),
    ]


def spared(fixed: dict, growing: dict) -> float | None:
    """Per cent of the bytes between two caches, by arithmetic, that the allocator holds less for the fixed one."""
    if fixed["allocated_bytes"] is None:
        return None
    taken, due = (growing[name] - fixed[name] for name in ("allocated_bytes", "kv_arithmetic"))
    return rounded(100 * taken / due)


# ---- in words


def words(found: dict) -> str:
    """Table, goals, conditions."""
    head = ("method", "mode", "ms", "best", "floor", "over floor", "change", "95 %", "over control", "95 %",
            "entries", "KV MB", "arithmetic")  # fmt: skip
    rows = [
        (
            *(r["method"], r["mode"], f"{r['ms']:.2f}", f"{r['best_ms']:.2f}"),
            *("unknown" if r[name] is None else f"{r[name]:.3g}" for name in ("floor_ms", "over_floor")),
            *(f"{r['slope']['per_cent']:+.2f} %", span(r["slope"]["per_cent_95"])),
            *(f"{r['slope_over_control']['per_cent']:+.2f} %", span(r["slope_over_control"]["per_cent_95"])),
            *(f"{r['entries']:g}", f"{r['kv_bytes'] / 1e6:.2f}", f"{r['kv_arithmetic'] / 1e6:.2f}"),
        )
        for r in found["rows"]
    ]
    c, peaks = found["conditions"], floors.Peaks.of(found["peaks"])
    return "\n\n".join(
        [
            table(head, rows),
            *([crowd.words(found)] if found["batches"] else []),
            goals.words(found["goals"]),
            f"{machine(c)}; {c['layers']} decoder layers of {c['model']} (h {c['hidden']}, I {c['intermediate']}) and "
            f"{c['vocabulary']} words, random weights, quantization {c['quantization']}; {c['budget']} visual and "
            f"{c['text']} text tokens, {c['new']} new ones, {c['repeat']} repetitions, seed {c['seed']}; change: of a "
            f"straight line from first to last token, per cent of the mean step, through the medians of {c['windows']} "
            f"windows behind {c['skipped']} steps; control: the layers' MLPs alone, {found['control']['ms']:.4g} ms, "
            f"timed beside each step; {peaks.words()}",
        ]
    )


# ---- the command


def add_flags(command):
    """The flags of `bench decode`."""
    command.add_argument("--random", default="llava-1.5-7b", metavar="NAME", help=f"one of {', '.join(CONFIGS)}")
    command.add_argument("--layers", type=int, help="decoder layers; 2 on a CPU, all on a GPU")
    command.add_argument("--dtype", default="auto", help=", ".join(DTYPES))
    command.add_argument("--quantization", default="none", help=", ".join(QUANTIZATIONS))
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    command.add_argument("--batch", help="answers at once, comma between; 1 on a CPU, 1,8,32 on a GPU")
    command.add_argument("--budget", type=int, default=127, help="visual tokens (%(default)s)")
    command.add_argument("--text", type=int, default=60, help="text tokens (%(default)s)")
    command.add_argument("--new", type=int, default=512, help="tokens of an answer (%(default)s)")
    command.add_argument("--threads", type=int, help="of the CPU; 1 on a CPU, torch's own choice beside a GPU")
    command.add_argument("--repeat", type=int, help="answers of each kind; 2 on a CPU, 3 on a GPU")
    command.add_argument("--seed", type=int, default=0, help="of weights and features (%(default)s)")
    command.add_argument("--clock", default="wall", help=protocol.CLOCK_HELP)
    output_flags(command)


def command(arguments):
    """`bench decode`: the table, and the record as JSON. Ends with status 1 where a time is below its floor."""
    checked(arguments.out)
    found = measure(protocol.planned(Plan, arguments))
    deliver(found, words(found), arguments)
