"""What tokens cost by arithmetic: FLOPs, bytes moved, roofline seconds, memory; nothing here is measured.

Two sets of rules. The plain one counts as LLM-Viewer does, the tool behind the tables of the main paper, PruMerge and
Recoverable (github.com/hahnyuan/LLM-Viewer; written anew from a description of what it counts). `exact=True` counts
what is really needed: causal attention, two operations a MAC everywhere, every operand loaded, all weights held.
An op takes max(operations / peak, bytes / bandwidth) and a pass the sum over its ops. `bits` is the width of weights,
activations and KV alike; up to 8 bits the INT8 peak holds, 4 bits included unless `int4_peak="fp16"`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Integral

from .ops import ModelSpec, Op, Rules, VisionSpec

KERNELS = {False: 47, True: 41}  # launched a decoder layer in eager PyTorch, by `fused`: 1,500 and 1,310 of 32 layers
TOWER_KERNELS = {False: 20, True: 15}  # a layer of the vision tower
IGNORED = (
    "the selector and its text encoder, embeddings, rotary positions, the final norm, sampling, overlap "
    "of ops, and any efficiency below 100 % of the peak"
)


@dataclass(frozen=True)
class HardwareSpec:
    """Bandwidth in GB/s and dense peaks in tera-operations a second; None for a peak that is not known."""

    bandwidth: float
    fp16: float
    int8: float | None
    fp32: float | None = None

    @property
    def ridge(self) -> float:
        """Tokens x batch below which reading the weights takes longer than FP16 arithmetic: pruning gains no more."""
        return 1e3 * self.fp16 / self.bandwidth

    def peak(self, bits: int) -> float:
        """Operations a second at that width. Raises ValueError where no such peak is known."""
        peak = {32: self.fp32, 16: self.fp16}.get(bits, self.int8)
        if peak is None:
            raise ValueError(f"no peak for {bits} bits is known of this hardware: choose other bits or other hardware")
        return 1e12 * peak


VIT_L = VisionSpec(1024, 4096, 24, 16)
MODELS = {
    "LLaVA-1.5-7B": ModelSpec(4096, 11008, 32, 32, 32, 32000, VIT_L),
    "LLaVA-1.5-13B": ModelSpec(5120, 13824, 40, 40, 40, 32000, VIT_L),
    "LLaVA-1.6-Mistral-7B": ModelSpec(
        4096, 14336, 32, 32, 8, 32064, VIT_L
    ),  # 1.6 with Vicuna: as 1.5; the tower: a view
    "tiny": ModelSpec(192, 512, 6, 3, 3, 512, VisionSpec(192, 768, 7, 3, patch=8)),
}
VIEWER = {  # as LLM-Viewer has them; its A100 is the 40 GB card
    "V100": HardwareSpec(900, 112, 62),
    "A100": HardwareSpec(1555, 312, 624),
    "H100": HardwareSpec(3072, 989.5, 1979),
}
SHEET = {  # NVIDIA's data sheets, dense; FP16 with FP32 accumulate; H100 and H200 as SXM
    "A100-40": HardwareSpec(1555, 312, 624),
    "A100-80": HardwareSpec(2039, 312, 624),
    "V100": HardwareSpec(900, 125, 62),  # no INT8 tensor cores: fewer bits are slower
    "H100": HardwareSpec(3352, 989, 1979),
    "H200": HardwareSpec(4800, 989, 1979),
    "RTX 4090": HardwareSpec(1008, 165.2, 660.6),
    "L4": HardwareSpec(300, 121, 242),
    "T4": HardwareSpec(320, 65, 130),
}


@dataclass(frozen=True)
class Cost:
    """One pass, or several added up. Bytes are decimal; `moved` is traffic, `footprint` is what memory must hold."""

    flops: float  # operations, whatever the width
    seconds: float  # sum over ops of max(operations / peak, bytes / bandwidth), no less than the launches take
    floor: float  # seconds no program beats: max(needed flops / peak, (weights + KV) / bandwidth), whatever the rules
    weights: float  # bytes of weights read
    activations: float  # bytes of activations read and written
    written: float  # of these, written
    kv: float  # bytes of keys and values read and written
    cache: float  # bytes of KV cache held afterwards
    resident: float  # bytes of weights held
    peak: float  # bytes of activations held at once, by the rules' notion of it

    @property
    def moved(self) -> float:
        return self.weights + self.activations + self.kv

    @property
    def footprint(self) -> float:
        return self.resident + self.cache + self.peak

    def __add__(self, other: "Cost") -> "Cost":
        """One after the other: everything adds up but the activations, which take turns."""
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return Cost(**{**sums, "peak": max(self.peak, other.peak)})

    def record(self) -> dict:
        """Plain JSON values."""
        return {**asdict(self), "moved": self.moved, "footprint": self.footprint}


# ---- what one asks


def prefill(model: ModelSpec, hardware: HardwareSpec, tokens: int | Sequence[int], bits: int = 16, **rules) -> Cost:
    """The pass over a prompt: `tokens` entering every decoder layer, text included, or one count a layer.

    `rules`: batch, rev, exact, fused, launch, int4_peak (see `Rules`). Raises ValueError for a count below 1, for
    counts that are not one a layer, and for rules that cannot be.
    """
    layers = Counter((n, n) for n in per_layer(tokens, model.layers))
    return _pass(model, hardware, layers, Rules(bits, **rules))


def decode(model: ModelSpec, hardware: HardwareSpec, entries: int | Sequence[int], bits: int = 16, **rules) -> Cost:
    """One later token: one row that reads `entries` of the KV cache, its own included, in every layer or one count a
    layer. Rules and errors as in `prefill`."""
    layers = Counter((1, n) for n in per_layer(entries, model.layers))
    return _pass(model, hardware, layers, Rules(bits, **rules))


def tower(
    model: ModelSpec,
    hardware: HardwareSpec,
    tokens: int | Sequence[int] | None = None,
    projected: int | None = None,
    bits: int = 16,
    **rules,
) -> Cost:
    """Vision tower and projector, always by exact rules, to be added to `prefill`.

    `tokens`, CLS included, entering each layer that runs: one count for all up to the layer LLaVA reads (the last but
    one), or one count for each layer that runs. `projected`: patches that the projector sees; all unless given.
    """
    vision = model.vision
    if vision is None:
        raise ValueError("this model is described without a vision tower: give ModelSpec a vision")
    tokens = vision.patches + 1 if tokens is None else tokens
    running = len(tokens) if isinstance(tokens, Sequence) else vision.layers - 1
    if not 1 <= running <= vision.layers:
        raise ValueError(f"the vision tower has {vision.layers} layers, got counts for {running}")
    counts = per_layer(tokens, running)
    rules = Rules(bits, **{**rules, "exact": True})
    once = [rules.linear(3 * vision.patch**2, vision.hidden, vision.patches)]
    patches = vision.patches if projected is None else per_layer(projected, 1)[0]
    once += [rules.linear(width, model.hidden, patches) for width in (vision.hidden, model.hidden)]
    layers = {n: [_as_activations(op) for op in rules.layer(vision, n, n, n * n)] for n in set(counts)}
    groups = [(1, once), *((times, layers[n]) for n, times in Counter(counts).items())]
    held = sum(times * op.weight for times, ops in groups for op in ops)
    peak = max(rules.peak(ops, n * vision.hidden) for n, ops in layers.items())
    launched = rules.launch * TOWER_KERNELS[rules.fused] * running
    needed = sum(times * op.ops for times, ops in groups for op in ops)
    return _cost(groups, hardware, rules, needed, launched, resident=held, cache=0, peak=peak)


CONVENTIONS = {
    "exact": "two operations a MAC, causal attention, elementwise work, lm_head once",
    "viewer": "as LLM-Viewer: two a MAC but one in lm_head, full attention",
    "pyramiddrop": "PyramidDrop, SparseVLM: 4nd^2 + 2n^2d + 3ndm a layer, one a MAC",
    "fastv": "FastV, DivPrune: 4nd^2 + 2n^2d + 2ndm a layer, one a MAC and two of the three MLP matrices",
}


def flops(model: ModelSpec, tokens: int | Sequence[int], convention: str = "exact") -> float:
    """FLOPs of a prefill as papers count them (`CONVENTIONS`): their numbers compare within one convention only."""
    if convention not in CONVENTIONS:
        raise ValueError(f"convention must be one of {', '.join(CONVENTIONS)}, got {convention!r}")
    if convention in ("exact", "viewer"):
        return prefill(model, SHEET["H100"], tokens, exact=convention == "exact").flops
    d, m, matrices = model.hidden, model.intermediate, {"fastv": 2, "pyramiddrop": 3}[convention]
    return sum(4 * n * d**2 + 2 * n**2 * d + matrices * n * d * m for n in per_layer(tokens, model.layers))


def stretch(counts: Sequence[int], depth: int) -> list[int]:
    """Counts a layer of one model as those of a model of `depth` layers: the layer at the same fraction answers, layer
    0 stays first. A deep model's early layers inherit what a shallow one did in its first."""
    if not counts or depth < 1:
        raise ValueError(f"stretch takes at least one count and a depth of at least 1, got {len(counts)} and {depth}")
    return [counts[layer * len(counts) // depth] for layer in range(depth)]


def per_layer(counts: int | Sequence[int], layers: int) -> list[int]:
    """One count a layer, from one for all or one each. Raises ValueError for wrong numbers of them, or below 1."""
    counts = list(counts) if isinstance(counts, Sequence) else [counts] * layers
    if len(counts) != layers:
        raise ValueError(f"{len(counts)} counts were given for {layers} layers: give one for all, or one a layer")
    wrong = [n for n in counts if not isinstance(n, Integral) or n < 1]
    if wrong:
        raise ValueError(f"a layer reads a whole number of tokens, at least 1, got {wrong[0]}")
    return counts


def _as_activations(op: Op) -> Op:
    """A tower keeps no cache: its keys and values are activations."""
    return Op(op.ops, op.weight, op.load + op.kv_load, op.store + op.kv_store)


def _pass(model: ModelSpec, hardware: HardwareSpec, layers: Counter, rules: Rules) -> Cost:
    """A pass through the language model, `layers`: how many of them take (rows, entries)."""
    pairs = {(rows, n): rows * n - rows * (rows - 1) // 2 for rows, n in layers}  # of a row and an entry it may see
    made = {(rows, n): rules.layer(model, rows, n, seen) for (rows, n), seen in pairs.items()}
    groups = [(1, [rules.head(model)]), *((times, made[key]) for key, times in layers.items())]
    extra = 2 * model.hidden * (model.vocabulary + model.layers) if rules.exact else 0  # embeddings, lm_head, norms
    cache = 2 * model.kv_width * rules.batch * rules.by * sum(n * times for (_, n), times in layers.items())
    peak = max(rules.peak(made[rows, n], rows * model.hidden) for rows, n in layers)
    launched = rules.launch * KERNELS[rules.fused] * model.layers
    needed = 2 * model.hidden * model.vocabulary + sum(
        times * (2 * model.linear * rows / model.layers + 4 * pairs[rows, n] * model.hidden)
        for (rows, n), times in layers.items()
    )
    needed *= rules.batch
    resident = (model.linear + extra) * rules.by
    return _cost(groups, hardware, rules, needed, launched, resident=resident, cache=cache, peak=peak)


def _cost(groups: list[tuple[int, list[Op]]], hardware: HardwareSpec, rules: Rules, needed, launched, **held) -> Cost:
    """The sum over ops, each group of them so many times. `needed`: FLOPs that no program can avoid; `launched`:
    seconds that launching the kernels takes; `held`: resident, cache and peak."""
    rate, bandwidth = hardware.peak(rules.computed), 1e9 * hardware.bandwidth
    total, seconds = [0.0] * len(Op._fields), 0.0
    for times, ops in groups:
        for op in ops:
            total = [value + times * more for value, more in zip(total, op, strict=True)]
            seconds += times * max(op.ops / rate, sum(op[1:]) / bandwidth)
    ops, weight, load, store, kv_load, kv_store = total
    return Cost(
        flops=ops,
        seconds=max(seconds, launched),
        floor=max(needed / rate, (weight + held["cache"]) / bandwidth),
        weights=weight,
        activations=load + store,
        written=store,
        kv=kv_load + kv_store,
        **held,
    )
