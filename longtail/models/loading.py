"""What loading says of itself: progress on the way, and what was loaded in the end."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

PHASES = ("config", "files", "weights", "adapter", "warm_up")


@dataclass(frozen=True)
class Progress:
    """One step of loading: `done` of `total`, in bytes while `files` and `weights` are read, else in steps."""

    phase: str
    done: int
    total: int
    file: str = ""

    def line(self) -> str:
        """In words, without the phase: 3.2 of 13.2 GiB, model-00001-of-00003.safetensors."""
        if self.phase not in ("files", "weights"):
            return self.file
        return ", ".join(filter(None, (f"{gib(self.done)} of {gib(self.total)} GiB", self.file)))


Tell = Callable[[Progress], None]


@dataclass(frozen=True)
class Loaded:
    """What stands in memory and where it came from; bytes."""

    revision: str  # commit of a hub repository, else ""
    adapter: str  # as it was asked for, else ""
    weights: int  # held by the model, scales of quantised layers included
    before: int | None  # free on the device before a weight was read; None where this system does not say
    after: int | None

    def record(self) -> dict:
        """Plain JSON values."""
        return {f"{name}_bytes": getattr(self, name) for name in ("weights", "before", "after")} | {
            "revision": self.revision,
            "adapter": self.adapter,
        }

    def line(self) -> str:
        """In words: what the weights hold, what was free before and is free after."""
        held = f"weights {gib(self.weights)} GiB"
        if self.before is None or self.after is None:
            return held
        return f"{held}; memory free {gib(self.before)} GiB before, {gib(self.after)} GiB after"


def silent(progress: Progress) -> None:
    """Tells nobody."""


def gib(count: float) -> str:
    """Bytes in GiB: two digits after the point below 0.1, else one."""
    amount = count / 2**30
    return f"{amount:.2f}" if amount < 0.1 else f"{amount:,.1f}"


class OneLine:
    """Tells a terminal, in one line that is written over."""

    def __init__(self, name: str, stream: TextIO):
        self.name, self.stream = name, stream

    def __call__(self, progress: Progress) -> None:
        line = f"{self.name}: {progress.phase.replace('_', ' ')} {progress.line()}"
        self.stream.write(f"\r{line[:118]:<118}")
        self.stream.flush()

    def ended(self, line: str) -> None:
        """The last word, which stays."""
        self.stream.write(f"\r{self.name}: {line:<100}\n")


class Lines:
    """Tells a log: a plain line for each phase and file that begins."""

    def __init__(self, name: str, stream: TextIO):
        self.name, self.stream, self.said = name, stream, None

    def __call__(self, progress: Progress) -> None:
        if progress.phase != "config" and (progress.phase, progress.file) != self.said:
            self.said = progress.phase, progress.file
            print(
                f"{self.name}: {progress.phase.replace('_', ' ')} {progress.line()}".rstrip(),
                file=self.stream,
                flush=True,
            )

    def ended(self, line: str) -> None:
        """The last word."""
        print(f"{self.name}: {line}", file=self.stream, flush=True)
