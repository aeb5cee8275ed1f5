"""Measured accuracy: held-out scenes, every question family, methods at equal numbers of visual tokens, one engine."""

import dataclasses
import json
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from .generate import compare
from .models import KNOWN
from .models.llava import Llava
from .reducer import REDUCERS, Reducer, make, param
from .tiny.examine import FINAL_SEED
from .tiny.questions import FAMILIES, described
from .tiny.scenes import Scene, questions, scene, score
from .tokens import Reduced

ORACLE, GROUND = "Oracle", "describe: background"
MARKS = "<!-- accuracy begins -->", "<!-- accuracy ends -->"


@dataclass(frozen=True, kw_only=True)
class Oracle(Reducer):
    """Keeps the patches that show an object or a letter first, then others at random: knows the scene, so no rival."""

    items: torch.Tensor  # [N] bool
    budget: int = param(144, 1, 576, 1, "visual tokens kept")

    def reduce(self, visual):
        shuffle = torch.randperm(len(visual.features), generator=torch.Generator().manual_seed(0))
        first = self.items[shuffle].int().argsort(descending=True, stable=True)
        return Reduced.select(visual, shuffle[first][: self.budget])


@dataclass(frozen=True)
class Cell:
    """One method at one budget; budget None: as the method comes."""

    method: str
    budget: int | None

    def reducer(self, scene: Scene) -> Reducer:
        """The reducer for one scene: draws are seeded by the scene, the oracle is told what it shows."""
        if self.method == ORACLE:
            items = torch.from_numpy(scene.patches > 0).flatten()
            return Oracle(items=items) if self.budget is None else Oracle(items=items, budget=self.budget)
        reducer = make(self.method) if self.budget is None else REDUCERS[self.method].at(self.budget)
        seeded = any(p.name == "seed" for p in reducer.parameters())
        return dataclasses.replace(reducer, seed=scene.seed) if seeded else reducer


def evaluate(llava: Llava, cells: list[Cell], scenes: int, first: int = FINAL_SEED, progress=None) -> list[dict]:
    """Marks per family for every cell: exact match, recall of things for descriptions. Greedy, no time is taken.

    Each row: method, budget, visual (mean tokens kept), families {name: [mean, n]}, mean (of the exact-match families).
    """
    marks = [{} for _ in cells]
    kept = [[] for _ in cells]
    for done in range(scenes):
        shown = scene(first + done)
        reducers = [cell.reducer(shown) for cell in cells]
        for question in questions(shown):
            answers = compare(llava, shown.image, question.text, reducers, max_new_tokens=160)
            for mark, tokens, answer in zip(marks, kept, answers, strict=True):
                mark.setdefault(question.family, []).append(score(question.family, answer.text, question.answer))
                tokens.append(answer.tokens.visual)
                if question.family == "describe":
                    right = described(answer.text)["background"] == shown.background
                    mark.setdefault(GROUND, []).append(float(right))
        if progress:
            progress(done + 1, scenes)
    return [_row(cell, mark, tokens) for cell, mark, tokens in zip(cells, marks, kept, strict=True)]


def _row(cell: Cell, marks: dict, kept: list[int]) -> dict:
    families = {name: [sum(m) / len(m), len(m)] for name, m in marks.items()}
    short = [families[name][0] for name in FAMILIES if name in families and name != "describe"]
    mean = sum(short) / len(short)
    return {**dataclasses.asdict(cell), "visual": sum(kept) / len(kept), "mean": mean, "families": families}


def table(rows: list[dict], conditions: str) -> str:
    """A Markdown table, per cent, and the conditions of its numbers."""
    names = [name for name in (*FAMILIES, GROUND) if name in rows[0]["families"]]
    lines = [
        "| method | tokens | mean | " + " | ".join(names) + " |",
        "|---|---|---|" + "---|" * len(names),
    ]
    for row in rows:
        values = " | ".join(f"{100 * row['families'][name][0]:.1f}" for name in names)
        lines.append(f"| {row['method']} | {row['visual']:.0f} | {100 * row['mean']:.1f} | {values} |")
    return "\n".join([*lines, "", conditions])


def add_flags(command):
    """The flags of `evaluate`."""
    command.add_argument(
        "--methods", default=f"Full,LongTail,TopK,Uniform,Random,{ORACLE}", help="names, comma between"
    )
    command.add_argument(
        "--budgets", default="own,288,196,127,58,29", help="visual tokens, comma between; own: as a method comes"
    )
    command.add_argument("--scenes", type=int, default=60, help="held-out scenes, about ten questions each")
    command.add_argument("--first", type=int, default=FINAL_SEED, help="seed of the first scene")
    command.add_argument("--out", help="write rows and conditions to this .json file")
    command.add_argument("--card", action="store_true", help="put the table into the README.md of the model's folder")
    command.add_argument("--json", action="store_true", help="print JSON")


def command(llava: Llava, arguments):
    """`python -m longtail evaluate`."""
    if arguments.scenes < 1:
        raise ValueError(f"--scenes must be at least 1, got {arguments.scenes}")
    cells = grid(arguments.methods, arguments.budgets)
    started = time.monotonic()

    def progress(done: int, of: int):
        left = (time.monotonic() - started) / done * (of - done)
        print(f"\r{done} of {of} scenes, {left / 60:.1f} min left ", end="", file=sys.stderr, flush=True)

    rows = evaluate(llava, cells, arguments.scenes, arguments.first, progress)
    print(file=sys.stderr)
    asked = sum(n for name, (_, n) in rows[0]["families"].items() if name != GROUND)
    conditions = (
        f"{llava.name}, {str(llava.dtype).removeprefix('torch.')} on {llava.device.type}, greedy; {asked} questions on "
        f"{arguments.scenes} held-out scenes (seeds {arguments.first} to {arguments.first + arguments.scenes - 1}). "
        "Per cent of exact answers; describe: share of objects and texts named in full; mean: over the exact families; "
        "tokens: mean number of visual tokens that enter the language model."
    )
    record = {"conditions": conditions, "rows": rows}
    if arguments.out:
        Path(arguments.out).write_text(json.dumps(record, indent=1), encoding="utf-8")
    if arguments.card:
        _into_card(Path(KNOWN.get(arguments.model, arguments.model)) / "README.md", table(rows, conditions))
    print(json.dumps(record) if arguments.json else table(rows, conditions))


def grid(methods: str, budgets: str) -> list[Cell]:
    """The cells that names and budgets span; Full has one. Raises ValueError for what cannot be run."""
    names = [name.strip() for name in methods.split(",") if name.strip()]
    for name in names:
        if name != ORACLE:
            make(name)
    counts = [None if text.strip() == "own" else _count(text) for text in budgets.split(",")]
    cells = [
        Cell(name, count)
        for name in names
        for count in ([None] if name == "Full" else counts)
        if not (name == ORACLE and count is None)
    ]
    if not cells:
        raise ValueError(f"--methods {methods!r} and --budgets {budgets!r} leave nothing to run")
    return cells


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
