"""The arithmetic beside the rows of `bench model`: what no program beats, stage by stage, from the counts of a row."""

from ..models.drawn import Drawn
from ..reducer import parse
from . import floors
from .protocol import rounded
from .record import table

STAGES = {"vision": "vision", "prefill": "prefill", "per_token": "later token"}


class Bounds:
    """Floors and operations for one model on one device."""

    def __init__(self, llava: Drawn, peaks: floors.Peaks):
        self.peaks, self.spec = peaks, floors.spec(llava.model.config)
        self.width, self.tower = floors.bits(llava.dtype, llava.quantization), 8 * llava.dtype.itemsize
        self.views = len(llava.drawn.layout.sizes)

    def beside(self, record: dict) -> dict:
        """The record, each measured row with its `floors` in seconds and prefill `tflop`, and what lies below them."""
        rows = [row if "reason" in row else row | self._of(row) for row in record["rows"]]
        failures = [
            floors.below(f"{row['method']}: {label}", row["seconds"][stage], row["floors"][stage], self.peaks)
            for row in rows
            if "reason" not in row
            for stage, label in STAGES.items()
            if row["seconds"][stage]  # one new token has no later one
        ]
        failures = [sentence for sentence in failures if sentence]
        return record | {"peaks": self.peaks.record(), "rows": rows, "failures": failures}

    def _of(self, row: dict) -> dict:
        tokens = row["tokens"]
        entering = [n + tokens["prompt"] - tokens["visual"] for n in tokens["layers"]]
        trims = "trim" in parse(row["method"]).active()
        found = {
            "vision": None if trims else floors.tower(self.spec, self.peaks, self.tower, self.views),
            "prefill": floors.prefill(self.spec, self.peaks, entering, self.width),
            "per_token": floors.decode(self.spec, self.peaks, round(tokens["kv_entries"]), self.width),
        }
        return {"floors": found, "tflop": rounded(floors.flops(self.spec, entering) / 1e12)}

    def words(self, record: dict) -> str:
        """Measured and floor of every stage, and the operations of the prefill."""
        lines = []
        for row in record["rows"]:
            if "reason" not in row:
                cells = [
                    f"{1e3 * row['seconds'][s]:.4g} / {_ms(row['floors'][s])}" if row["seconds"][s] else "–"
                    for s in STAGES
                ]
                lines.append((row["method"], *cells, f"{row['tflop']:.3g}"))
        head = ("method", *(f"{label}, ms / floor" for label in STAGES.values()), "prefill TFLOP")
        return f"{table(head, lines)}\n{self.peaks.words()}; for what runs inside the tower no floor of it is told"


def _ms(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{1e3 * seconds:.4g}"
