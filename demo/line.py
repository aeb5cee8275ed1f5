"""The line for the model: one at a time, first come first served, and only so many. Every visitor and caller stands in
it; nobody else touches the model."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from statistics import median

from gradio.context import LocalContext

OPEN = {"concurrency_id": "model", "concurrency_limit": None}  # of Gradio's events: who has the model is decided here
MOST = 24  # that may wait
BEAT = 1.0  # seconds after which one who waits is told again how long, and one who left is noticed
GRACE = 10.0  # seconds that silence may last beyond a run's own limit
REMEMBERED = 50  # runs that a wait is reckoned by
CLOSING = "the server is shutting down and takes nothing new: come back in a minute"


class Busy(ValueError):
    """The line takes nobody now; the sentence says why, and when to come again."""


@dataclass(frozen=True)
class Place:
    """Where somebody stands: so many are `ahead`, the one at work included, which take so many seconds: as `known` from
    others of their kinds, else at most."""

    ahead: int
    seconds: float
    known: bool

    @property
    def time(self) -> str:
        """The wait as one says it."""
        return f"{max(round(self.seconds), 1)} s" if self.seconds < 90 else f"{round(self.seconds / 60)} min"

    @property
    def wait(self) -> str:
        """And how sure it is."""
        return f"{'about' if self.known else 'at most'} {self.time}"


@dataclass(eq=False)
class Turn:
    """A piece of work that waits or has the model; also the `stop` that the engine asks between layers and tokens,
    which is how it is known to be alive."""

    kind: str
    patience: float  # seconds that it may be silent
    visitor: str | None = None
    came: float = field(default_factory=time.monotonic)
    began: float | None = None  # when it got the model
    heard: float = 0.0
    left: bool = False  # whoever asked was gone before it was stopped
    over: threading.Event = field(default_factory=threading.Event)
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    stopped: threading.Event = field(default_factory=threading.Event)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    def is_set(self) -> bool:
        """Whether to stop. Whoever asks is at work."""
        self.heard = time.monotonic()
        return self.stopped.is_set()

    def set(self):
        """Tell the work to stop."""
        self.stopped.set()
        self.tell()

    def forsake(self):
        """The same, for nobody waits for it any more."""
        self.left = not self.stopped.is_set()
        self.set()

    def tell(self):
        """Wake up whoever waits for this turn."""
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.moved.set)


class Line:
    """Who has the model, and who waits for it. Safe to use from any thread; turns are taken in an event loop."""

    def __init__(self, most: int = MOST):
        self.most, self.closed = most, False
        self._turns: list[Turn] = []  # the first one has the model
        self._guard = threading.Lock()
        self._past: deque[tuple[str, float]] = deque(maxlen=REMEMBERED)  # kind and seconds of what is over

    # ---- standing in it

    def join(self, kind: str, patience: float) -> Turn:
        """A turn at the end of the line, for the visitor of this request. Raises Busy, with position and wait."""
        turn = Turn(kind, patience + GRACE, visitor())
        with self._guard:
            if reason := self._refusal():
                raise Busy(reason)
            self._turns.append(turn)
            self._begin()
        return turn

    async def places(self, turn: Turn) -> AsyncIterator[Place]:
        """Its place at every beat until it has the model. Raises Busy where the line does not move any more."""
        while turn.began is None:
            if reason := self.stuck() or (self.closed and CLOSING):
                raise Busy(reason)
            if turn.stopped.is_set():
                return
            yield self._place(turn)
            if turn.began is None:
                await beat(turn.moved)

    def leave(self, turn: Turn):
        """Out of the line, whether it had the model or not; the next one has it."""
        with self._guard:
            if turn in self._turns:
                self._turns.remove(turn)
                if turn.began is not None:
                    self._past.append((turn.kind, time.monotonic() - turn.began))
                self._begin()
        turn.over.set()

    # ---- what others ask of it

    @property
    def waiting(self) -> int:
        """How many wait."""
        return max(len(self._turns) - 1, 0)

    @property
    def busy(self) -> bool:
        """Whether somebody has the model."""
        return bool(self._turns)

    def stuck(self) -> str:
        """Why the line does not move, in a sentence; nothing where it does."""
        turn = next(iter(self._turns), None)
        silence = time.monotonic() - turn.heard if turn and turn.began is not None else 0.0
        if turn is None or silence <= turn.patience:
            return ""
        return (
            f"the model has not been heard of for {silence:.0f} seconds, {turn.patience:.0f} are allowed: "
            "whoever runs this server has to restart it"
        )

    def of(self, visitor: str | None, *kinds: str) -> list[Turn]:
        """The turns of a visitor, of these kinds where some are named."""
        return [turn for turn in list(self._turns) if turn.visitor == visitor and (not kinds or turn.kind in kinds)]

    def end(self, *kinds: str) -> list[Turn]:
        """Tell this visitor's work of these kinds to stop; returns it. Gradio loses a cancellation that comes right
        after an event began, and the work goes on under a page that says it was stopped: so the line is told too."""
        mine = self.of(visitor(), *kinds)
        for turn in mine:
            turn.set()
        return mine

    async def halt(self, *kinds: str):
        """The same, and wait until it has stopped."""
        for turn in self.end(*kinds):
            await asyncio.to_thread(turn.over.wait, 5)

    def close(self):
        """Nobody joins any more, and those who wait are told; the one at work goes on."""
        self.closed = True
        for turn in list(self._turns):
            turn.tell()

    def stop(self):
        """Tell the one at work to stop, whosever it is."""
        for turn in list(self._turns):
            turn.set()

    def drained(self, seconds: float) -> bool:
        """Whether nobody has the model any more, after at most so many seconds."""
        end = time.monotonic() + seconds
        while self.busy and time.monotonic() < end:
            time.sleep(0.02)
        return not self.busy

    # ---- reckoning

    def _begin(self):
        """The first in line has the model."""
        if self._turns and self._turns[0].began is None:
            first = self._turns[0]
            first.began = first.heard = time.monotonic()
            first.tell()

    def _refusal(self) -> str:
        if self.closed:
            return CLOSING
        if reason := self.stuck():
            return reason
        if self._turns and self.waiting >= self.most:
            place = self._behind(self._turns)
            return (
                f"the line for the model is full: you would be number {self.waiting + 1} in it, with {place.wait} to "
                f"wait, and at most {self.most} may wait. Come back then"
            )
        return ""

    def _place(self, turn: Turn) -> Place:
        turns = list(self._turns)
        return self._behind(turns[: turns.index(turn)] if turn in turns else [])

    def _behind(self, turns: list[Turn]) -> Place:
        """The place behind those turns, by what was seen of their kinds; else by what they are allowed."""
        now, past = time.monotonic(), list(self._past)
        whole = 0.0
        for turn in turns:
            like = [seconds for kind, seconds in past if kind == turn.kind] or [seconds for _, seconds in past]
            each = median(like) if like else turn.patience - GRACE
            whole += max(each - (now - turn.began if turn.began is not None else 0.0), 0.0)
        return Place(len(turns), whole, bool(past))


async def beat(moved: asyncio.Event):
    """Until it moved, a beat at most; it may move again."""
    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(moved.wait(), BEAT)
    moved.clear()


def visitor() -> str | None:
    """Whose request this is: the session of a page, or of a caller."""
    request = LocalContext.request.get(None)
    return request and request.session_hash
