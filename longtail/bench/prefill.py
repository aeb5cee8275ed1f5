"""`bench prefill`: reading a prompt through the engine's own decoder layers, by visual tokens; floor and FLOPs beside.

The layers are of full width and random. The unpruned prompt runs between every two others, so that each ratio is of two
neighbours in time; it also runs against itself, for what two equal forms differ by.
"""

from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import torch

from .. import graph
from ..models.drawn import CONFIGS, Drawn, stack
from ..models.precision import DTYPES, QUANTIZATIONS, choose
from . import floors, goals, protocol
from .goals import REFUSED, Goal
from .protocol import Against, milliseconds, paired, rounded
from .reading import Form, Staged, forms, staged
from .record import add_flags as output_flags
from .record import checked, conditions, deliver, device_of, machine, span, table
from .synthetic import Prompts

AIMED = 127  # visual tokens of the goals
SHARE = 0.95  # of the FLOP ratio, on a CPU
OVERHEAD = 2  # per cent of the time that pruning saves: what our selector may take
STRAY = 0.05  # how far two equal forms may lie apart, or a speed-up above what the floors allow, before it is doubted


@dataclass(frozen=True)
class Plan:
    """What is asked for; None is decided by the device: see `settled`."""

    random: str = "llava-1.5-7b"
    layers: int | None = None
    dtype: str = "auto"
    quantization: str = "none"
    device: str = "auto"
    visual: str = "576,250,192,127,64,32"
    text: int = 60
    batch: str | None = None
    graph: bool | None = None
    threads: int | None = None
    repeat: int | None = None
    seed: int = 0
    clock: str = "wall"
    counts: tuple[int, ...] = field(default=(), init=False)
    batches: tuple[int, ...] = field(default=(), init=False)

    def __post_init__(self):
        for name, least in (("layers", 1), ("text", 2), ("threads", 0), ("repeat", 1), ("seed", 0)):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}, got {getattr(self, name)}")
        if self.random not in CONFIGS:
            raise ValueError(f"--random takes one of {', '.join(CONFIGS)}, got {self.random!r}")

    def settled(self) -> "Plan":
        """This plan for the device it runs on: on a CPU two layers of the model, one thread, one prompt at a time, 7
        repetitions; on a GPU the whole model, one prompt and eight, captured graphs too, 50 repetitions.

        Raises ValueError for counts that cannot be, and for a graph on a CPU.
        """
        device, config = device_of(self.device), CONFIGS[self.random]()
        cuda, depth = device != "cpu", config.get_text_config().num_hidden_layers
        given = {name: getattr(self, name) for name, entry in self.__dataclass_fields__.items() if entry.init}
        defaults = {"layers": depth if cuda else min(2, depth), "batch": "1,8" if cuda else "1", "graph": cuda}
        defaults |= {"threads": 0 if cuda else 1, "repeat": 50 if cuda else 7}
        filled = {name: defaults.get(name) if value is None else value for name, value in given.items()}
        if filled["graph"] and not cuda:
            raise ValueError("--graph captures a CUDA graph: there is no CUDA device here")
        plan = Plan(**filled | {"device": device})
        protocol.clock_of(plan.clock, device, plan.threads)
        patches = floors.spec(config).vision.patches
        object.__setattr__(plan, "counts", protocol.numbers("visual", self.visual, patches))
        object.__setattr__(plan, "batches", protocol.numbers("batch", filled["batch"], 256))
        return plan


# ---- measuring


