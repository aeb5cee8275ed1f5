"""The line for the model: order, places and waits, who is refused, who is stopped, and a worker that went silent."""

import asyncio
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
from gradio.context import LocalContext

sys.path.insert(0, str(Path(__file__).parents[1]))

from browsing import working

from demo import line as lines
from demo import run
from demo.line import Busy, Line, Place


async def all_of(event):
    return [item async for item in event]


def held(line: Line, kind: str = "run"):
    """An event that has the model until `go` is set; what it was told."""
    go, began = threading.Event(), threading.Event()

    def produce(stop):
        began.set()
        while not go.wait(0.005) and not stop.is_set():
            pass
        yield {"done": kind}

    job = run.Job(kind, line, 60.0, lambda *end: line_told.append(end))
    line_told = []
    return SimpleNamespace(
        event=lambda: run.attended(job, produce), go=go, began=began, told=line_told, produce=produce, job=job
    )


def test_first_come_first_served_and_never_two_at_once():
    line, inside, most, order = Line(), [], [], []

    def produce(stop, i):
        inside.append(i)
        most.append(len(inside))
        order.append(i)
        yield {"i": i}
        inside.remove(i)

    async def many():
        events = [run.streamed(produce, dict, run.Job("run", line))(i) for i in range(20)]
        return await asyncio.gather(*(all_of(event) for event in events))

    shown = asyncio.run(many())
    assert [items[-1] for items in shown] == [{"i": i} for i in range(20)]
    assert max(most) == 1 and order == list(range(20)) and not line.busy and not working()


def test_one_who_waits_is_told_place_and_time(monkeypatch):
    monkeypatch.setattr(lines, "BEAT", 0.01)
    line = Line()
    first, second, third = (held(line) for _ in range(3))

    async def three():
        events = [asyncio.create_task(all_of(it.event())) for it in (first, second, third)]
        await asyncio.sleep(0.05)
        assert (line.busy, line.waiting) == (True, 2)
        for it in (first, second, third):
            it.go.set()
        return await asyncio.gather(*events)

    one, two, three = asyncio.run(three())
    places = [[item for item in items if isinstance(item, Place)] for items in (one, two, three)]
    assert not places[0] and {place.ahead for place in places[1]} == {1} and places[2][0].ahead == 2
    assert places[2][0].wait == "at most 2 min" and not places[2][0].known, "nothing has ended: what is allowed"
    assert [items[-1] for items in (one, two, three)] == [{"done": "run"}] * 3
    shown = run.in_line(places[2][0])[run.MESSAGE]
    assert "2" in shown and "at most" in shown


def test_the_wait_is_reckoned_by_what_was_seen():
    line = Line()
    line._past.extend([("run", 10.0), ("run", 30.0), ("run", 20.0), ("sweep", 100.0)])

    async def stand():
        turns = [line.join(kind, 60) for kind in ("run", "sweep", "answer")]
        place = await anext(line.places(turns[2]))
        for turn in turns:
            line.leave(turn)
        return place

    place = asyncio.run(stand())
    assert place.ahead == 2 and place.known and 119 < place.seconds <= 120 and place.wait == "about 2 min"


def test_a_full_line_tells_position_and_wait():
    line = Line(2)

    async def stand():
        turns = [line.join("run", 40) for _ in range(3)]
        with pytest.raises(Busy, match=r"number 3 in it, with at most 2 min"):
            line.join("run", 40)
        line.leave(turns[1])
        turns.append(line.join("run", 40))
        return turns

    turns = asyncio.run(stand())
    assert (line.waiting, turns[0].began is not None, turns[2].began) == (2, True, None)


def test_what_refuses_at_the_door_is_told(monkeypatch):
    line, told = Line(1), []
    first, second = held(line), held(line)
    job = run.Job("run", line, told=lambda *end: told.append(end))

    async def crowd():
        events = [asyncio.create_task(all_of(it.event())) for it in (first, second)]
        while not line.waiting:
            await asyncio.sleep(0.005)
        late = await all_of(run.streamed(lambda stop: iter(()), dict, job)())
        first.go.set(), second.go.set()
        await asyncio.gather(*events)
        return late

    (late,) = asyncio.run(crowd())
    assert "The line for the model is full: you would be number 2 in it" in late[run.TROUBLE]
    assert told == [("run", "busy", 0.0, 0.0, ())]
    ((kind, cause, _, worked, _),) = second.told
    assert (kind, cause) == ("run", "done") and worked > 0


