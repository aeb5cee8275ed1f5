"""Strangers before the page: short forms of the trials that `make soak` runs whole. No time is asserted here."""

import threading

import pytest
from trials import errands
from trials.hanging import hanging, late
from trials.memory import command_line, memory
from trials.mixed import mixed
from trials.queueing import queue
from trials.stand import Stand, stand
from trials.stopping import leave, stop, twice
from trials.visiting import isolation
from trials.watch import Census, Door

from demo import board, host, line


@pytest.fixture(scope="module")
def here(llava):
    with pytest.MonkeyPatch.context() as patch, stand(llava) as it:
        patch.setattr(host, "FOLLOWED", 1)  # what is kept for follow-ups is there sooner
        patch.setattr(errands, "NEW", 3)
        yield it


def fine(figures: list):
    """Nothing was missed, times and sizes left out: this machine may be busy."""
    missed = [f"{it.name}: {it.figure} (limit {it.limit})" for it in figures if it.ok is False and not it.timed]
    assert figures and not missed, "\n".join(missed)


def test_nobody_has_the_answer_of_another(here: Stand):
    fine(isolation(here, callers=6, tabs=0, runs=1))


def test_a_full_line_says_so_and_a_place_that_was_left_is_free(here: Stand):
    fine(queue(here, most=1, beyond=2))


def test_stop_at_any_moment_leaves_nothing_behind(here: Stand):
    fine(stop(here, times=4))


def test_a_second_press_is_harmless(here: Stand):
    fine(twice(here, times=2))


def test_a_closed_tab_leaves_nothing_behind(here: Stand):
    fine(leave(here, times=3))


def test_a_run_past_its_limit_ends_as_that(llava):
    with stand(llava, 0.5) as hasty:
        fine(late(hasty, ("answer", "run")))


def test_a_worker_that_hangs_is_told(here: Stand, monkeypatch):
    monkeypatch.setattr(line, "GRACE", 1.5 - here.time_limit)  # silence of that many seconds is too long
    fine(hanging(here))


@pytest.mark.parametrize(
    "how, error, places",
    [
        ("run", "cuda", ("tower", "method", "prefill", "decode")),
        ("answer", "cpu", ("prefill",)),
        ("preview", "python", ("tower",)),
    ],
)
def test_memory_that_runs_out_is_a_sentence(here: Stand, how, error, places):
    fine(memory(here, (how,), places, (error,)))


def test_memory_that_runs_out_on_the_command_line(here: Stand):
    fine(command_line(here, ("decode",), ("cpu",)))


def test_anything_after_anything(here: Stand):
    fine(mixed(here, runs=8))


# ---- what watches can fail


def test_two_in_the_model_are_counted(llava, picture):
    with Door(llava) as door:
        first = board.generate(llava, picture, "What is it?", max_new_tokens=4)
        next(first)
        other = threading.Thread(target=lambda: list(board.generate(llava, picture, "And now?", max_new_tokens=2)))
        other.start()
        other.join()
        first.close()
    assert door.most == 2 and not door.inside


def test_what_is_left_behind_is_counted(llava, picture):
    before = Census.of(llava)
    begun = board.generate(llava, picture, "What is it?", max_new_tokens=4)
    hook = llava.model.register_forward_hook(lambda *asked: None)
    kept = next(begun)
    left = Census.of(llava).beyond(before)
    assert left["generators"] >= 1 and left["hooks"] == 1 and left["answers"] == 1 and left["tensor_bytes"] > 0
    hook.remove()
    begun.close()
    del kept, begun
    assert max(Census.of(llava).beyond(before).values()) <= 0
