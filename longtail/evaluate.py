"""Measured accuracy: held-out scenes, every question family, methods at equal numbers of visual tokens, one engine.

With `--out FILE.json` every answer is appended to FILE.json.partial.jsonl as it comes; the same command, killed at any
point, goes on from there, and a later one with more methods, budgets, scenes or families runs what is missing. A line
counts as long as its cell's fingerprint holds: weights, dtype, device, the method's parameters, the method's own
source. After a change of the engine start over with `--fresh`. What FILE.json holds: see `results`.
"""

import dataclasses
import json
import platform
import re
import sys
import time
from pathlib import Path

import torch

from . import pareto, results
from .examine import LONGEST, Cell, Log, examine, fingerprint, in_processes
from .models import place_of
from .models.llava import Llava
from .reducer import REDUCERS, parse
from .results import ORACLE, Said
from .tiny.examine import FINAL_SEED
from .tiny.questions import FAMILIES, SHORT
from .tiny.scenes import questions, scene

MARKS = "<!-- accuracy begins -->", "<!-- accuracy ends -->"


def evaluate(
    llava: Llava,
    cells: list[Cell],
    seeds: range,
    families: tuple[str, ...] = FAMILIES,
    log: Log | None = None,
    jobs: int = 1,
    place: dict | None = None,
    progress=None,
    batch: int = 1,
) -> dict:
    """The record of `results`: every question of those families about the scenes of `seeds`, for every cell. Greedy.

    What `log` holds is not asked again. Above one job, each is a process that loads the model as `load(**place)`.
    Above a batch of 1, as many answers are decoded together: the same words, and no times.
    """
    log, model = log or Log(), fingerprint(llava)
    prints = {cell: cell.fingerprint(model) for cell in cells}
    asked = {(seed, q.family): q for seed in seeds for q in questions(scene(seed)) if q.family in families}
    wanted = {seed: {} for seed in seeds}
    for seed, family in asked:
        wanted[seed][family] = [cell for cell in cells if (prints[cell], seed, family) not in log.said]
    total = sum(len(missing) for one in wanted.values() for missing in one.values())
    tasks = [(seed, one, batch) for seed, one in wanted.items() if any(one.values())]
    done, reasons, under = 0, {}, _under(llava, jobs, batch)
    here = ((task[0], answers) for task in tasks for answers in examine(llava, *task))
    for seed, answers in here if jobs == 1 else in_processes(jobs, place or {}, tasks):
        reasons |= {cell: said for cell, _, said in answers if isinstance(said, str)}
        fine = [((prints[cell], seed, family), said) for cell, family, said in answers if isinstance(said, Said)]
        log.add(under, fine)
        done += len(answers)
        if progress and answers:
            progress(done, total)
    marks = set(prints.values())
    used = {under for (mark, *where), under in log.under.items() if mark in marks and tuple(where) in asked}
    conditions = _conditions(llava, asked, seeds, sorted(used))
    rows = _rows(asked, prints, log, reasons)
    return {"conditions": conditions, "timed": sorted(used), "weights": model, "rows": rows}


def _rows(asked: dict, prints: dict[Cell, str], log: Log, reasons: dict[Cell, str]) -> list[dict]:
    """A row for each cell, in order; a cell with a reason has no numbers."""
    said = {
        cell: {where: log.said[(mark, *where)] for where in asked}
        for cell, mark in prints.items()
        if cell not in reasons
    }
    full = next((said[cell] for cell in said if cell.method == "Full"), None)
    return [
        {**dataclasses.asdict(cell), "params": cell.params()}
        | (results.row(asked, said[cell], full) if cell in said else {"reason": reasons[cell]})
        for cell in prints
    ]


def _under(llava: Llava, jobs: int, batch: int) -> str:
    """What the times of this run depend on."""
    device = torch.cuda.get_device_name(llava.device) if llava.device.type == "cuda" else f"{platform.machine()} CPU"
    threads = torch.get_num_threads() if jobs == 1 else 1
    each = f"{jobs} process{'es' * (jobs > 1)} of {threads} thread{'s' * (threads > 1)}"
    together = f", {batch} answers at a time, which have no times" * (batch > 1)
    return f"{device}, torch {torch.__version__}, {each}{together}"


def _conditions(llava: Llava, asked: dict, seeds: range, under: list[str]) -> str:
    described = sum(family == results.DESCRIBE for _, family in asked)
    left_out = [name for name in FAMILIES if name not in {family for _, family in asked}]
    without = f" (without: {', '.join(left_out)})" if left_out else ""
    return (
        f"{llava.description} on {llava.device.type}, greedy, at most {LONGEST} "
        f"new tokens; {len(asked) - described} questions of the exact families and {described} descriptions{without} "
        f"on {len(seeds)} held-out scenes (seeds {seeds[0]} to {seeds[-1]}). Per cent of exact answers; describe: "
        "share of objects and texts named in full; mean: over the exact families; share: of all exact questions; "
        f"95 %: percentiles of a bootstrap over scenes, {results.RESAMPLES} resamples, seed 0; as Full: share of "
        "answers equal to Full's; tokens: mean number of visual tokens that enter the language model; true tokens: "
        "that enter a decoder layer, mean over layers. Times: medians over the exact questions, one run each, none "
        "left out as warm-up, the tower's shared by all that do not act inside it; of Full: time to the first token, "
        "per cent of Full's on the same question a moment before; none where answers were decoded several at a time, "
        f"since each then waits for the others. {'; also '.join(under)}."
    )