@torch.inference_mode()
def measure(plan: Plan) -> dict:
    """The record of a settled plan. Raises ValueError for weights that do not fit."""
    with protocol.threads(plan.threads), protocol.phases_by(plan.clock):
        precision = choose(plan.dtype, plan.quantization, plan.device)
        llava = stack(plan.random, precision, plan.device, plan.layers, plan.text, plan.seed)
        prompts, spec = Prompts(llava, plan.seed), floors.spec(llava.model.config)
        width = floors.bits(precision.dtype, plan.quantization)
        peaks, under = floors.peaks(plan.device), conditions(plan.device)
        field, budget = forms(llava, prompts, plan.counts, plan.batches, plan.graph), min(AIMED, plan.counts[0])
        regimes = [[*part] for _, part in groupby(field, key=lambda form: (form.batch, form.mode))]
        methods = staged(llava, prompts, budget)
        product, work = floors.product(spec, plan.counts[0] + plan.text, precision.dtype, plan.device)
        taken = [raced(part, product, plan) for part in regimes]
        base, *others = methods.values()
        stages = protocol.against(base, others, plan.device, plan.repeat, plan.clock)
    peaks = peaks.at_least(work, min(seconds.also.min() for seconds in taken), 8 * precision.dtype.itemsize)
    rows = [
        row(form, *pair, plan, spec, peaks, width)
        for part, seconds in zip(regimes, taken, strict=True)
        for form, pair in zip(part, seconds.pairs(), strict=True)
    ]
    found = {"bench": "prefill", "conditions": under | _asked(plan, llava, spec, precision, budget),
             "peaks": peaks.record(), "rows": rows}  # fmt: skip
    found["methods"] = [
        method_row(name, method, *pair) for (name, method), pair in zip(methods.items(), stages.pairs(), strict=True)
    ]
    found["goals"] = [goal.record() for goal in aims(found)]
    refused = plan.graph and graph.Graphs.of(llava).prompts.refused
    found["failures"] = failures(found) + [REFUSED.format("prompts")] * refused
    return found


def raced(part: list[Form], product, plan: Plan) -> Against:
    """The forms of one batch and mode against the first, which is the unpruned prompt; a bare product in turn."""
    base, *others = (form.run for form in part)
    return protocol.against(base, others, plan.device, plan.repeat, plan.clock, also=[product])


def row(form: Form, seconds: np.ndarray, base: np.ndarray, plan: Plan, spec, peaks: floors.Peaks, width: int) -> dict:
    """A form's times beside its floor, and its speed-up over the unpruned prompt beside what the floors allow."""
    tokens, most = form.visual + plan.text, plan.counts[0] + plan.text
    floor, dense = (floors.prefill(spec, peaks, n, width, form.batch) for n in (tokens, most))
    ratio = floors.flops(spec, most) / floors.flops(spec, tokens)
    bound = dense / floor if floor else None
    speed = paired(base, seconds)
    return {
        **{"visual": form.visual, "tokens": tokens, "batch": form.batch, "mode": form.mode, "what": form.what},
        **milliseconds(seconds),
        **{"floor_ms": floor and rounded(1e3 * floor), "of_floor": floor and rounded(floor / np.median(seconds))},
        **{"tflop": rounded(form.batch * floors.flops(spec, tokens) / 1e12), "flop_ratio": rounded(ratio)},
        **{"bound": bound and rounded(bound), **speed, "of_flops": rounded(speed["ratio"] / ratio)},
        "efficiency": bound and rounded(speed["ratio"] / bound),
    }


def method_row(name: str, method: Staged, seconds: np.ndarray, full: np.ndarray) -> dict:
    """A method's stages, their sum beside the whole, and its speed-up over Full's whole."""
    stages, whole = method.stages(len(seconds)), milliseconds(seconds)
    return {"method": name, **stages, **whole, **paired(full, seconds),
            "of_whole": rounded(sum(stages.values()) / whole["ms"])}  # fmt: skip


def _asked(plan: Plan, llava: Drawn, spec, precision, budget: int) -> dict:
    return {
        **{"model": plan.random, "dtype": str(precision.dtype).removeprefix("torch.")},
        **{"quantization": plan.quantization, "layers": spec.layers, "hidden": spec.hidden},
        **{"intermediate": spec.intermediate, "vocabulary": spec.vocabulary, "text": plan.text, "budget": budget},
        **{"repeat": plan.repeat, "warm_ups": protocol.WARM_UPS, "enough": protocol.ENOUGH, "seed": plan.seed},
        **{"graph": plan.graph, "clock": plan.clock},
    }


