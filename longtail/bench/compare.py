"""`bench compare`: one question through `generate`, methods by budgets, stage by stage beside the wall clock.

Random and Sequential choose for nothing; Full runs twice, for what two equal runs differ by. Stages that do not close
with the wall clock of the whole call within 5 % fail the run.
"""

import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..export import PHASES, phases
from ..generate import Answer, generate
from ..image import open_image
from ..models.drawn import CONFIGS, drawn
from ..models.precision import choose
from ..reducer import REDUCERS, Reducer, parse
from . import floors, goals, protocol
from .goals import Goal
from .protocol import Stopwatch, milliseconds, order, paired, rounded
from .record import add_flags as output_flags
from .record import checked, conditions, deliver, device_of, machine, span, table

SCENE = Path(__file__).parents[2] / "assets" / "examples" / "seven-objects.png"
CONTROLS = "Full", "Random", "Sequential"
CLOSES = 0.05  # how far stages and wall clock may lie apart


@dataclass(frozen=True)
class Plan:
    """What is asked for."""

    image: str = str(SCENE)
    question: str = "What is in the image?"
    methods: str = "LongTail,TopK,DivPrune,VisionZip,FastV,H2O"
    budgets: str = "32,64,128,192,576"
    new: int = 16
    repeat: int = 5
    threads: int = 1
    random: str | None = None
    text: int = 60
    eager: bool = False
    clock: str = "wall"

    def __post_init__(self):
        for name, least in (("new", 1), ("repeat", 1), ("threads", 0), ("text", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} must be at least {least}, got {getattr(self, name)}")
        if self.random is not None and self.random not in CONFIGS:
            raise ValueError(f"--random takes one of {', '.join(CONFIGS)}, got {self.random!r}")
        budgets = [part.strip() for part in self.budgets.split(",") if part.strip()]
        if not all(part.isdecimal() and 1 <= int(part) <= 576 for part in budgets):
            raise ValueError(f"--budgets takes whole numbers from 1 to 576, comma between, got {self.budgets!r}")

    def entries(self) -> list["Entry"]:
        """Full, the controls and every method, at each budget and at their own; Full once more in the end.

        A method that does not go with a budget has the reason. Raises ValueError for one that there is not.
        """
        named = [*REDUCERS] if self.methods == "all" else [part.strip() for part in self.methods.split(",")]
        names = dict.fromkeys([*CONTROLS[1:], *(name for name in named if name != "Full")])
        budgets = [None, *(int(part) for part in self.budgets.split(",") if part.strip())]
        for name in names:
            parse(name)  # an unknown one is the whole command's fault
        full = [Entry("Full", None, parse("Full"), what) for what in ("", "again")]
        return [full[0], *(Entry.made(name, budget) for name in names for budget in budgets), full[1]]


@dataclass
class Entry:
    """A method at a budget, and what its runs gave; `what` is "again" for the run that is repeated for control."""

    method: str
    budget: int | None
    reducer: Reducer | None
    what: str = ""
    reason: str = ""
    answers: list[Answer] = field(default_factory=list)

    @classmethod
    def made(cls, method: str, budget: int | None) -> "Entry":
        """The method at that budget, or why it cannot be."""
        try:
            return cls(method, budget, parse(method, budget))
        except ValueError as refusal:
            return cls(method, budget, None, reason=str(refusal))


# ---- measuring


def measure(llava, plan: Plan) -> dict:
    """The record of a plan on a loaded model. Raises ValueError for an image or a question that cannot be used."""
    image, entries = open_image(plan.image), plan.entries()
    device = str(llava.device)
    protocol.clock_of(plan.clock, device, plan.threads)
    with protocol.threads(plan.threads), protocol.phases_by(plan.clock):
        under, peaks = conditions(device), floors.peaks(device)
        seconds = race(llava, image, plan, entries)
        peaks = peaks.best(floors.peaks(device))
    spec = floors.spec(llava.model.config)
    width = floors.bits(llava.dtype, llava.quantization)
    full = np.array(seconds[0]), np.array([answer.seconds.first_token for answer in entries[0].answers])
    rows = [row(entry, np.array(wall), full, spec, peaks, width)
            for entry, wall in zip(entries, seconds, strict=True)]  # fmt: skip
    dtype = str(llava.dtype).removeprefix("torch.")
    asked = {"model": llava.name, "dtype": dtype, "quantization": llava.quantization, "question": plan.question,
             "image": "drawn" if plan.random else Path(plan.image).name,
             "new": plan.new, "repeat": plan.repeat, "clock": plan.clock}  # fmt: skip
    found = {"bench": "compare", "conditions": under | asked, "peaks": peaks.record(), "rows": rows}
    return found | {"goals": [closing(rows).record()], "failures": failures(rows, peaks)}


def race(llava, image, plan: Plan, entries: list[Entry]) -> list[list[float]]:
    """Wall seconds of every counted run; every entry is warmed up, then each repetition runs all in another order. One
    that raises ValueError keeps the sentence as its reason."""
    watch, seconds = Stopwatch("cpu", plan.clock), [[] for _ in entries]  # of the host: what the caller waits for

    def ask(entry: Entry) -> Callable:
        options = {"max_new_tokens": plan.new, "eager": plan.eager}

        def run():
            entry.answers += deque(generate(llava, image, plan.question, entry.reducer, **options), maxlen=1)

        return run

    for entry in entries:
        if entry.reducer is not None:
            try:
                protocol.warmed(ask(entry), watch)
            except ValueError as refusal:
                entry.reducer, entry.reason = None, str(refusal)
        entry.answers.clear()
    for turn in range(plan.repeat):
        for i in order(len(entries), turn):
            if entries[i].reducer is not None:
                seconds[i].append(watch(ask(entries[i])))
    return seconds


def row(entry: Entry, wall: np.ndarray, full, spec, peaks: floors.Peaks, width: int) -> dict:
    """An entry's stages, how they close with the wall clock, and its speed over Full's in the same repetition."""
    named = {"method": entry.method, "budget": entry.budget, "what": entry.what}
    if entry.reducer is None:
        return named | {"reason": entry.reason}
    runs = [phases({"seconds": vars(answer.seconds)}) for answer in entry.answers]
    sums = np.array([sum(run.values()) for run in runs])
    tokens = entry.answers[-1].tokens
    entering = [n + tokens.prompt - tokens.visual for n in tokens.layers]
    floor = floors.prefill(spec, peaks, entering, width)
    first = np.array([answer.seconds.first_token for answer in entry.answers])
    return {
        **named,
        **{"visual": tokens.visual, "prompt": tokens.prompt, "generated": tokens.generated},
        "graphs": list(entry.answers[-1].graphs),
        **{f"{name}_ms": rounded(1e3 * statistics.median(run[name] for run in runs)) for name in PHASES},
        **{"prefill_floor_ms": floor and rounded(1e3 * floor), **milliseconds(wall)},
        **{"closes": rounded(np.median(sums / wall)), "first_token": paired(full[1], first), **paired(full[0], wall)},
        "flop_ratio": rounded(floors.flops(spec, spec.vision.patches + tokens.prompt - tokens.visual)
                              / floors.flops(spec, entering)),
    }  # fmt: skip


def closing(rows: list[dict]) -> Goal:
    """How far stages and wall clock lie apart where they do most."""
    apart = max(abs(line["closes"] - 1) for line in rows if "reason" not in line)
    return Goal(
        "stages off the wall clock, the most of all methods", rounded(100 * apart), most=100 * CLOSES, unit=" %"
    )


def failures(rows: list[dict], peaks: floors.Peaks) -> list[str]:
    """Where stages and wall clock do not close, and times below their floors."""
    told = []
    for line in rows:
        if "reason" in line:
            continue
        what = f"{line['method']} at {line['budget'] or 'its own budget'}"
        if abs(line["closes"] - 1) > CLOSES:
            gap = (1 - line["closes"]) * line["ms"]
            told.append(
                f"{what}: preprocess to decode are {100 * line['closes']:.1f} % of the wall clock, {gap:.3g} ms of "
                f"{line['ms']:.4g} ms lie outside of every stage, between tokens: {gap / line['generated']:.3g} ms each"
            )
        floor = line["prefill_floor_ms"]
        told.append(floors.below(f"{what}: prefill", line["prefill_ms"] / 1e3, floor and floor / 1e3, peaks))
    return [sentence for sentence in told if sentence]


# ---- in words


def words(found: dict) -> str:
    """The table, the control, the conditions."""
    head = (
        "method",
        "budget",
        "visual",
        *PHASES,
        "wall, ms",
        "closes",
        "first token",
        "95 %",
        "whole",
        "95 %",
        "FLOPs",
    )
    lines, reasons = [], []
    for r in found["rows"]:
        name = f"{r['method']} {r['what']}".strip()
        if "reason" in r:
            reasons.append(f"{name} at {r['budget'] or 'its own budget'}: not run: {r['reason']}")
            continue
        first = r["first_token"]
        lines.append(
            (
                *(name, r["budget"] or "own", r["visual"], *(f"{r[f'{phase}_ms']:.1f}" for phase in PHASES)),
                *(f"{r['ms']:.1f}", f"{100 * r['closes']:.1f} %", f"{first['ratio']:.2f} x", span(first["ratio_95"])),
                *(f"{r['ratio']:.2f} x", span(r["ratio_95"]), f"{r['flop_ratio']:.2f} x"),
            )
        )
    last, c = found["rows"][-1], found["conditions"]
    holds = "holds" if last["ratio_95"][0] <= 1 <= last["ratio_95"][1] else "does not hold"
    return "\n\n".join(
        [
            table(head, lines),
            *(["\n".join(reasons)] if reasons else []),
            f"A/A: Full again, whole call: ratio {last['ratio']:.3f}, 95 % {span(last['ratio_95'])}, which {holds} 1",
            goals.words(found["goals"]),
            f"{machine(c)}; {c['model']}, {c['image']}, {c['question']!r}, at most {c['new']} new tokens; medians in "
            f"ms of {c['repeat']} repetitions in an order that turns, each warmed up; first token, whole: median "
            "ratio of Full's to its own in the same repetition, bootstrap 95 % interval; closes: stages over the wall "
            "clock of the whole call; FLOPs: ratio of prefills by arithmetic",
        ]
    )


# ---- the command


def add_flags(command):
    """The flags of `bench compare`, those of the model aside."""
    plan = Plan()
    command.add_argument("image", nargs="?", default=plan.image, help="path of an image; else an example scene")
    command.add_argument("--question", default=plan.question, help="%(default)s")
    command.add_argument("--methods", default=plan.methods, help="all, or names, comma between (%(default)s)")
    command.add_argument("--budgets", default=plan.budgets, help="beside each method's own (%(default)s)")
    command.add_argument("--new", type=int, default=plan.new, help="most tokens of an answer (%(default)s)")
    command.add_argument("--repeat", type=int, default=plan.repeat, help="repetitions (%(default)s)")
    command.add_argument("--threads", type=int, default=plan.threads, help="of the CPU; 0: torch's own choice")
    command.add_argument("--random", metavar="NAME", help=f"random weights instead: {', '.join(CONFIGS)}")
    command.add_argument("--text", type=int, default=plan.text, help="text tokens with --random (%(default)s)")
    command.add_argument("--eager", action="store_true", help="never replay a captured CUDA graph")
    command.add_argument("--clock", default=plan.clock, help=protocol.CLOCK_HELP)
    output_flags(command)


def command(load: Callable, arguments):
    """`bench compare`: the table, and the record as JSON. Ends with status 1 where a check fails."""
    checked(arguments.out)
    plan = Plan(**{name: getattr(arguments, name) for name in Plan.__dataclass_fields__})
    plan.entries()  # refused before a model is loaded
    found = measure(_drawn(plan, arguments) if plan.random else load(), plan)
    deliver(found, words(found), arguments)


def _drawn(plan: Plan, arguments):
    where = device_of(arguments.device)
    return drawn(plan.random, choose(arguments.dtype, arguments.quantization, where), where, plan.text)
