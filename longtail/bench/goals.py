"""What is aimed at, what was measured, and the verdict: met, missed, reported, or why it was not run here."""

from dataclasses import asdict, dataclass

from .record import table

NO_GPU = "not run here: needs a CUDA device"
REFUSED = "{} could not be captured as a CUDA graph, the log says why: rows of mode graph were launched op by op"


@dataclass(frozen=True)
class Goal:
    """A number to be reached from below (`least`) or above (`most`); with neither it is reported, no more.

    `measured` is None where nothing could be, and `reason` says why. With a `doubt` no number meets a goal.
    """

    what: str
    measured: float | None
    least: float | None = None
    most: float | None = None
    unit: str = ""
    reason: str = NO_GPU
    doubt: str = ""

    @property
    def met(self) -> bool | None:
        """Whether it is; None where nothing was measured, it is in doubt, or nothing is aimed at."""
        if self.measured is None or self.doubt or self.least is self.most is None:
            return None
        return (self.least is None or self.measured >= self.least) and (self.most is None or self.measured <= self.most)

    @property
    def verdict(self) -> str:
        """One of met, missed, reported, or the reason, or the doubt."""
        if self.measured is None:
            return self.reason
        return f"in doubt: {self.doubt}" if self.doubt else {True: "met", False: "missed", None: "reported"}[self.met]

    @property
    def aim(self) -> str:
        """The number aimed at."""
        signs = ((">=", self.least), ("<=", self.most))
        return " ".join(f"{sign} {value:g}{self.unit}" for sign, value in signs if value is not None) or "no goal"

    def record(self) -> dict:
        """Plain JSON values."""
        return asdict(self) | {"aim": self.aim, "met": self.met, "verdict": self.verdict}


def words(goals: list[dict]) -> str:
    """Goal, measured, verdict: a line each, from their records."""
    rows = [
        (
            goal["what"],
            goal["aim"],
            "" if goal["measured"] is None else f"{goal['measured']:.4g}{goal['unit']}",
            goal["verdict"],
        )
        for goal in goals
    ]
    return table(("goal", "aim", "measured", "verdict"), rows)
