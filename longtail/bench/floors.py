"""What no program beats on this machine: its peaks, and the arithmetic of `cost` for a model that is really loaded.

A GPU's peaks are those of its data sheet, a CPU's are measured: the best of a probe and of products of the model's own
shape, run in turns with what is timed. A time below its floor means that the clock or the arithmetic is wrong.
"""

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace

import torch
from torch.nn import functional

from .. import cost
from ..cost import SHEET, HardwareSpec
from ..estimate import probe
from ..ops import ModelSpec, VisionSpec

SLACK = {True: 0.97, False: 1.0}  # a measured peak is itself known to a few per cent
CACHED = 256e6  # bytes of weights that a cache might hold: for a model below, the bandwidth of memory is no floor
SQUARE = 8192  # side of the matrices that an unknown GPU multiplies
BITS = {"int8": 8, "int4": 4}


@dataclass(frozen=True)
class Peaks:
    """Peaks of a device, where they come from, and whether they were measured."""

    hardware: HardwareSpec
    source: str
    measured: bool

    def at_least(self, flops: float, seconds: float, bits: int) -> "Peaks":
        """These peaks, where so much work in so little time does not prove them higher. A data sheet stays."""
        name, reached = {32: "fp32", 16: "fp16"}[bits], flops / seconds / 1e12
        if not self.measured or reached <= (getattr(self.hardware, name) or 0):
            return self
        return replace(self, hardware=replace(self.hardware, **{name: reached}))

    def reads_at_least(self, read: float, seconds: float) -> "Peaks":
        """The same for bytes read."""
        if not self.measured or read / seconds / 1e9 <= self.hardware.bandwidth:
            return self
        return replace(self, hardware=replace(self.hardware, bandwidth=read / seconds / 1e9))

    def best(self, again: "Peaks") -> "Peaks":
        """The higher of each peak, of two probes: what else ran may have held one of them down."""
        pairs = [(name, asdict(self.hardware)[name], value) for name, value in asdict(again.hardware).items()]
        return replace(self, hardware=HardwareSpec(**{name: one and max(one, two) for name, one, two in pairs}))

    def record(self) -> dict:
        """Plain JSON values."""
        return asdict(self.hardware) | {"source": self.source, "measured": self.measured}

    @classmethod
    def of(cls, record: dict) -> "Peaks":
        """What `record` tells of."""
        names = [entry.name for entry in fields(HardwareSpec)]
        return cls(HardwareSpec(**{name: record[name] for name in names}), record["source"], record["measured"])

    def words(self) -> str:
        """The peaks and their source."""
        known = {"FP32": self.hardware.fp32, "16 bits": self.hardware.fp16, "INT8": self.hardware.int8}
        rates = ", ".join(f"{name} {value:.4g} TFLOP/s" for name, value in known.items() if value)
        return f"floors by arithmetic on {self.hardware.bandwidth:.4g} GB/s, {rates} ({self.source})"


def peaks(device: str) -> Peaks:
    """What this device reaches at most."""
    if not device.startswith("cuda"):
        return Peaks(probe(), "measured here, in the same run with the same threads", True)
    name = torch.cuda.get_device_name(device)
    known = sheet(name)
    if known:
        return Peaks(SHEET[known], f"data sheet of {known}", False)
    return Peaks(_gpu_probe(device), f"measured: no data sheet of {name} is known here", True)


def sheet(name: str) -> str | None:
    """Which data sheet holds for a GPU of that name; None for one that is not known."""
    words = re.findall(r"[A-Z]*\d+(?=GB)|[A-Z0-9]+", name.upper())
    if "A100" in words:
        return "A100-40" if "40" in words else "A100-80"
    return next((known for known in SHEET if known.split()[-1] in words), None)


def _gpu_probe(device: str) -> HardwareSpec:
    """Best of a few products of large square matrices, and of copies of one."""

    def best(form: Callable) -> float:
        seconds = []
        for _ in range(5):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            form()
            end.record()
            torch.cuda.synchronize(device)
            seconds.append(start.elapsed_time(end) / 1000)
        return min(seconds)

    rate = {}
    for dtype in (torch.float32, torch.float16):
        a, b = (torch.randn(SQUARE, SQUARE, dtype=dtype, device=device) for _ in range(2))
        rate[dtype] = 2e-12 * SQUARE**3 / best(lambda a=a, b=b: a @ b)
    copied = 2e-9 * a.nbytes / best(lambda: a.copy_(b))
    return HardwareSpec(copied, rate[torch.float16], None, rate[torch.float32])


def spec(config) -> ModelSpec:
    """A model's configuration in the plain numbers that `cost` reads."""
    text, vision = config.get_text_config(), config.vision_config
    tower = VisionSpec(
        vision.hidden_size,
        vision.intermediate_size,
        vision.num_hidden_layers,
        vision.num_attention_heads,
        (vision.image_size // vision.patch_size) ** 2,
        vision.patch_size,
    )
    heads, layers = text.num_attention_heads, text.num_hidden_layers
    keys = text.num_key_value_heads
    return ModelSpec(text.hidden_size, text.intermediate_size, layers, heads, keys, text.vocab_size, tower)


def bits(dtype: torch.dtype, quantization: str = "none") -> int:
    """The width by which `cost` counts: that of the decoder's weights."""
    return BITS.get(quantization, 8 * dtype.itemsize)


def prefill(model: ModelSpec, at: Peaks, tokens: int | list[int], width: int, batch: int = 1) -> float | None:
    """Seconds that no prefill of so many tokens beats; None where no peak of that width is known, or where a cache may
    hold the weights."""
    return _floor(cost.prefill, model, at, tokens, width, batch)


def decode(model: ModelSpec, at: Peaks, entries: int | list[int], width: int, batch: int = 1) -> float | None:
    """Seconds that no later token beats which reads so many KV entries; None as in `prefill`."""
    return _floor(cost.decode, model, at, entries, width, batch)


def tower(model: ModelSpec, at: Peaks, width: int, views: int = 1) -> float | None:
    """Seconds that the vision tower takes at least, the projector aside, for so many views that nothing trims."""
    return _floor(cost.tower, model, at, None, width, views, projected=1)


def product(model: ModelSpec, rows: int, dtype: torch.dtype, device: str) -> tuple[Callable, float]:
    """A product of a decoder layer's shape over so many rows, to be timed, and its operations."""
    states = torch.randn(rows, model.hidden, dtype=dtype, device=device)
    weight = torch.randn(model.intermediate, model.hidden, dtype=dtype, device=device)
    return lambda: functional.linear(states, weight), 2.0 * rows * model.hidden * model.intermediate


def flops(model: ModelSpec, tokens: int | list[int]) -> float:
    """Operations of a prefill, by exact rules."""
    return cost.flops(model, tokens)


def _floor(count, model, at, tokens, width, batch, **more) -> float | None:
    peak = {32: at.hardware.fp32, 16: at.hardware.fp16}.get(width, at.hardware.int8)
    if peak is None or model.linear * width / 8 < CACHED:
        return None
    return count(model, at.hardware, tokens, bits=width, batch=batch, exact=True, **more).floor


def below(what: str, seconds: float, floor: float | None, at: Peaks) -> str | None:
    """The sentence for a time that nothing can reach; None for one that can be."""
    if floor is None or seconds >= SLACK[at.measured] * floor:
        return None
    return (
        f"{what} took {1e3 * seconds:.4g} ms, below its floor of {1e3 * floor:.4g} ms: "
        "the clock or the arithmetic is wrong"
    )
