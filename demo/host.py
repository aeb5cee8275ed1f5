"""The model that answers, the line for it, and the models it may be changed for: one at a time in memory."""

from collections import deque
from collections.abc import Callable

from longtail import Answer
from longtail.given import shown
from longtail.models.memory import give_back

from . import space
from .journal import Journal
from .line import Line
from .run import Job

LOADING = 1800.0  # seconds that loading may be silent: weights of a large model come in one piece
FOLLOWED = 8  # results that may be followed up on without another run of the tower


class Host:
    """Holds the loaded model, or None on a page that only replays reports."""

    def __init__(
        self,
        llava,
        names: tuple[str, ...] = (),
        load: Callable | None = None,
        line: Line | None = None,
        journal: Journal | None = None,
    ):
        self.llava, self.names, self.load = llava, names, load
        self.name = names[0] if names else None
        self.run = space.placed(self.ready)  # what asks the model goes through here
        self.line, self.journal = line or Line(), journal or Journal()
        self.seen: deque[dict[int, Answer]] = deque()  # the answers of the newest results

    def ready(self):
        """The model. Raises ValueError where the page was started without one."""
        if self.llava is None:
            raise ValueError("no model is loaded, this page replays reports: start app.py with --model tiny to ask")
        return self.llava

    def job(self, kind: str, patience: float, records: Callable = lambda produced: ()) -> Job:
        """Work of that kind on this model, which may be silent for so many seconds."""
        return Job(kind, self.line, patience, self.journal.ran, records)

    def keep(self, answers: dict[int, Answer]):
        """Keep what the model saw for the newest results, and empty the oldest: it is large, and on its device."""
        if any(answers is kept for kept in self.seen):
            return
        self.seen.append(answers)
        while len(self.seen) > FOLLOWED:
            self.seen.popleft().clear()

    def change(self, name: str, progress: Callable | None = None):
        """Unload the model, load another; where that fails the old one is loaded again. Raises ValueError, OSError."""
        if name not in self.names:
            raise ValueError(f"the model must be one of {', '.join(self.names) or 'none'}, got {shown(name)}")
        before, self.name, self.llava = self.name, name, None
        for answers in self.seen:
            answers.clear()
        self.seen.clear()
        give_back()
        try:
            self.llava = self.load(name, progress=progress)
        except Exception:
            self.name, self.llava = before, self.load(before)
            raise
        return self.llava


def longest(llava) -> int:
    """The most new tokens that may be asked for."""
    return min(512, llava.room() // 2) if llava else 512
