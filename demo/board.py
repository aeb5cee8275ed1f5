"""A comparison as it happens: one column after another, each measured alone; what stands in the columns meanwhile."""

import random
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from html import escape

import numpy as np
import torch
from PIL import Image

from longtail import REDUCERS, Answer, Reducer, generate, make
from longtail.export import Comparison, compared, device_name, medians
from longtail.versus import differences

from . import numbers, panel, prose
from .arithmetic import Sheet
from .run import TROUBLE, Parts, said, trouble
from .words import english, say

CONDITIONS, OVERLAPS, STATUS, RESULT = (("page", part) for part in ("conditions", "overlaps", "status", "result"))
UPDATE_EVERY, PICTURE_EVERY = 0.08, 0.4  # seconds; the last of a column always shows


@dataclass(frozen=True)
class Asked:
    """What one press of Run, Measure or Follow up asks for."""

    image: Image.Image
    question: str
    columns: dict[int, Reducer]  # in the order shown
    max_new_tokens: int
    temperature: float
    seed: int
    time_limit: float
    repeat: int = 1  # above 1: after an uncounted run, so many rounds, medians shown
    after: "Result | None" = None  # what this follows up on
    sheet: Sheet = field(default_factory=Sheet)


@dataclass(frozen=True, eq=False)
class Result:
    """What stands in the columns: kept for a follow-up, an export, a replay."""

    comparison: Comparison
    columns: tuple[int, ...]  # where each record stands
    answers: dict[int, Answer] = field(default_factory=dict)  # none where it was replayed

    def __deepcopy__(self, memo):
        return self  # nothing in it changes; Gradio copies what it keeps of a visitor


def compare(stop: threading.Event, llava, asked: Asked) -> Iterator[Parts]:
    """Ask every column's reducer in turn, in shuffled order; yields what changed on the page."""
    with torch.inference_mode():
        llava.prompt(asked.image, asked.question)  # what no method could answer is refused here, once
    board = Board(llava, asked, llava.crop(asked.image))
    news = board.empty()
    for turn in range(int(asked.repeat == 1), asked.repeat + 1):  # round 0 warms up, and is not counted
        order = [column for column in asked.columns if column not in board.refused]
        random.shuffle(order)
        for place, column in enumerate(order, 1):
            yield news | said(board.doing(turn, column, place, len(order)))
            news = {}
            try:
                for answer in board.ask(stop, column):
                    if asked.repeat == 1 and (parts := board.streaming(column, answer)):
                        yield parts
            except ValueError as error:  # this method's own: the others still answer
                yield board.refuse(column, error)
                continue
            if turn:
                yield board.put(column, answer, (place, len(order)))
            if answer.finished == "stopped":
                return
    yield board.ending()