def failures(found: dict) -> list[str]:
    """Times below their floors, and stages that do not add up to the whole."""
    at, told = floors.Peaks.of(found["peaks"]), []
    for line in found["rows"]:
        what = f"prefill of {line['visual']} visual tokens, batch {line['batch']}, {line['mode']}"
        floor = line["floor_ms"] and line["floor_ms"] / 1e3
        told.append(floors.below(what, line["best_ms"] / 1e3, floor, at))
    return [sentence for sentence in told if sentence]


def aims(found: dict) -> list[Goal]:
    """The goals that this run can speak of, and those that need a GPU."""
    under, rows = found["conditions"], found["rows"]
    cuda, whole = under["device"] != "cpu", {576, AIMED} <= {r["visual"] for r in rows}
    here = {(r["batch"], r["mode"]): r for r in rows if whole and r["visual"] == AIMED and not r["what"]}
    told = f"prefill speed-up at {AIMED} visual tokens"

    def goal(what: str, batch: int, mode: str, key: str, fits: bool, **more) -> Goal:
        line = here.get((batch, mode)) if fits else None
        doubt = _doubt(line, rows, cuda) if line else ""
        return Goal(f"{told}{what}", line and line[key], unit="" if key == "of_flops" else " x", doubt=doubt, **more)

    dense = f"not run here: needs float32 on a CPU, and --visual with 576 and {AIMED}"
    plain = not cuda and under["dtype"] == "float32"
    return [
        goal(" over the FLOP ratio, CPU, float32", 1, "eager", "of_flops", plain, least=SHARE, reason=dense),
        goal(", batch 8, GPU", 8, "eager", "ratio", cuda, least=2.9),
        goal(", batch 1, graphed, GPU", 1, "graph", "ratio", cuda, least=1.8),
        goal(", batch 1, eager, GPU", 1, "eager", "ratio", cuda),
        Goal(
            f"our selector, of the time that pruning saves, {'GPU' if cuda else 'CPU'}",
            overhead(found["methods"]),
            most=OVERHEAD,
            unit=" %",
            reason="not told: at this size pruning saved no time",
        ),
    ]


def overhead(methods: list[dict]) -> float | None:
    """Per cent that LongTail's selector takes of what its prefill is faster than Full's; None where it is not."""
    at = {line["method"]: line for line in methods}
    saved = at["Full"]["prefill_ms"] - at["LongTail"]["prefill_ms"]
    return rounded(100 * at["LongTail"]["select_ms"] / saved) if saved > 0 else None


def _doubt(line: dict, rows: list[dict], cuda: bool) -> str:
    """Why a speed-up is not to be trusted: what else ran fell on one form and not on the other. On a GPU more than the
    floors allow only says that the unpruned prompt is further from its floor."""
    again = [r for r in rows if r["what"] and (r["batch"], r["mode"]) == (line["batch"], line["mode"])]
    if again and abs(again[0]["ratio"] - 1) > STRAY:
        return f"the unpruned prompt against itself was {again[0]['ratio']:.2f} x"
    if not cuda and line["of_flops"] > 1 + STRAY:
        return "more than the operations allow"
    return ""


# ---- in words


