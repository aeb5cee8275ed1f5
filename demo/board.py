"""A comparison as it happens: one column after another, each measured alone; what stands in the columns meanwhile.

`rounds` asks the model, where that can compute; `Board` makes the page of what it yields. `preview` has all at once.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from html import escape

import numpy as np
import torch
from PIL import Image

from longtail import REDUCERS, Answer, OutOfMemory, Reducer, generate, make
from longtail.export import Comparison, compared, device_name, medians
from longtail.versus import differences

from . import numbers, panel, prose, space
from .arithmetic import Sheet
from .run import TROUBLE, Parts, said, trouble
from .words import english, say

CONDITIONS, OVERLAPS, STATUS, RESULT = (("page", part) for part in ("conditions", "overlaps", "status", "result"))
UPDATE_EVERY, PICTURE_EVERY = 0.08, 0.4  # seconds; the last of a column always shows


@dataclass(frozen=True)
class Asked:
    """What one press of Run, Preview, Measure or Follow up asks for."""

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
    answers: dict[int, Answer] = field(default_factory=dict)  # with all that was seen; the host empties it in time
    replayed: bool = False

    def record(self, column: int) -> dict | None:
        """What stands in a column."""
        return self.comparison.records[self.columns.index(column)] if column in self.columns else None

    def __deepcopy__(self, memo):
        return self  # nothing in it changes; Gradio copies what it keeps of a visitor


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a comparison: a column begins, says its next token, or is refused."""

    column: int
    turn: int  # round; 0 warms up
    place: int  # in this round's order, from 1
    of: int
    answer: Answer | None = None
    refusal: str = ""

    @property
    def stopped(self) -> bool:
        """Whether the visitor ended the comparison here."""
        return self.answer is not None and self.answer.finished == "stopped"


def compare(stop: threading.Event, llava, asked: Asked, engine: Callable | None = None) -> Iterator[Parts]:
    """Ask every column's reducer in turn, in shuffled order; yields what changed on the page.

    `engine` runs what asks the model: `space.placed`, here in this thread where there is none.
    """
    board = Board(llava, asked, llava.crop(asked.image))
    engine, news = engine or space.placed(lambda: llava), board.empty()
    with closing(engine(rounds, board.seconds(), stop, *board.plain())) as steps:
        for step in steps:
            if step.answer is None and not step.refusal:
                yield news | said(board.begin(step))
                news = {}
            elif parts := board.take(step):
                yield parts
            if step.stopped:
                return
    yield board.ending()


def rounds(llava, image, question: str, columns: dict, repeat: int, before: dict, options: dict, stop):
    """The runs of a comparison, as `Step`s: in each round every column once, in shuffled order.

    `before` holds, for columns that follow up, the turns and what was seen (`Answer.seen`); `options` are `generate`'s.
    What one method refuses, or where memory runs out in it, is its refusal; what no method could answer is raised
    before the first step.
    """
    with torch.inference_mode():
        llava.prompt(image, question)
    refused = set()
    for turn in range(int(repeat == 1), repeat + 1):  # round 0 warms up, and is not counted
        order = [column for column in columns if column not in refused]
        random.shuffle(order)
        for place, column in enumerate(order, 1):
            step = Step(column, turn, place, len(order))
            yield step
            history, seen = before.get(column, ((), None))
            follow = {"stop": stop, "history": () if llava.single_turn else history, "seen": seen}
            try:
                with closing(generate(llava, image, question, columns[column], **follow, **options)) as answers:
                    for answer in answers:
                        yield (step := replace(step, answer=answer))
            except (ValueError, OutOfMemory) as error:  # this method's own: the others still answer
                refused.add(column)
                yield replace(step, refusal=str(error))
            if step.stopped:
                return


