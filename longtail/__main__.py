"""The command line: python -m longtail answer | compare | sweep | methods | models | bench | parity | ... (--help)."""

import argparse
import json
import sys
from collections import deque

from transformers.utils.logging import disable_progress_bar

from . import OutOfMemory, batch, estimate, evaluate, load, make, open_image, parity, sweep
from . import __doc__ as sentence
from .bench import commands as bench
from .export import in_a_row, measure, write
from .models import listing
from .models.catalogue import KNOWN
from .models.loading import OneLine
from .reducer import REDUCERS, parse
from .tiny import cli as tiny_cli

EPILOG = "Exit status: 0 fine, 2 what was given is wrong (one line says what), 1 anything else."
PREVIEW = (
    "Decoded together, each answer waiting for the others: none of their times would be a latency, so none is given. "
    "Leave out --preview to measure them one by one."
)
SHARED = ("seed",)  # a flag of every run that a method's parameter of the same name takes as well


class Parser(argparse.ArgumentParser):
    """argparse, but what is wrong becomes one line, and flags are never guessed from their beginnings."""

    def __init__(self, *args, **options):
        super().__init__(*args, allow_abbrev=False, epilog=EPILOG, **options)

    def error(self, message):
        raise ValueError(f"{message} (see {self.prog} --help)")


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if not sys.stderr.isatty():
        disable_progress_bar()  # in a script, stderr is for what went wrong
    try:
        arguments = parser(argv).parse_args(argv)
        arguments.run(arguments)
    except (ValueError, OSError) as error:
        print(f"longtail: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except OutOfMemory as error:
        print(f"longtail: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("longtail: interrupted", file=sys.stderr)
        return 1
    return 0


def parser(argv: list[str]) -> Parser:
    """Every command; `answer` also has the parameters of the method that `argv` names."""
    top = Parser(prog="python -m longtail", description=sentence)
    commands = top.add_subparsers(dest="command", required=True, parser_class=Parser)
    _add_answer(commands, argv)
    _add_compare(commands)
    _add_sweep(commands)
    _add_methods(commands)
    _add_models(commands)
    _add_bench(commands)
    _add_parity(commands)
    _add_evaluate(commands)
    _add_cost(commands)
    tiny_cli.add_to(commands)
    return top


# ---- answer


def _add_answer(commands, argv):
    command = commands.add_parser("answer", help="one answer to one question about one image")
    _run_flags(command)
    command.add_argument("--method", default="LongTail", help=f"one of {', '.join(REDUCERS)}")
    if argv[:1] != ["answer"]:
        return
    finder = Parser(add_help=False)
    finder.add_argument("--method", default="LongTail")
    method = finder.parse_known_args(argv)[0].method
    parameters = command.add_argument_group(f"parameters of {method}")
    for field in make(method).parameters():
        if field.name not in SHARED:
            action = {"action": argparse.BooleanOptionalAction} if field.kind is bool else {"type": field.kind}
            help = field.help + (f" ({', '.join(field.choices)})" if field.choices else "")
            parameters.add_argument(_flag(field.name), default=argparse.SUPPRESS, help=help, **action)
    command.set_defaults(run=answer)


def answer(arguments):
    """`answer`: words to stdout, or the whole record; with follow-ups, one after another, or a list of records."""
    names = {field.name for field in make(arguments.method).parameters()}
    reducer = make(arguments.method, **{name: value for name, value in vars(arguments).items() if name in names})
    llava, questions = _load(arguments), (arguments.question, *arguments.then)
    image = llava.open(arguments.image)
    records = [said.record() for said in in_a_row(llava, image, questions, reducer, **_options(arguments))]
    if arguments.json:
        print(json.dumps(records if arguments.then else records[0]))
        return
    alone = f"  asked on its own: {llava.name} was trained on one question a prompt\n" * llava.single_turn
    heads = ["", *(f"> {question}\n{alone}" for question in arguments.then)]
    print("\n\n".join(f"{head}{r['answer']}\n\n{_line(r)}" for head, r in zip(heads, records, strict=True)))


# ---- compare


def _add_compare(commands):
    command = commands.add_parser("compare", help="several methods side by side")
    _run_flags(command)
    command.add_argument("--methods", default="Full,LongTail,Random", help="names, comma between")
    command.add_argument("--budget", type=int, help="the same number of visual tokens, of each view, for all but Full")
    command.add_argument(
        "--set", action="append", default=[], metavar="METHOD.NAME=VALUE", help="a parameter of a method"
    )
    command.add_argument(
        "--repeat", type=int, default=1, help="rounds, in rotated order; seconds are medians over them"
    )
    command.add_argument(
        "--preview", action="store_true", help="all methods decoded together: words and counts sooner, and no times"
    )
    command.add_argument("--out", help="write the comparison to a .json, .csv or .html file")
    command.set_defaults(run=lambda arguments: preview(arguments) if arguments.preview else compare(arguments))


def compare(arguments):
    """`compare`: each method's words and numbers, or the records; with follow-ups, those of the last."""
    reducers = _reducers(arguments.methods, arguments.budget, arguments.set)
    open_image(arguments.image)  # refused before a model is loaded
    asked, options = (arguments.image, arguments.question, reducers), _options(arguments)
    comparison = measure(_load(arguments), *asked, repeat=arguments.repeat, then=arguments.then, **options)
    if arguments.out:
        write(comparison, arguments.out)
    if arguments.json:
        print(json.dumps(comparison.record()))
    else:
        print("\n\n".join(f"{r['method']}: {r['answer']}\n{_line(r)}" for r in comparison.records))
        print(f"\n{comparison.conditions}")


def preview(arguments):
    """`compare --preview`: words and counts of all methods, decoded together, or why one cannot run; and no times."""
    if arguments.then or arguments.out or arguments.repeat != 1:
        raise ValueError("--preview asks one question once and times nothing: leave out --then, --out and --repeat")
    reducers, llava = _reducers(arguments.methods, arguments.budget, arguments.set), _load(arguments)
    asked = arguments.image, arguments.question, reducers
    said = deque(batch.preview(llava, *asked, **_options(arguments)), maxlen=1)[0]
    if arguments.json:
        answers = [
            {"method": type(reducer).__name__, "reason": one} if isinstance(one, str) else one.record()
            for reducer, one in zip(reducers, said, strict=True)
        ]
        print(json.dumps({"conditions": PREVIEW, "answers": answers}))
        return
    for reducer, one in zip(reducers, said, strict=True):
        words = f"cannot run: {one}" if isinstance(one, str) else f"{one.text}\n{_line(one.record())}"
        print(f"{type(reducer).__name__}: {words}\n")
    print(PREVIEW)


def _reducers(names: str, budget: int | None, settings: list[str]):
    """The reducers that names, an equal budget and METHOD.NAME=VALUE settings ask for."""
    given = {name.strip(): name.strip() for name in names.split(",") if name.strip()}
    if not given:
        raise ValueError(f"--methods names no method: choose from {', '.join(REDUCERS)}")
    for setting in settings:
        left, _, value = setting.partition("=")
        method, _, name = left.partition(".")
        if not name or not value or method not in given:
            raise ValueError(f"--set takes METHOD.NAME=VALUE with a method of --methods, got {setting!r}")
        given[method] += f":{name}={value}"
    if budget is not None and not 1 <= budget <= 576:
        raise ValueError(f"--budget must be between 1 and 576, got {budget}")
    return [parse(text, budget) for text in given.values()]


# ---- sweep


def _add_sweep(commands):
    command = commands.add_parser("sweep", help="a parameter over a range of values, beside the unpruned model")
    sweep.add_flags(command)
    _model_flags(command)
    command.set_defaults(run=lambda arguments: sweep.command(lambda: _load(arguments), arguments))


# ---- methods


def _add_methods(commands):
    command = commands.add_parser("methods", help="every method: what it does, where it acts, its parameters")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.add_argument("--markdown", action="store_true", help="print the table of the README")
    command.set_defaults(run=methods)


def methods(arguments):
    """`methods`: the registry."""
    rows = [reducer.describe() for reducer in REDUCERS.values()]
    if arguments.json:
        print(json.dumps(rows))
    elif arguments.markdown:
        print(_markdown(rows))
    else:
        _print(rows)


def _markdown(rows: list[dict]) -> str:
    lines = ["| method | what it does | acts at | parameters |", "|---|---|---|---|"]
    for row in rows:
        parameters = ", ".join(f"`{p['name']}` {p['default']}" for p in row["parameters"]) or "none"
        acts = ", ".join(row["acts"]) or "no moment"
        lines.append(f"| [{row['name']}]({row['paper']}) | {row['sentence']} | {acts} | {parameters} |")
    return "\n".join(lines)


def _print(rows: list[dict]):
    for row in rows:
        print(f"{row['name']}: {row['sentence']}\n  acts at {', '.join(row['acts']) or 'no moment'}; {row['paper']}")
        for p in row["parameters"]:
            print(f"  {_flag(p['name'])} {p['default']}  ({_span(p)}) {p['help']}")
        print()


def _span(parameter: dict) -> str:
    """What a parameter may be."""
    if parameter["choices"]:
        return " | ".join(parameter["choices"])
    words = {"bool": "yes or no", "str": "text"}
    return words.get(parameter["kind"]) or f"{parameter['low']:g} to {parameter['high']:g}"


# ---- models


def _add_models(commands):
    command = commands.add_parser("models", help="what can be loaded by name: parameters, memory, views, CLIP partner")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(run=listing.command)


# ---- bench


def _add_bench(commands):
    command = commands.add_parser("bench", help="measured time, the arithmetic beside it")
    kinds = command.add_subparsers(dest="kind", required=True, parser_class=Parser)
    bench.add_to(kinds, _model_flags, _load)


# ---- parity


def _add_parity(commands):
    command = commands.add_parser("parity", help="this engine beside stock transformers, on random checkpoints")
    parity.add_flags(command)
    command.set_defaults(run=parity.command)


# ---- evaluate


def _add_evaluate(commands):
    command = commands.add_parser("evaluate", help="accuracy per family, method and budget on held-out scenes")
    evaluate.add_flags(command)
    _model_flags(command)
    command.set_defaults(run=lambda arguments: evaluate.command(_load(arguments), arguments, _place(arguments)))


# ---- cost


def _add_cost(commands):
    command = commands.add_parser("cost", help="FLOPs, bytes, roofline times: arithmetic, no model")
    estimate.add_flags(command)
    command.set_defaults(run=estimate.command)


# ---- shared by the commands


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _run_flags(command):
    command.add_argument("image", help="path of a PNG, JPEG, WEBP, GIF or BMP file")
    command.add_argument("question")
    command.add_argument("--preface", default="", help="text before the image")
    command.add_argument(
        "--then", action="append", default=[], metavar="QUESTION", help="a follow-up on the same image; may be repeated"
    )
    command.add_argument("--max-new-tokens", type=int, default=128)
    command.add_argument("--temperature", type=float, default=0.0, help="0: greedy")
    command.add_argument("--top-p", type=float, default=1.0)
    command.add_argument("--seed", type=int, default=0, help="of sampling, and of methods that draw")
    command.add_argument("--time-limit", type=float, help="seconds that an answer may take")
    command.add_argument("--eager", action="store_true", help="launch op by op, replay no CUDA graph")
    command.add_argument("--json", action="store_true", help="print JSON")
    _model_flags(command)


def _model_flags(command):
    command.add_argument("--model", default="tiny", help=f"{', '.join(KNOWN)}, a hub id or a folder")
    command.add_argument("--revision", help="branch, tag or commit of a hub id")
    command.add_argument("--adapter", help="a LoRA adapter for it: hub id or folder")
    command.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    command.add_argument("--quantization", default="none", help="none, int8 or int4")
    command.add_argument(
        "--double-quantization", action=argparse.BooleanOptionalAction, default=True, help="int4's own scales too"
    )
    command.add_argument("--attention", default="sdpa", help="sdpa or flash_attention_2")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    command.add_argument(
        "--pixels", default="exact", help="exact: as transformers makes them; fast: a few grey levels off"
    )


def _place(arguments) -> dict:
    """What `load` takes, from the flags above."""
    names = ("revision", "adapter", "dtype", "quantization", "double_quantization", "attention", "device", "pixels")
    return {"name": arguments.model} | {name: getattr(arguments, name) for name in names}


def _load(arguments):
    """The model; a terminal is told how far it is, and what it takes."""
    if not sys.stderr.isatty():
        return load(**_place(arguments))
    told = OneLine(arguments.model, sys.stderr)
    llava = load(**_place(arguments), progress=told)
    told.ended(llava.loaded.line())
    return llava


def _options(arguments) -> dict:
    names = ("preface", "max_new_tokens", "temperature", "top_p", "seed", "time_limit", "eager")
    return {name: getattr(arguments, name) for name in names}


def _line(record: dict) -> str:
    """Counts and times of one record, with their conditions; no times of one that was decoded beside others."""
    tokens = record["tokens"]
    ms = {name: f"{1000 * value:.1f} ms" for name, value in record["seconds"].items()}
    ms |= {name: "reused" for name in record["reused"]}
    knees = [str(curve["knee"]) for curve in (record["curve"], *record["tile_curves"]) if curve]
    fast = f", {record['pixels']} pixels" * (record["pixels"] != "exact")
    knee = f", knee i* = {', '.join(knees)}" if knees else ""
    newlines = f" and {tokens['newlines']} newlines" if tokens["newlines"] else ""
    times = (
        f"  first token {ms['first_token']} = preprocess {ms['preprocess']} + vision {ms['vision']} + method "
        f"{ms['method']} + prefill {ms['prefill']}; later tokens {ms['per_token']} each\n"
    )
    return (
        f"  {tokens['visual']} of {tokens['patches']} visual tokens{newlines}{knee}; prompt {tokens['prompt']}, "
        f"generated {tokens['generated']}, KV entries {tokens['kv_entries']:g} ({tokens['kv_bytes'] / 2**20:.2f} MiB)\n"
        f"{'' if record.get('shared') else times}"
        f"  ended by {record['finished']}; {record['model']}, {record['dtype']}{fast}, {record['device']}, "
        f"{', '.join(record['graphs']) or 'nothing'} as CUDA graphs"
    )


if __name__ == "__main__":
    sys.exit(main())
