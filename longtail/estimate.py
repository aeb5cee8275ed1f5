"""`python -m longtail cost`: the arithmetic for any counts, model and GPU, or beside the papers' printed tables.

`--gpu cpu` takes the peaks of this machine, measured; what is computed on top of them is arithmetic like all else.
`--preprocess` adds the way from a file to a prompt: measured on this machine, or as it is given.
"""

import json
import re
import time

import torch

from . import tables
from .bench import preprocess
from .cost import CONVENTIONS, IGNORED, MODELS, SHEET, VIEWER, HardwareSpec, decode, flops, prefill, tower
from .ops import BITS, INT4_PEAKS, REVISIONS, ModelSpec

GPUS = {**SHEET, **{f"viewer-{name}": spec for name, spec in VIEWER.items()}}
MEASURED = "measured"  # what --preprocess says where no number follows
GEMM, GEMV, REPEAT = 1024, 8192, 5  # sides of the square matrices, and how often each product is tried


def probe() -> HardwareSpec:
    """What this machine's CPU reaches with the threads torch has: the best of a few products, in about two seconds.

    `fp32` and `fp16` (here bfloat16): square matrices; `bandwidth`: a matrix of 256 MB times a vector. INT8: unknown.
    """

    def best(width: int, columns: int, dtype: torch.dtype) -> float:
        a, b = torch.randn(width, width, dtype=dtype), torch.randn(width, columns, dtype=dtype)
        a @ b
        seconds = []
        for _ in range(REPEAT):
            start = time.perf_counter()
            a @ b
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    rate = {dtype: 2e-12 * GEMM**3 / best(GEMM, GEMM, dtype) for dtype in (torch.float32, torch.bfloat16)}
    return HardwareSpec(4e-9 * GEMV**2 / best(GEMV, 1, torch.float32), rate[torch.bfloat16], None, rate[torch.float32])


# ---- the command


def add_flags(command):
    """The flags of `cost`."""
    command.add_argument(
        "--table", choices=(*tables.TABLES, "all"), help="a paper's printed table beside the arithmetic"
    )
    command.add_argument("--tokens", type=int, help="visual tokens that enter every decoder layer (all)")
    command.add_argument("--layers", help="visual tokens layer by layer instead, as 576x2,288x30")
    command.add_argument("--text", type=int, default=60, help="text tokens of the prompt (%(default)s)")
    command.add_argument("--model", default="LLaVA-1.5-7B", help=f"one of {', '.join(MODELS)} (%(default)s)")
    command.add_argument(
        "--gpu", default="H100", help=f"one of {', '.join(GPUS)}, or cpu: this machine, measured (%(default)s)"
    )
    command.add_argument("--bits", type=int, default=16, choices=BITS, help="of weights, activations, KV (%(default)s)")
    command.add_argument("--batch", type=int, default=1, help="sequences at once (%(default)s)")
    command.add_argument("--exact", action="store_true", help="count what is needed, not what LLM-Viewer counts")
    command.add_argument("--fused", action="store_true", help="attention never writes its n x n scores")
    command.add_argument("--launch", type=float, default=0, help="microseconds a kernel launch takes (%(default)s)")
    command.add_argument("--rev", default="new", choices=REVISIONS, help="of LLM-Viewer's lm_head (%(default)s)")
    command.add_argument(
        "--vision", action="store_true", help="vision tower too, and projector of the first layer's tokens"
    )
    command.add_argument(
        "--int4-peak", default="int8", choices=INT4_PEAKS, help="what 4 bits compute at; fp16: unpacked (%(default)s)"
    )
    command.add_argument(
        "--preprocess",
        nargs="?",
        const=MEASURED,
        help="from a file to a prompt too: milliseconds; else measured",
    )
    command.set_defaults(untouched=vars(command.parse_args([])))
    command.add_argument("--json", action="store_true", help="print JSON")


def command(arguments):
    """`cost`: a paper's table, or the unpruned prompt and the given one side by side."""
    if arguments.table:
        given = [
            f"--{k}" for k, value in arguments.untouched.items() if k != "table" and getattr(arguments, k) != value
        ]
        if given:
            raise ValueError(f"--table has its own counts and hardware: leave out {', '.join(given)}")
        print(json.dumps(_printed(arguments.table)) if arguments.json else _tables(arguments.table))
        return
    record = estimate(arguments)
    print(json.dumps(record) if arguments.json else _words(record))


