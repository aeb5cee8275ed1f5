"""A preview as it happens: every column at once, token by token, sharing what can be shared. It tells no time."""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing

import torch

import longtail
from longtail import Answer

from . import space
from .board import Asked, Board
from .run import Parts, said
from .words import say

News = dict[int, Answer | str]  # column -> its newest answer, or why its method cannot run


def preview(stop: threading.Event, llava, asked: Asked, engine: Callable | None = None) -> Iterator[Parts]:
    """Ask all columns' reducers at once; yields what changed on the page. `engine` is as for `board.compare`."""
    board = Board(llava, asked, llava.crop(asked.image))
    engine, begun = engine or space.placed(lambda: llava), said(say("previewing", len(asked.columns)))
    begun |= board.empty()
    with closing(engine(together, board.seconds(), stop, *board.plain())) as steps:
        for news in steps:
            if parts := begun | taken(board, news):
                yield parts
            begun = {}
    yield board.ending()


def together(llava, image, question: str, columns: dict, repeat: int, before: dict, options: dict, stop):
    """What is new of each column, first nothing, then after every step of decoding. Arguments as of `board.rounds`, but
    nothing is repeated or followed up on here, and all columns together have the time of as many runs.
    What no method could answer is raised before the first step."""
    with torch.inference_mode():
        llava.prompt(image, question)
    yield {}
    options = options | {"time_limit": options["time_limit"] * len(columns), "stop": stop}
    last = dict.fromkeys(columns)
    with closing(longtail.preview(llava, image, question, list(columns.values()), **options)) as steps:
        for step in steps:
            now = dict(zip(columns, step, strict=True))
            yield {column: it for column, it in now.items() if it is not None and it is not last[column]}
            last = now


def taken(board: Board, news: News) -> Parts:
    """What one step of all columns changes on the page."""
    parts = {}
    for column, it in news.items():
        match it:
            case str():
                parts |= board.refuse(column, it)
            case _ if it.finished:
                parts |= board.put(column, it, None)
            case _:
                parts |= board.streaming(column, it) or {}
    return parts
