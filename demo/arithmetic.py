"""What an answer's counts would cost a real LLaVA on a chosen GPU: arithmetic beside the measurement, labelled so."""

from dataclasses import dataclass

from longtail import cost
from longtail.given import shown

from .words import say

BITS = {"FP16": 16, "INT8": 8, "INT4": 4}


@dataclass(frozen=True)
class Sheet:
    """The model, the GPU (by its data sheet) and the width that the arithmetic is for."""

    model: str = "LLaVA-1.5-7B"
    gpu: str = "A100-80"
    width: str = "FP16"

    def __post_init__(self):
        for given, known, name in (
            (self.model, cost.MODELS, "model"),
            (self.gpu, cost.SHEET, "GPU"),
            (self.width, BITS, "width"),
        ):
            if not isinstance(given, str) or given not in known:
                raise ValueError(f"the arithmetic's {name} must be one of {', '.join(known)}, got {shown(given)}")

    def line(self, record: dict) -> str:
        """Operations and roofline seconds of the prefill, and of the next token: the record's counts, layer by layer,
        stretched over the model's layers; attention fused, causal."""
        tokens = record["tokens"]
        if not tokens["prompt"]:
            return ""
        model, hardware, bits = cost.MODELS[self.model], cost.SHEET[self.gpu], BITS[self.width]
        text = tokens["prompt"] - tokens["visual"]
        layers = [text + visual for visual in cost.stretch(tokens["layers"] or [tokens["visual"]], model.layers)]
        first = cost.prefill(model, hardware, layers, bits, exact=True, fused=True)
        later = cost.decode(model, hardware, max(round(tokens["kv_entries"]), 1), bits, exact=True, fused=True)
        times = (f"{1000 * seconds:.1f} ms" for seconds in (first.seconds, later.seconds))
        return say("arithmetic_line", self.model, self.gpu, self.width, f"{first.flops / 1e12:.2f}", *times)