def _printed(name: str) -> dict:
    names = tables.TABLES if name == "all" else [name]
    return {key: [cell.record() for cell in tables.TABLES[key].cells] for key in names}


def _tables(name: str) -> str:
    if name != "all":
        return tables.text(tables.TABLES[name])
    together = f"Together, rows that two papers share counted once: {tables.total(tables.distinct())}"
    return "\n\n".join([*map(tables.text, tables.TABLES.values()), together])


def estimate(arguments) -> dict:
    """The record of `cost` without --table: conditions, and the costs of the unpruned and the given prompt."""
    name, model = _named("model", arguments.model, MODELS)
    visual = _visual(arguments, model)
    gpu, hardware = ("cpu", probe()) if arguments.gpu == "cpu" else _named("gpu", arguments.gpu, GPUS)
    rules = {flag: getattr(arguments, flag) for flag in ("batch", "rev", "exact", "fused", "int4_peak")}
    rules["launch"] = arguments.launch / 1e6
    all_of_them, prepared = [model.vision.patches] * model.layers, _prepared(arguments.preprocess, name)

    def costs(counts: list[int]) -> dict:
        entering = [n + arguments.text for n in counts]
        seen = {
            "prefill": prefill(model, hardware, entering, arguments.bits, **rules),
            "decode": decode(model, hardware, [n + 1 for n in entering], arguments.bits, **rules),
        }
        if arguments.vision:
            seen["vision"] = tower(model, hardware, None, max(counts[0], 1), arguments.bits, **rules)
        passes = {key: cost.record() for key, cost in seen.items()}
        if prepared:
            passes["preprocess"] = {"seconds": prepared["seconds"]}
        parts = [part["seconds"] for key, part in passes.items() if key != "decode"]
        passes["first_token"] = {"seconds": sum(parts)}
        papers = {convention: flops(model, entering, convention) for convention in CONVENTIONS}
        return {"entering": entering, "flops": papers, **passes}

    return {
        **{"model": name, "gpu": gpu, "measured": gpu == "cpu", "bandwidth_gb": hardware.bandwidth},
        **{"fp32_t": hardware.fp32, "fp16_t": hardware.fp16, "int8_t": hardware.int8, "ridge": hardware.ridge},
        **{"bits": arguments.bits, "text": arguments.text, **rules, "ignored": IGNORED, "preprocess": prepared},
        **{"unpruned": costs(all_of_them), "given": costs(visual)},
    }


def _prepared(asked: str | None, name: str) -> dict | None:
    """Seconds from a file to a prompt: measured here, as they were given, or None where they were not asked for."""
    if asked is None:
        return None
    if asked == MEASURED:
        family = "llava-1.6-mistral" if "1.6" in name else "llava-1.5"
        return {"measured": True, **preprocess.quickly(family)}
    try:
        seconds = float(asked) / 1e3
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= 10:
        raise ValueError(f"--preprocess takes milliseconds from 0 to 10,000, or no number to measure, got {asked!r}")
    return {"measured": False, "seconds": seconds}


def _named(flag: str, name: str, known: dict):
    """The key and value that `name` means: case does not matter, nor whether a space or a hyphen stands in it."""
    slug = {key.lower().replace(" ", "-"): key for key in known}
    key = slug.get(name.lower().replace(" ", "-"))
    if key is None:
        more = " or cpu" if flag == "gpu" else ""
        raise ValueError(f"--{flag} must be one of {', '.join(known)}{more}, got {name!r}")
    return key, known[key]


def _visual(arguments, model: ModelSpec) -> list[int]:
    """Visual tokens entering each decoder layer, as --tokens or --layers say."""
    if arguments.text < 1:
        raise ValueError(f"--text must be at least 1, got {arguments.text}")
    if arguments.layers is None:
        tokens = model.vision.patches if arguments.tokens is None else arguments.tokens
        if tokens < 0:
            raise ValueError(f"--tokens must be at least 0, got {tokens}")
        return [tokens] * model.layers
    if arguments.tokens is not None:
        raise ValueError("--tokens and --layers say the same thing twice: give one of them")
    parts = [re.fullmatch(r"(\d{1,7})(?:x(\d{1,3}))?", part.strip()) for part in arguments.layers.split(",")]
    if None in parts:
        raise ValueError(f"--layers takes counts as 576x2,288x30, got {arguments.layers!r}")
    counts = [int(part[1]) for part in parts for _ in range(int(part[2] or 1))]
    if len(counts) != model.layers:
        raise ValueError(f"--layers gives {len(counts)} counts, {arguments.model} has {model.layers} layers")
    return counts


