"""`bench gpu`: every goal that needs a GPU, one after another: LLaVA-1.5-7B at full size, random weights.

Each part is a benchmark of its own, run by its own plan; this file only says which, and lays the goals side by side.
"""

import torch

from . import decode, goals, prefill, preprocess, preview, race, selectors
from .goals import Goal
from .prefill import AIMED
from .record import add_flags as output_flags
from .record import checked, conditions, deliver, machine, write

NEEDS = "bench gpu needs a CUDA device, and there is none here: run it where one is"
QUANTIZED = "int8", "int4"
SAID = {"prefill": prefill.words, "decode": decode.words, "selectors": race.words, "preprocess": preprocess.words}
SAID |= {"preview": preview.words}


def add_flags(command):
    """The flags of `bench gpu`."""
    command.add_argument("--random", default="llava-1.5-7b", metavar="NAME", help="architecture (%(default)s)")
    command.add_argument("--device", default="cuda", help="cuda or cuda:N")
    command.add_argument("--seed", type=int, default=0, help="of weights and features (%(default)s)")
    output_flags(command)


def parts(random: str, device: str, seed: int) -> dict:
    """What is run, by name: each a call without arguments that returns a record."""

    def read(quantization: str, **more) -> dict:
        plan = {"random": random, "device": device, "seed": seed, "quantization": quantization} | more
        return prefill.measure(prefill.Plan(**plan).settled())

    def grow(quantization: str) -> dict:
        plan = decode.Plan(random, device=device, seed=seed, quantization=quantization)
        return decode.measure(plan.settled())

    chosen = race.Conditions(device=device, seed=seed, threads=torch.get_num_threads())
    found = {
        "prefill": lambda: read("none"),
        "decode": lambda: grow("none"),
        "selectors": lambda: {"bench": "selectors", **race.measure(chosen, selectors.selectors)},
        "preprocess": lambda: preprocess.measure(preprocess.Plan(device=device, seed=seed).settled()),
        "preview": lambda: preview.measure(preview.Plan(random, device=device, threads=0).settled()),
    }
    for kind in QUANTIZED:  # bitsandbytes asks the host: never captured
        found[f"prefill {kind}"] = lambda kind=kind: read(kind, batch="1", graph=False, repeat=10)
        found[f"decode {kind}"] = lambda kind=kind: grow(kind)
    return found


def run(name: str, part) -> dict:
    """A part's record, or the reason why there is none: the others go on."""
    try:
        return part()
    except (ValueError, RuntimeError) as error:  # no bitsandbytes; out of memory, or a capture that CUDA refuses
        torch.cuda.empty_cache()
        return {"bench": name, "reason": " ".join(str(error).split()), "goals": [], "rows": [], "failures": []}


def aims(found: dict[str, dict]) -> list[dict]:
    """The goals of the parts that need a GPU, and what the quantised models took."""
    listed = [goal for name in SAID for goal in found[name]["goals"] if "CPU" not in goal["what"]]
    listed += [
        Goal(f"{name}: run", None, reason=f"not run: {part['reason']}").record()
        for name, part in found.items()
        if "reason" in part
    ]
    for kind in QUANTIZED:
        dense = {r["visual"]: r for r in found[f"prefill {kind}"]["rows"] if not r["what"]}
        if dense:
            line = dense[AIMED]
            listed.append(Goal(f"{kind}: prefill at {AIMED}", line["ms"], unit=" ms").record())
            listed.append(Goal(f"{kind}: speed-up over 576", line["ratio"], unit=" x").record())
        for line in found[f"decode {kind}"]["rows"]:
            if line["method"] == "LongTail":
                listed.append(Goal(f"{kind}: a later token, {line['mode']}", line["ms"], unit=" ms").record())
    return listed


def command(arguments):
    """`bench gpu`: each part's tables as it ends, then goal, measured, verdict. Raises ValueError without a GPU."""
    checked(arguments.out)
    if not torch.cuda.is_available():
        raise ValueError(NEEDS)
    found, under = {}, conditions(arguments.device)
    under |= {"model": arguments.random, "dtype": "bfloat16", "seed": arguments.seed}
    record = {"bench": "gpu", "conditions": under, "parts": found}
    for name, part in parts(arguments.random, arguments.device, arguments.seed).items():
        found[name] = run(name, part)
        write(record, arguments.out)
        if not arguments.json:
            told = found[name].get("reason") or SAID[name.split()[0]](found[name])
            print(f"---- {name}\n\n{told}\n", flush=True)
    record["goals"] = aims(found)
    record["failures"] = [f"{name}: {why}" for name, part in found.items() for why in part.get("failures", [])]
    deliver(
        record, f"{goals.words(record['goals'])}\n\n{machine(under)}, {arguments.random}, random weights", arguments
    )