@pytest.mark.parametrize("how", ["leaves", "stops"])
def test_whoever_leaves_the_line_frees_the_place(how):
    line = Line()
    first, second, third = (held(line) for _ in range(3))

    async def as_(name, it):
        LocalContext.request.set(gr.Request(session_hash=name))
        return await all_of(it.event())

    async def press(name):
        LocalContext.request.set(gr.Request(session_hash=name))
        await line.halt("run")

    async def come_and_go():
        a, b, c = (asyncio.create_task(as_(n, it)) for n, it in zip("abc", (first, second, third), strict=True))
        while line.waiting < 2:
            await asyncio.sleep(0.005)
        if how == "leaves":
            b.cancel()
        else:
            await asyncio.create_task(press("b"))
        await asyncio.gather(b, return_exceptions=True)
        assert line.waiting == 1 and not second.began.is_set()
        first.go.set(), third.go.set()
        return await asyncio.gather(a, c)

    assert [items[-1] for items in asyncio.run(come_and_go())] == [{"done": "run"}] * 2
    assert [end[1] for end in second.told] == ["left" if how == "leaves" else "stopped"] and not line.busy


def test_a_worker_that_is_not_heard_of_is_reported_and_nobody_waits_for_it(monkeypatch):
    monkeypatch.setattr(lines, "BEAT", 0.02)
    monkeypatch.setattr(run, "BEAT", 0.02)
    monkeypatch.setattr(lines, "GRACE", 0.1)
    line, wake = Line(), threading.Event()

    def hangs(stop):
        yield {"n": 1}
        wake.wait(20)

    def job(patience):
        return run.Job("run", line, patience)

    async def visit():
        stuck = asyncio.create_task(all_of(run.streamed(hangs, dict, job(0.0))()))
        await asyncio.sleep(0.02)
        waits = asyncio.create_task(all_of(run.streamed(lambda stop: iter(()), dict, job(60.0))()))
        while not line.stuck():
            await asyncio.sleep(0.01)
        late = await all_of(run.streamed(lambda stop: iter(()), dict, job(60.0))())
        waited = await waits
        wake.set()
        return await stuck, waited, late

    stuck, waited, late = asyncio.run(visit())
    for shown in (stuck, waited, late):
        assert "has not been heard of" in shown[-1][run.TROUBLE]
    assert not line.stuck() and not line.busy, "it came back"


def test_one_that_asks_whether_to_stop_is_alive(monkeypatch):
    monkeypatch.setattr(lines, "GRACE", 0.2)
    line, heard = Line(), []

    def slow(stop):
        for _ in range(40):
            assert not stop.is_set()
            heard.append(line.stuck())
            threading.Event().wait(0.01)
        yield {"n": 1}

    assert asyncio.run(all_of(run.streamed(slow, dict, run.Job("run", line, 0.0))()))[-1] == {"n": 1}
    assert set(heard) == {""}


def test_a_closed_line_takes_nobody_and_lets_the_running_one_end():
    line = Line()
    first, second = held(line), held(line)

    async def close():
        one, two = (asyncio.create_task(all_of(it.event())) for it in (first, second))
        while not line.waiting:
            await asyncio.sleep(0.005)
        line.close()
        with pytest.raises(run.Refused, match="shutting down"):
            await two
        with pytest.raises(run.Refused, match="shutting down"):
            await all_of(held(line).event())
        assert line.busy and not line.drained(0.05)
        first.go.set()
        return await one

    assert asyncio.run(close())[-1] == {"done": "run"} and line.drained(1)


def test_closing_can_stop_the_running_one():
    line = Line()
    first = held(line)

    async def close():
        one = asyncio.create_task(all_of(first.event()))
        while not first.began.is_set():
            await asyncio.sleep(0.005)
        line.close()
        line.stop()
        return await one

    with pytest.raises(run.Refused, match="shutting down"):
        asyncio.run(close())
    assert first.told[0][1] == "stopped" and not line.busy