# ---- in words


ROWS = (  # label, pass, field, scale
    ("prefill FLOPs, T", "prefill", "flops", 1e12),
    ("prefill, ms", "prefill", "seconds", 1e-3),
    ("  no program beats, ms", "prefill", "floor", 1e-3),
    ("  bytes moved, GB", "prefill", "moved", 1e9),
    ("  activations written, GB", "prefill", "written", 1e9),
    ("  memory it needs, GB", "prefill", "footprint", 1e9),
    ("KV cache, MB", "prefill", "cache", 1e6),
    ("vision + projector, ms", "vision", "seconds", 1e-3),
    ("preprocessing, ms", "preprocess", "seconds", 1e-3),
    ("all before a token, ms", "first_token", "seconds", 1e-3),
    ("later token, ms", "decode", "seconds", 1e-3),
    ("  no program beats, ms", "decode", "floor", 1e-3),
)


LEFT_OUT = {"preprocess": "preprocessing", "vision": "vision tower and projector"}  # unless it was asked for


def _words(record: dict) -> str:
    sides = record["unpruned"], record["given"]
    rows = [("tokens a layer reads (mean)", *(sum(side["entering"]) / len(side["entering"]) for side in sides))]
    added = [key for key in LEFT_OUT if key in sides[0]]
    shown = [row for row in ROWS if row[1] in sides[0] and (added or row[1] != "first_token")]
    rows += [(label, *(side[key][name] / scale for side in sides)) for label, key, name, scale in shown]
    lines = [f"{'':28}{'unpruned':>12}{'given':>12}{'ratio':>9}"]
    lines += [f"{label:28}{full:12.4g}{given:12.4g}{full / given:8.2f}x" for label, full, given in rows]
    papers = ", ".join(f"{name} {value / 1e12:.4g} T" for name, value in record["given"]["flops"].items())
    ignored = "; ".join([record["ignored"], *(words for key, words in LEFT_OUT.items() if key not in added)])
    counted = f"FLOPs of the given prompt as papers count them: {papers}"
    return "\n".join([*_conditions(record), "", *lines, "", counted, f"Not in it: {ignored}."])


def _conditions(record: dict) -> list[str]:
    """What the numbers hold for: two lines, and one more where preprocessing is among them."""
    gpu, peaks = record["gpu"], {"FP32": record["fp32_t"], "FP16": record["fp16_t"], "INT8": record["int8_t"]}
    known = ", ".join(f"{name} {value:.4g} T" for name, value in peaks.items() if value)
    rules = "exact rules" if record["exact"] else f"LLM-Viewer's rules (rev={record['rev']})"
    rules += ", fused attention" * record["fused"]
    rules += f", at least {1e6 * record['launch']:g} us a kernel" if record["launch"] else ""
    rules += ", INT4 at the FP16 peak" if (record["bits"], record["int4_peak"]) == (4, "fp16") else ""
    if record["measured"]:
        source = "measured on this machine just now: best of a few products, FP16 is bfloat16"
    else:
        source = "LLM-Viewer's numbers" if gpu.startswith("viewer-") else "data sheet"
    return [
        f"{record['model']} on {gpu}, {record['bits']} bits, batch {record['batch']}, {record['text']} text tokens; "
        f"arithmetic by {rules}, no model was run",
        f"{gpu}: {record['bandwidth_gb']:.4g} GB/s, {known} ({source}); below {record['ridge']:.0f} tokens x batch an "
        "FP16 prefill is bound by reading weights",
        *_source(record["preprocess"]),
    ]


def _source(prepared: dict | None) -> list[str]:
    """Where the time of preprocessing comes from: the only one that is not arithmetic."""
    if prepared is None:
        return []
    return [f"preprocessing: {prepared['of'] if prepared['measured'] else 'as given, not measured here'}"]
