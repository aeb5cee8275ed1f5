"""What no browser sends, posted to every event of the page and every endpoint: a sentence, and the page goes on."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count, cycle, islice, repeat

import httpx
import pytest

from demo import page, server

API = "/gradio_api"
FLOOD = json.dumps("x" * 100_000)
WRONG = [
    "null",
    "{}",
    "[[1]]",
    "NaN",
    "1e308",
    "-1",
    "9" * 400,
    "true",
    '"\\ud800"',
    '{"path": "/etc/passwd"}',
    "1.5",
    FLOOD,
]
TOLD = '{"patches": %s, "index": %s, "name": %s, "key": %s, "value": %s}'  # what a script of the page tells an event
NOT = re.compile(
    r"Traceback|\.py\b|site-packages|pydantic|(Type|Key|Index|Attribute)Error|log has the cause|unexpected_err|x{999}"
)
SESSIONS = count()
ENDPOINTS = {"answer": ['"Full"', "null"], "preview": ['["Full"]', "9"], "compare": ['["Full"]', "9", "1"]}  # their own


@pytest.fixture(scope="module")
def running(llava, scenes):
    models = {"models": ("a", "b"), "load": lambda name, progress=None: llava}
    running = server.serve(page.build(llava, examples=scenes, time_limit=30, **models), quiet=True)
    yield running
    running.close()


@pytest.fixture(scope="module")
def door(running):
    with httpx.Client(base_url=running.url, timeout=60, headers={"content-type": "application/json"}) as client:
        yield client


@pytest.fixture(scope="module")
def config(door):
    return door.get("/config").json()


@pytest.fixture(scope="module")
def events(config):
    """Every event that the server answers."""
    return [it for it in config["dependencies"] if it["backend_fn"]]


@pytest.fixture(scope="module")
def held(config):
    """What the page sends of itself: the JSON text of every component's value, by its number. Few tokens are asked
    for."""
    few = {it["id"]: "2" for it in config["components"] if it["type"] == "slider" and it["props"]["minimum"] == 1}
    return {it["id"]: json.dumps(it["props"].get("value")) for it in config["components"]} | few


def posted(door, event: dict, inputs: str, told: str = "null") -> str:
    """What the page is answered, whichever way the event goes. Fails where that is a failure of the server's."""
    session, queued = f"posted{next(SESSIONS)}", event["queue"] is not False
    named = f'"fn_index": {event["id"]}, "session_hash": "{session}", "event_data": {told}'
    reply = door.post(f"{API}/{'queue/join' if queued else 'run/predict'}", content=f'{{"data": {inputs}, {named}}}')
    if queued and reply.status_code == 200:
        reply = door.get(f"{API}/queue/data?session_hash={session}")
    return fine(reply, event, inputs)


def called(door, event: dict, inputs: str) -> str:
    """What another program is answered by an endpoint."""
    call = f"{API}/call/{event['api_name']}"
    reply = door.post(call, content=f'{{"data": {inputs}}}')
    if reply.status_code == 200:
        reply = door.get(f"{call}/{reply.json()['event_id']}")
    return fine(reply, event, inputs)


def fine(reply: httpx.Response, event: dict, inputs: str) -> str:
    case, text = f"{event['api_name']} {inputs[:120]}", reply.text
    assert reply.status_code in (200, 400, 422), (case, reply.status_code, text[:300])
    if found := NOT.search(text):
        pytest.fail(f"{case}: {text[max(found.start() - 300, 0) : found.end() + 100]}")
    return text


def listed(inputs) -> str:
    return f"[{', '.join(inputs)}]"


def each_wrong(good: list[str]) -> list[str]:
    """The inputs with one of them wrong, another each time; too few, too many, none, and what is no list."""
    wrong = ([*good[:i], value, *good[i + 1 :]] for i, value in enumerate(islice(cycle(WRONG), len(good))))
    return [*map(listed, (*wrong, good[:-1], [*good, "1"], [])), "{}", "null", FLOOD]


def together(send, door, *asked):
    """Four at a time: most of it is waiting."""
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(partial(send, door), *asked))


def asks(event: dict) -> bool:
    """Whether an event of the page's asks the model."""
    return event["queue"] is not False and event["api_name"] not in ENDPOINTS


def works(door, events, held):
    """A proper run, as the browser asks for it."""
    run = next(event for event in events if asks(event))
    assert "Done" in posted(door, run, listed(held[block] for block in run["inputs"]))


def test_every_event_takes_anything(door, events, held):
    quick = [event for event in events if event["queue"] is False]
    assert len(quick) > 50
    for shift in (0, 5):  # all inputs of an event are the same wrong value, and so is what a script tells it
        values = list(islice(cycle(WRONG), shift, shift + len(quick)))
        data = [listed([value] * len(event["inputs"])) for event, value in zip(quick, values, strict=True)]
        together(posted, door, quick, data, [TOLD % ((value,) * 5) for value in values])
    together(posted, door, quick, repeat("[]"))
    works(door, events, held)


def test_every_field_that_the_model_is_asked_by_takes_anything(door, events, held):
    asking = {tuple(event["inputs"]): event for event in events if asks(event)}
    assert len(asking) == 3, "Run and its like, Sweep, another model"
    for event in asking.values():
        together(posted, door, repeat(event), each_wrong([held[block] for block in event["inputs"]]))
    works(door, events, held)


def test_every_argument_of_every_endpoint_takes_anything(door, events, held):
    image = next(value for value in held.values() if "gradio.FileData" in value)
    for event in (event for event in events if event["api_name"] in ENDPOINTS):
        good = [image, '"What?"', *ENDPOINTS[event["api_name"]], "2", "0", "0"]
        together(called, door, repeat(event), each_wrong(good))
    works(door, events, held)
