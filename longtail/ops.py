"""The table of ops: operations and bytes of a model's layers, by LLM-Viewer's rules or exact ones."""

from dataclasses import dataclass
from typing import NamedTuple

BITS = (32, 16, 8, 4)
INT4_PEAKS = ("int8", "fp16")  # what INT4 weights compute at: LLM-Viewer's choice, and kernels that unpack to 16 bits
REVISIONS = ("new", "old")  # of LLM-Viewer; until 19 March 2024 lm_head's weight was one byte each at any width


@dataclass(frozen=True)
class VisionSpec:
    """A CLIP vision tower: `patch` is a patch's side in pixels, `patches` of them and CLS enter each of `layers`."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    patches: int = 576
    patch: int = 14

    gated = False

    @property
    def kv_width(self) -> int:
        """Channels of the keys of one token."""
        return self.hidden


@dataclass(frozen=True)
class ModelSpec:
    """A Llama language model in plain numbers, and the tower before it where `tower` is to be asked."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    vision: VisionSpec | None = None

    gated = True

    @property
    def kv_width(self) -> int:
        """Channels of the keys of one token."""
        return self.hidden // self.heads * self.kv_heads

    @property
    def linear(self) -> int:
        """Parameters of the decoder layers' projections; lm_head, embeddings and norms are not among them."""
        attention = 2 * self.hidden * (self.hidden + self.kv_width)
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    def kv_bytes(self, bits: int = 16) -> float:
        """Bytes that one token holds in the KV caches of all layers."""
        return 2 * self.layers * self.kv_width * bits / 8


class Op(NamedTuple):
    """Operations and bytes of one op."""

    ops: float
    weight: float = 0
    load: float = 0
    store: float = 0
    kv_load: float = 0
    kv_store: float = 0


@dataclass(frozen=True)
class Rules:
    """How ops are counted. Raises ValueError for a width, batch, revision, INT4 peak or launch time that cannot be."""

    bits: int = 16  # width of weights, activations and KV alike
    batch: int = 1  # sequences at once
    rev: str = "new"  # of LLM-Viewer
    exact: bool = False  # what is needed, in place of what LLM-Viewer counts
    fused: bool = False  # attention never writes its scores
    launch: float = 0.0  # seconds that launching one kernel takes
    int4_peak: str = "int8"

    def __post_init__(self):
        if self.bits not in BITS:
            raise ValueError(f"bits must be one of 32, 16, 8, 4, got {self.bits}")
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch}")
        if self.rev not in REVISIONS:
            raise ValueError(f"rev must be new or old, got {self.rev!r}")
        if self.int4_peak not in INT4_PEAKS:
            raise ValueError(f"int4_peak must be int8 or fp16, got {self.int4_peak!r}")
        if not 0 <= self.launch <= 1:
            raise ValueError(f"launch must be between 0 and 1 second, got {self.launch}")

    @property
    def by(self) -> float:
        """Bytes of one number."""
        return self.bits / 8

    @property
    def computed(self) -> int:
        """The width whose peak holds."""
        return 16 if (self.bits, self.int4_peak) == (4, "fp16") else self.bits

    def linear(self, width: int, out: int, rows: int) -> Op:
        """`rows` through a matrix [out, width]."""
        n = rows * self.batch
        return Op(2 * width * out * n, width * out * self.by, width * n * self.by, out * n * self.by)

    def layer(self, spec: ModelSpec | VisionSpec, rows: int, entries: int, pairs: int) -> list[Op]:
        """A layer's ops: `rows` read `entries`; `pairs` of them are needed where attention is causal."""
        h, kv, n, by = spec.hidden, spec.kv_width, rows * self.batch, self.by
        square, key = self.linear(h, h, rows), self.linear(h, kv, rows)
        cached = key._replace(store=0, kv_store=key.store)
        up = [self.linear(h, spec.intermediate, rows)] * (2 if spec.gated else 1)
        norm = Op(7 * h * n, h * by * self.exact, h * n * by, h * n * by)
        add = Op(h * n, 0, h * n * by * (1 + self.exact), h * n * by)
        inner = (spec.intermediate if self.exact else h) * n
        act = Op(2 * inner, 0, (1 + spec.gated) * inner * by, inner * by)
        attention = self.attention(spec, rows, entries, pairs)
        down = self.linear(spec.intermediate, h, rows)
        return [square, square, cached, cached, *up, down, *attention, norm, norm, add, add, act]

    def attention(self, spec: ModelSpec | VisionSpec, rows: int, entries: int, pairs: int) -> list[Op]:
        """q k^T, softmax, and the sum of values."""
        h, kv, n, by = spec.hidden, spec.kv_width, rows * self.batch, self.by
        needed = (pairs if self.exact else rows * entries) * self.batch
        scores, keys = n * entries * spec.heads * by, entries * self.batch * kv * by
        query = n * (h if self.exact else kv) * by
        if self.fused:
            return [Op(4 * needed * h + 5 * needed * spec.heads, 0, query, n * h * by, 2 * keys)]
        softmax = Op(5 * needed * spec.heads, 0, scores, scores)
        return [Op(2 * needed * h, 0, query, scores, keys), softmax, Op(2 * needed * h, 0, scores, n * h * by, keys)]

    def head(self, model: ModelSpec) -> Op:
        """lm_head, of the last token only."""
        size, by = model.hidden * model.vocabulary, self.by
        weight = size * (by if self.rev == "new" else 1)
        read, write = model.hidden * self.batch * by, model.vocabulary * self.batch * by
        return Op(size * self.batch * (1 + self.exact), weight, read, write)

    def peak(self, ops: list[Op], stream: int) -> float:
        """Activations held at once: by LLM-Viewer all that a layer writes; exact, the largest op's and the residual."""
        if self.exact:
            return max(op.load + op.store for op in ops) + stream * self.batch * self.by
        return sum(op.store for op in ops)