def words(found: dict) -> str:
    """Tables, controls, goals, conditions."""
    head = ("visual", "batch", "mode", "ms", "best", "floor", "floor/ms", "speed-up", "95 %", "FLOPs", "bound", "eff.")
    rows = [
        (
            *(r["visual"], r["batch"], r["mode"], f"{r['ms']:.1f}", f"{r['best_ms']:.1f}", _some(r["floor_ms"], ".1f")),
            *(_some(r["of_floor"], ".2f"), f"{r['ratio']:.2f} x", span(r["ratio_95"]), f"{r['flop_ratio']:.2f} x"),
            *(_some(r["bound"], ".2f"), _some(r["efficiency"], ".2f")),
        )
        for r in found["rows"]
        if not r["what"]
    ]
    again = [
        f"A/A: the unpruned prompt again, batch {r['batch']}, {r['mode']}: ratio {r['ratio']:.3f}, 95 % "
        f"{span(r['ratio_95'])}, which {'holds' if r['ratio_95'][0] <= 1 <= r['ratio_95'][1] else 'does not hold'} 1"
        for r in found["rows"]
        if r["what"]
    ]
    stages = ("select_ms", "project_ms", "score_ms", "prefill_ms", "ms")
    methods = [
        (r["method"], *(f"{r[name]:.2f}" for name in stages), f"{r['ratio']:.2f} x", span(r["ratio_95"]))
        for r in found["methods"]
    ]
    c = found["conditions"]
    staged = table(("method", "select", "project", "score", "prefill", "whole, ms", "speed-up", "95 %"), methods)
    return "\n\n".join(
        [
            table(head, rows),
            "\n".join(again),
            f"From features to first logits at {c['budget']} visual tokens, eager; Random and Sequential choose for "
            f"nothing, score is stage 2's:\n{staged}",
            goals.words(found["goals"]),
            in_words(c, found["peaks"]),
        ]
    )


def in_words(c: dict, peaks: dict) -> str:
    """Conditions as a paragraph."""
    return (
        f"{setting(c, peaks)}; after {c['warm_ups']} warm-ups each (fewer, at least two, once they fill "
        f"{c['enough']:g} s); speed-up: median ratio of the time of the most visual tokens beside it to its own, with "
        "the bootstrap's 95 % interval; FLOPs and bound: ratios of operations and of floors; eff.: speed-up over bound"
    )


def setting(c: dict, peaks: dict) -> str:
    """What was timed, and where."""
    quantized = "" if c["quantization"] == "none" else f", decoder layers in {c['quantization']}"
    return (
        f"{machine(c)}; {c['layers']} decoder layers of {c['model']} (h {c['hidden']}, I {c['intermediate']}) and "
        f"{c['vocabulary']} words, random weights{quantized}, {c['text']} text tokens, seed {c['seed']}; medians of "
        f"{c['repeat']} repetitions, the unpruned prompt between every two others; {floors.Peaks.of(peaks).words()}"
    )


def _some(value: float | None, how: str) -> str:
    return "unknown" if value is None else f"{value:{how}}"


# ---- the command


def add_flags(command):
    """The flags of `bench prefill`."""
    command.add_argument("--random", default="llava-1.5-7b", metavar="NAME", help=f"one of {', '.join(CONFIGS)}")
    command.add_argument("--layers", type=int, help="decoder layers; 2 on a CPU, all on a GPU")
    command.add_argument("--dtype", default="auto", help=", ".join(DTYPES))
    command.add_argument("--quantization", default="none", help=", ".join(QUANTIZATIONS))
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    command.add_argument("--visual", default=Plan.visual, help="visual tokens, comma between (%(default)s)")
    command.add_argument("--text", type=int, default=60, help="text tokens (%(default)s)")
    command.add_argument("--batch", help="prompts at once, comma between; 1 on a CPU, 1,8 on a GPU")
    command.add_argument(
        "--graph", action="store_true", default=None, help="captured as a CUDA graph too (on a GPU: on)"
    )
    command.add_argument("--threads", type=int, help="of the CPU; 1 on a CPU, torch's own choice beside a GPU")
    command.add_argument("--repeat", type=int, help="repetitions; 7 on a CPU, 50 on a GPU")
    command.add_argument("--seed", type=int, default=0, help="of weights and features (%(default)s)")
    command.add_argument("--clock", default="wall", help=protocol.CLOCK_HELP)
    output_flags(command)


def command(arguments):
    """`bench prefill`: the table, and the record as JSON. Ends with status 1 where a time is below its floor."""
    checked(arguments.out)
    found = measure(protocol.planned(Plan, arguments))
    deliver(found, words(found), arguments)