# ---- the command


def add_flags(command):
    """The flags of `evaluate`."""
    command.add_argument(
        "--methods",
        default=f"Full,LongTail,TopK,Uniform,Random,{ORACLE}",
        help=f"names, or NAME:parameter=value, comma between; all: every method and {ORACLE}",
    )
    command.add_argument(
        "--budgets", default="own,288,196,127,58,29", help="visual tokens, comma between; own: as a method comes"
    )
    command.add_argument(
        "--families",
        default="all",
        help=f"of questions, comma between: {', '.join(FAMILIES)}, all, or exact: all but the long describe",
    )
    command.add_argument("--scenes", type=int, default=60, help="held-out scenes, about ten questions each")
    command.add_argument("--first", type=int, default=FINAL_SEED, help="seed of the first scene")
    command.add_argument("--jobs", type=int, default=1, help="processes; above 1 each has one thread")
    command.add_argument(
        "--batch", type=int, default=1, help="answers decoded together; above 1 quicker, and without times"
    )
    command.add_argument("--out", help="write rows and conditions to this .json file; a killed run goes on from there")
    command.add_argument("--fresh", action="store_true", help="with --out: forget what earlier runs answered")
    command.add_argument("--figure", help="draw the rows as this .svg file")
    command.add_argument("--card", action="store_true", help="put the table into the README.md of the model's folder")
    command.add_argument("--json", action="store_true", help="print JSON")


def command(llava: Llava, arguments, place: dict):
    """`python -m longtail evaluate`. `place`: what `load` took, for further processes."""
    for flag in ("scenes", "jobs", "batch"):
        if getattr(arguments, flag) < 1:
            raise ValueError(f"--{flag} must be at least 1, got {getattr(arguments, flag)}")
    if arguments.batch > 1 and arguments.figure:
        raise ValueError("--figure draws times, and --batch leaves none: leave one of them out")
    cells = grid(arguments.methods, arguments.budgets)
    groups = {"all": FAMILIES, "exact": SHORT} | {name: (name,) for name in FAMILIES}
    named = [name.strip() for name in arguments.families.split(",")]
    if set(named) - set(groups):
        raise ValueError(f"--families takes names of {', '.join(groups)}, got {arguments.families!r}")
    families = tuple(family for name in named for family in groups[name])
    log = Log(Path(f"{arguments.out}.partial.jsonl") if arguments.out else None, arguments.fresh)
    seeds = range(arguments.first, arguments.first + arguments.scenes)
    record = evaluate(llava, cells, seeds, families, log, arguments.jobs, place, Progress(), arguments.batch)
    if arguments.out:
        results.write(record, Path(arguments.out))
    if arguments.figure:
        Path(arguments.figure).write_text(pareto.svg(record), encoding="utf-8")
    if arguments.card:
        _into_card(Path(place_of(arguments.model)) / "README.md", results.table(record))
    print(json.dumps(record) if arguments.json else results.table(record))


class Progress:
    """A bar with the time left on stderr; into a file, a line a minute."""

    def __init__(self):
        self.started, self.shown, self.terminal = time.monotonic(), -1e9, sys.stderr.isatty()

    def __call__(self, done: int, of: int):
        now = time.monotonic()
        if now - self.shown < (0.2 if self.terminal else 60) and done < of:
            return
        self.shown, left = now, (now - self.started) / done * (of - done)
        bar = "█" * (24 * done // of) + "░" * (24 - 24 * done // of)
        line = f"{bar} {done:,} of {of:,} answers, {left / 60:.1f} min left"
        end = "" if self.terminal and done < of else "\n"
        print(f"\r{line} " if self.terminal else line, end=end, file=sys.stderr, flush=True)


def grid(methods: str, budgets: str) -> list[Cell]:
    """The cells that names and budgets span; a method that no budget changes has one.

    Raises ValueError for what is unknown.
    """
    names = [name.strip() for name in methods.split(",") if name.strip()]
    names = [name for given in names for name in ((*REDUCERS, ORACLE) if given == "all" else (given,))]
    for name in names:
        if name != ORACLE:
            parse(name)
    counts = [None if text.strip() == "own" else _count(text) for text in budgets.split(",")]
    cells = [
        Cell(name, count)
        for name in names
        for count in ([None] if _fixed(name) else counts)
        if not (name == ORACLE and count is None)
    ]
    if not cells:
        raise ValueError(f"--methods {methods!r} and --budgets {budgets!r} leave nothing to run")
    return list(dict.fromkeys(cells))


def _fixed(name: str) -> bool:
    """Whether a method is the same at every budget, as Full is."""
    if name == ORACLE:
        return False
    try:
        return parse(name, 1) == parse(name, 2) == parse(name)
    except ValueError:
        return False


def _count(text: str) -> int:
    if not text.strip().isdigit() or int(text) < 1:
        raise ValueError(f"--budgets takes whole numbers of at least 1 and the word own, got {text.strip()!r}")
    return int(text)


def _into_card(card: Path, text: str):
    """Replace what stands between the marks of a model card."""
    old = card.read_text(encoding="utf-8")
    if not all(mark in old for mark in MARKS):
        raise ValueError(f"{card} has no place for the table: put the lines {MARKS[0]} and {MARKS[1]} into it")
    block = f"{MARKS[0]}\n{text}\n{MARKS[1]}"
    card.write_text(re.sub(f"{MARKS[0]}.*?{MARKS[1]}", lambda _: block, old, flags=re.S), encoding="utf-8")
