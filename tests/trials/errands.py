"""What callers ask of the page, the API and the sweep, and whether what came back is theirs and nobody else's."""

import json
from dataclasses import dataclass

import longtail
from demo import panel
from longtail.reducer import parse
from longtail.versus import divergence

from .visitor import Turn, Visitor

HOWS = ("answer", "run", "preview", "api_preview", "compare", "sweep")  # the second and the third press the page
FINGERPRINT = ("question", "method", "params", "answer", "keep", "curve")
NEW = 12  # tokens


@dataclass
class Errand:
    """One caller's question about an image of its own."""

    how: str
    image: bytes
    question: str
    method: str = "LongTail"

    def alone(self, llava) -> list:
        """What `longtail.answer` gives for it, with nobody else there, as far as it comes back."""
        answers = [
            longtail.answer(llava, self.image, self.question, reducer, max_new_tokens=NEW)
            for reducer in (longtail.Full(), parse(self.method, 9 if self.how == "sweep" else None))
        ]
        if self.how == "sweep":
            return [0.0, divergence(answers[1].first_logits, answers[0].first_logits)]
        records = [json.loads(json.dumps(answer.record())) for answer in answers]
        if self.how in ("run", "preview"):
            return [(" ".join(record["answer"].split()), panel.view(record)) for record in records]
        return [{name: record[name] for name in FINGERPRINT} for record in records][self.how == "answer" :]

    def run(self, visitor: Visitor) -> tuple[list, Turn]:
        """Ask it; what came back in the form of `alone`, and the turn itself."""
        turn = self.ask(visitor).wait()
        return self.came(turn), turn

    def ask(self, visitor: Visitor, **options) -> Turn:
        """Ask it, and wait for nothing."""
        asked = {"image": visitor.upload(self.image), "question": self.question} | options
        if self.how in ("run", "preview"):
            return visitor.ask("Full", self.method, how=self.how, **{"new": NEW} | asked)
        if self.how == "sweep":
            plan = {"scope": "this", "methods": [self.method], "parameter": "budget", "values": "9", "new": NEW}
            return visitor.press("sweep-go", **plan | asked)
        named = {"method": self.method} if self.how == "answer" else {"methods": ["Full", self.method]}
        endpoint = self.how.removeprefix("api_")
        return visitor.call(endpoint, **{"max_new_tokens": NEW} | named | asked)

    def came(self, turn: Turn) -> list:
        """What came back, in the form of `alone`; nothing of what was refused or lost."""
        if self.how in ("run", "preview"):
            return [_shown(turn, column) for column in (0, 1)]
        if self.how == "sweep":
            rows = json.loads(turn.part("sweep-table") or '{"rows": []}')["rows"]
            return [row[5][1] for row in rows]  # divergences, the unpruned model's first
        record = next(iter(turn.shown.values()), None) or {}
        records = record.get("answers") or ([record] if "answer" in record else [])
        return [{name: one[name] for name in FINGERPRINT} for one in records]


def _shown(turn: Turn, column: int) -> tuple[str, str]:
    """The words and the panel of a column."""
    words = [part["text"] for part in turn.part("answer", column) or () if part["kind"] != "missing"]
    return " ".join(" ".join(words).split()), turn.part("panel", column)