@dataclass
class Board:
    """What stands in the columns while a comparison goes on."""

    llava: object
    asked: Asked
    crop: Image.Image
    runs: dict[int, list[dict]] = field(default_factory=dict)  # the records of each column's repeated runs
    answers: dict[int, Answer] = field(default_factory=dict)
    refused: set[int] = field(default_factory=set)
    shown: float = -PICTURE_EVERY
    drawn: float = -PICTURE_EVERY
    lost: tuple | None = None  # as in the panel drawn last

    def empty(self) -> Parts:
        """The columns before the first answer."""
        parts = {CONDITIONS: say("side_by_side"), OVERLAPS: "", RESULT: None}
        for column in self.asked.columns:
            parts |= blank(column, self.llava.views(self.asked.image.size))
        return parts

    def doing(self, turn: int, column: int, place: int, of: int) -> str:
        """What is going on, in words."""
        name = type(self.asked.columns[column]).__name__
        if self.asked.repeat == 1:
            return say("answering", name, place, of)
        return say("measuring", turn, self.asked.repeat, name) if turn else say("warming", name)

    def ask(self, stop: threading.Event, column: int) -> Iterator[Answer]:
        """The engine's answers of one column."""
        asked, before = self.asked, self._before(column)
        self.shown = self.drawn = -PICTURE_EVERY
        self.lost = None
        answers = generate(
            self.llava,
            asked.image,
            asked.question,
            asked.columns[column],
            max_new_tokens=asked.max_new_tokens,
            temperature=asked.temperature,
            seed=asked.seed,
            stop=stop,
            time_limit=asked.time_limit,
            history=before.turns if before and not self.llava.single_turn else (),
            seen=before and before.seen,
        )
        with closing(answers):
            yield from answers

    def streaming(self, column: int, answer: Answer) -> Parts | None:
        """What changes in one column after a token; at most every so often."""
        now, first = time.monotonic(), self.lost is None
        if answer.finished or not (first or now - self.shown > UPDATE_EVERY):
            return None
        record = answer.record()
        parts = words(column, record, None) | {(column, "numbers"): self._table(record, answer.seconds.total)}
        if first or (answer.lost != self.lost and now - self.drawn > PICTURE_EVERY):
            self.drawn, self.lost = now, answer.lost
            parts[column, "panel"] = panel.view(record)
        self.shown = time.monotonic()
        return parts

    def put(self, column: int, answer: Answer, turn: tuple[int, int]) -> Parts:
        """A finished answer among those before it: differences, overlaps and bars follow."""
        record = answer.record() | ({"turn": list(turn)} if self.asked.repeat == 1 else {})
        self.runs.setdefault(column, []).append(record)
        self.answers[column] = answer
        return self._standing() | {(column, "panel"): panel.view(record)}

    def refuse(self, column: int, error: ValueError) -> Parts:
        """A column whose method cannot run here, and why."""
        self.refused.add(column)
        return {
            (column, "by"): say("not_run", type(self.asked.columns[column]).__name__),
            (column, "answer"): [],
            (column, "refusal"): english(trouble(error)[TROUBLE]),
            (column, "panel"): panel.blank(None),
        }

    def ending(self) -> Parts:
        """What is said when every column had its turn."""
        words = say("done_but", len(self.refused), len(self.asked.columns)) if self.refused else say("done")
        if self.asked.after:
            alone = self.llava.single_turn
            words += " " + (say("followed_alone", self.llava.name) if alone else say("followed"))
        return said(words) | (self._standing() if self.runs else {})

    def records(self) -> dict[int, dict]:
        """One record a column, medians where it ran repeatedly, each beside the unpruned one."""
        records = {column: medians(self.runs[column]) for column in self.asked.columns if column in self.runs}
        compared(list(records.values()), [self.answers[column].first_logits for column in records])
        return records

    def _before(self, column: int) -> Answer | None:
        """What this column's method answered last, where this is a follow-up."""
        before = self.asked.after and self.asked.after.answers.get(column)
        return before if before and before.method == type(self.asked.columns[column]).__name__ else None

    def _standing(self) -> Parts:
        records = self.records()
        conditions = numbers.conditions(
            list(records.values()), self.asked.max_new_tokens, self.asked.temperature, max(map(len, self.runs.values()))
        )
        stamp = f"{english(conditions)}; {device_name(self.llava.device)}"
        comparison = Comparison(list(records.values()), stamp, self.crop, self.llava.grid)
        result = Result(comparison, tuple(records), dict(self.answers))
        memory = numbers.size(max(record["memory"] for record in records.values()))
        status = prose.status(self.llava, memory)
        return standing(result, self.asked.sheet) | {CONDITIONS: conditions, STATUS: status}

    def _table(self, record: dict, longest: float) -> str:
        totals = [runs[-1]["seconds"]["total"] for runs in self.runs.values()]
        return numbers.table(record, max([longest, *totals]), self.asked.sheet.line(record))


def standing(result: Result, sheet: Sheet) -> Parts:
    """Everything that rests on records alone, of every column: what a run ends with and what a replay shows."""
    records = dict(zip(result.columns, result.comparison.records, strict=True))
    reference = next((record for record in records.values() if record["method"] == "Full"), None)
    longest = max(record["seconds"]["total"] for record in records.values())
    parts = {OVERLAPS: numbers.overlaps(records), RESULT: result}
    for column, record in records.items():
        parts |= words(column, record, reference) | {(column, "readings"): readings(record)}
        parts[column, "numbers"] = numbers.table(record, longest, sheet.line(record))
    return parts


def words(column: int, record: dict, reference: dict | None) -> Parts:
    """A column's heading and answer, beside the unpruned one what was added and what is missing."""
    line = [("same", record["answer"])]
    if reference is not None and reference is not record:
        line = differences(record["answer"], reference["answer"])
    return {
        (column, "by"): numbers.heading(record),
        (column, "answer"): [{"kind": kind, "text": text} for kind, text in line],
        (column, "turns"): "".join(
            f"<dt>{escape(question)}</dt><dd>{escape(answer)}</dd>" for question, answer in record.get("history", ())
        ),
        (column, "refusal"): "",
    }


def readings(record: dict) -> str:
    """How the settings of a record's method count on its curve; nothing where the method does not explain itself."""
    curve = record["curve"]
    if not curve or record["method"] not in REDUCERS:
        return ""
    reducer = make(record["method"], **record["params"])
    return prose.readings(reducer.explain(np.array(curve["similarity"]), curve["knee"]))


def blank(column: int, views: list[dict] | None) -> Parts:
    """A column before its answer: the patches that the model will cut its crop into, and dashes."""
    return {
        (column, "by"): say("answer"),
        (column, "answer"): [],
        (column, "turns"): "",
        (column, "refusal"): "",
        (column, "readings"): "",
        (column, "panel"): panel.blank(views),
        (column, "numbers"): numbers.table(None),
    }
