"""The kinds of `bench`: what each is for, its flags, what it runs."""

from collections.abc import Callable

from . import compare, decode, figure, goals, gpu, model, prefill, preprocess, preview, race, selectors


def add_to(kinds, model_flags: Callable, load: Callable):
    """Add every kind; `model_flags` adds the flags of a model to a parser, `load` loads what they name."""

    def add(name: str, help: str, flags: Callable, run: Callable):
        kind = kinds.add_parser(name, help=help)
        flags(kind)
        kind.set_defaults(run=run)
        return kind

    add("prefill", "reading a prompt, by visual tokens: measured, floor, FLOPs", prefill.add_flags, prefill.command)
    add("decode", "a later token while the answer grows: slope, floor, KV bytes", decode.add_flags, decode.command)
    add(
        "selectors",
        "our selector, and each paper's: ours against its released form",
        race.add_flags,
        lambda arguments: race.command("selectors", selectors.selectors, arguments),
    )
    kind = add(
        "compare",
        "end to end: methods by budgets on one image, every stage",
        compare.add_flags,
        lambda arguments: compare.command(lambda: load(arguments), arguments),
    )
    model_flags(kind)
    add(
        "model", "every method through the whole engine at full size, on random weights", model.add_flags, model.command
    )
    add("preview", "several methods decoded together, against one and all in turn", preview.add_flags, preview.command)
    add(
        "preprocess",
        "from a file to a prompt: ours, exact and fast, beside transformers",
        preprocess.add_flags,
        preprocess.command,
    )
    add("gpu", "every goal that needs a GPU, one after another", gpu.add_flags, gpu.command)
    add("goals", "what is aimed at, and what the records that are kept measured", goals.add_flags, goals.command)
    add("figure", "the figure of a record of bench prefill", figure.add_flags, figure.command)