@dataclass
class Board:
    """What stands in the columns while a comparison goes on."""

    llava: object
    asked: Asked
    crop: Image.Image
    runs: dict[int, list[dict]] = field(default_factory=dict)  # the records of each column's repeated runs
    answers: dict[int, Answer] = field(default_factory=dict)
    refused: set[int] = field(default_factory=set)
    shown: dict[int, float] = field(default_factory=dict)  # when a column's words were, and its panel
    drawn: dict[int, float] = field(default_factory=dict)
    lost: dict[int, tuple] = field(default_factory=dict)  # as in the panel drawn last

    def empty(self) -> Parts:
        """The columns before the first answer."""
        parts = {CONDITIONS: say("side_by_side"), OVERLAPS: "", RESULT: None}
        for column in self.asked.columns:
            parts |= blank(column, self.llava.views(self.asked.image.size))
        return parts

    def plain(self) -> tuple:
        """What `rounds` is asked, as plain values."""
        asked = self.asked
        befores = {column: self._before(column) for column in asked.columns}
        before = {column: turns for column, turns in befores.items() if turns}
        options = {name: getattr(asked, name) for name in ("max_new_tokens", "temperature", "seed", "time_limit")}
        return asked.image, asked.question, asked.columns, asked.repeat, before, options

    def seconds(self) -> int:
        """For how long a lent GPU is asked for."""
        turns = self.asked.repeat + int(self.asked.repeat > 1)
        return space.seconds(turns * len(self.asked.columns), self.asked.max_new_tokens)

    def begin(self, step: Step) -> str:
        """A column begins: what is going on, in words."""
        name = type(self.asked.columns[step.column]).__name__
        if self.asked.repeat == 1:
            return say("answering", name, step.place, step.of)
        return say("measuring", step.turn, self.asked.repeat, name) if step.turn else say("warming", name)

    def take(self, step: Step) -> Parts | None:
        """What a token, the end of an answer or a refusal changes on the page."""
        if step.refusal:
            return self.refuse(step.column, step.refusal)
        if step.answer.finished:
            turn = (step.place, step.of) if self.asked.repeat == 1 else None
            return self.put(step.column, step.answer, turn) if step.turn else None
        return self.streaming(step.column, step.answer) if self.asked.repeat == 1 else None

    def streaming(self, column: int, answer: Answer) -> Parts | None:
        """What changes in one column after a token; at most every so often."""
        now, first = time.monotonic(), column not in self.lost
        if not (first or now - self.shown[column] > UPDATE_EVERY):
            return None
        record = answer.record()
        parts = words(column, record, None) | {(column, "numbers"): self._table(record, answer.seconds.total)}
        if first or (answer.lost != self.lost[column] and now - self.drawn[column] > PICTURE_EVERY):
            self.drawn[column], self.lost[column] = now, answer.lost
            parts[column, "panel"] = panel.view(record)
        self.shown[column] = time.monotonic()
        return parts

    def put(self, column: int, answer: Answer, turn: tuple[int, int] | None) -> Parts:
        """A finished answer among those before it, and its turn: differences, overlaps and bars follow."""
        record = answer.record() | ({"turn": list(turn)} if turn else {})
        self.runs.setdefault(column, []).append(record)
        self.answers[column] = answer
        return self._standing() | {(column, "panel"): panel.view(record)}

    def refuse(self, column: int, reason: str) -> Parts:
        """A column whose method cannot run here, and why."""
        self.refused.add(column)
        return {
            (column, "by"): say("not_run", type(self.asked.columns[column]).__name__),
            (column, "answer"): [],
            (column, "refusal"): english(trouble(ValueError(reason))[TROUBLE]),
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

    def _before(self, column: int) -> tuple | None:
        """What this column's method was asked and answered before, and what was seen of the image where that is still
        kept; None where this is no follow-up."""
        after = self.asked.after
        record = after and after.record(column)
        if not record or record["method"] != type(self.asked.columns[column]).__name__:
            return None
        answer = after.answers.get(column)
        return (*map(tuple, record["history"]), (record["question"], record["answer"])), answer and answer.seen

    def _standing(self) -> Parts:
        records = self.records()
        conditions = numbers.conditions(
            list(records.values()), self.asked.max_new_tokens, self.asked.temperature, max(map(len, self.runs.values()))
        )
        stamp = f"{english(conditions)}; {device_name(self.llava.device)}"
        comparison = Comparison(list(records.values()), stamp, self.crop, self.llava.grid)
        result = Result(comparison, tuple(records), self.answers)
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
    if not record["curve"] or record["method"] not in REDUCERS:
        return ""
    return prose.readings(make(record["method"], **record["params"]).explain(*curve(record)))


def curve(record: dict) -> tuple[np.ndarray, int]:
    """The descending similarities of a record, and the knee."""
    return np.array(record["curve"]["similarity"]), record["curve"]["knee"]


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
