"""Memory that runs out, by a false allocator error wherever the model works: a sentence that says what to ask less of,
nothing kept, and the next answer as before."""

import gc
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import longtail
from longtail import OutOfMemory
from longtail.__main__ import main
from longtail.decoder import Decoder
from longtail.models import memory

sys.path.insert(0, str(Path(__file__).parents[1]))

from demo import board, host, run

ERRORS = {  # made anew each time: an error that was raised holds the frames it came through
    "gpu": lambda: torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of ..."
    ),
    "cpu": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried ..."
    ),
    "python": MemoryError,
    "cublas": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
}
PLACES = {
    "tower": ("in the vision tower", "a smaller image"),
    "method": ("in LongTail", "a smaller budget"),
    "prefill": ("while the prompt was read", "keep fewer visual tokens"),
    "decode": ("after 3 new tokens", "ask for fewer new tokens"),
}
OTHERS = [("decode", "cpu"), ("tower", "python"), ("prefill", "cublas")]


@pytest.fixture
def short(monkeypatch, llava):
    """Have memory run out at a place of the model."""

    def short_(place: str, error: Callable[[], Exception]):
        calls = []

        def fails(*arguments, **options):
            calls.append(torch.zeros(1000, 1000))  # what the frame of an allocator's error holds
            raise error()

        match place:
            case "tower":
                monkeypatch.setattr(llava, "encode", fails)
            case "method":
                monkeypatch.setattr(longtail.LongTail, "reduce", fails)
            case "prefill":
                monkeypatch.setattr("longtail.decoder.Decoder.prefill", fails)
            case "decode":
                step, steps = Decoder.step, []

                def third(self, token):
                    steps.append(token)
                    return fails() if len(steps) == 3 else step(self, token)

                monkeypatch.setattr("longtail.decoder.Decoder.step", third)

    return short_


def ask(llava, picture, **options):
    given = {"max_new_tokens": 6} | options
    return longtail.answer(llava, picture, "What is it?", longtail.LongTail(), **given)


def living() -> tuple[int, int]:
    """Tensors there are, and their bytes."""
    gc.collect()
    there = [it for it in gc.get_objects() if type(it) is torch.Tensor]
    return len(there), sum(it.numel() * it.element_size() for it in there)


@pytest.mark.parametrize(
    "place, kind",
    [(place, "gpu") for place in PLACES] + [("decode", "cpu"), ("tower", "python"), ("prefill", "cublas")],
)
def test_a_sentence_nothing_kept_and_the_next_one_works(short, llava, picture, monkeypatch, place, kind):
    before, held = ask(llava, picture), living()
    with monkeypatch.context():
        short(place, ERRORS[kind])
        with pytest.raises(OutOfMemory) as refusal:
            ask(llava, picture)
        monkeypatch.undo()
    where, remedy = PLACES[place]
    assert where in str(refusal.value) and remedy in str(refusal.value) and "\n" not in str(refusal.value)
    frames = [frame for frame in _frames(refusal.value) if "third" in frame or "fails" in frame]
    assert refusal.value.__cause__ is None and refusal.value.__context__ is None and not frames
    del refusal
    assert living()[1] <= held[1] * 1.01
    after = ask(llava, picture)
    assert after.token_ids == before.token_ids and torch.equal(after.first_logits, before.first_logits)


def _frames(error: Exception) -> list[str]:
    found, trace = [], error.__traceback__
    while trace:
        found.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    return found


def test_what_is_no_such_error_is_left_as_it_is(short, llava, picture):
    short("prefill", lambda: RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        ask(llava, picture)
    assert not memory.exhausted(ValueError("out of memory")) and memory.exhausted(MemoryError())


@pytest.mark.parametrize("place", PLACES)
def test_one_column_that_does_not_fit_leaves_the_others(short, llava, picture, monkeypatch, place):
    if place in ("prefill", "decode"):  # of every method: have it happen to the first only
        count = []
        inner = longtail.generate

        def first_only(*arguments, **options):
            count.append(1)
            if len(count) == 1:
                raise OutOfMemory("memory ran out while the prompt was read: keep fewer visual tokens")
            yield from inner(*arguments, **options)

        monkeypatch.setattr(board, "generate", first_only)
    else:
        short("method", ERRORS["gpu"])
    columns = {0: longtail.LongTail(), 1: longtail.LongTail() if place in ("prefill", "decode") else longtail.Full()}
    asked = board.Asked(picture, "What is it?", columns, 4, 0.0, 0, 60.0)
    shown = {}
    for parts in board.compare(None, llava, asked):
        shown |= parts
    refused = [shown[column, "refusal"] for column in columns if shown[column, "refusal"]]
    assert len(refused) == 1 and refused[0].startswith("Memory ran out")
    assert len(shown[board.RESULT].comparison.records) == 1


def test_in_a_preview_and_in_a_batch(short, llava, picture):
    short("prefill", ERRORS["gpu"])
    *_, last = longtail.preview(llava, picture, "What?", [longtail.Full(), longtail.LongTail()], 3)
    assert all("while the prompt was read" in said for said in last)
    short("tower", ERRORS["cpu"])
    with pytest.raises(OutOfMemory, match="vision tower"):
        longtail.compare(llava, picture, "What?", [longtail.Full()])


def test_on_the_command_line(short, folder, picture, tmp_path, capsys, monkeypatch):
    def fails(*arguments):
        raise ERRORS["cpu"]()

    monkeypatch.setattr("longtail.decoder.Decoder.prefill", fails)
    picture.save(tmp_path / "it.png")
    assert main(["answer", str(tmp_path / "it.png"), "What?", "--model", str(folder)]) == 1
    out, err = capsys.readouterr()
    assert not out and err.startswith("longtail: memory ran out while the prompt was read") and err.count("\n") == 1


def test_the_page_says_it_in_one_sentence():
    sentence = "memory ran out in ToMe: give it a smaller budget, or take another method"
    assert run.sentence(OutOfMemory(sentence)) == f"M{sentence[1:]}."
    assert run.sentence(ERRORS["gpu"]()).startswith("Memory ran out: take a smaller image")
    assert {run.cause_of(error()) for error in ERRORS.values()} == {"memory"}
    assert run.cause_of(RuntimeError("no")) == "failed" and run.cause_of(ValueError("no")) == "refused"


def test_what_was_seen_is_kept_for_the_newest_results_alone():
    hosted = host.Host(None)
    results = [{0: object()} for _ in range(host.FOLLOWED + 3)]
    for answers in results:
        hosted.keep(answers)
        hosted.keep(answers)
    assert [len(answers) for answers in results] == [0] * 3 + [1] * host.FOLLOWED
