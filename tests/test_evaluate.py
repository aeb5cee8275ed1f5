"""The evaluation: survives being killed, forgets what is stale, says how sure it is, and draws what it found."""

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

import longtail
from longtail import REDUCERS, Reduced, Reducer, pareto, results
from longtail.__main__ import main
from longtail.evaluate import evaluate, grid
from longtail.examine import Cell, Log, fingerprint, in_processes
from longtail.results import Said
from longtail.tiny.questions import Question
from longtail.tiny.scenes import questions, scene

ROOT = Path(__file__).parents[1]
RESULTS, FIGURE = ROOT / "assets" / "tiny" / "results.json", ROOT / "assets" / "readme" / "accuracy.svg"
SEEDS = range(1010000, 1010002)
CELLS = grid("Full,Random,Oracle", "9,4")
FAMILIES = ("exist", "color", "count", "background")


@pytest.fixture
def refuser():
    """A registered method that cannot run at a budget of 4."""

    @dataclass(frozen=True)
    class Refuser(Reducer):
        """Refuses."""

        budget: int = longtail.param(9, 1, 36, 1, "kept")

        def reduce(self, visual):
            if self.budget == 4:
                raise ValueError("four is not mine")
            return Reduced.select(visual, torch.arange(self.budget))

    REDUCERS["Refuser"] = Refuser
    yield Refuser
    del REDUCERS["Refuser"]


def run(llava, log=None, cells=CELLS, seeds=SEEDS, families=FAMILIES, **options):
    return evaluate(llava, cells, seeds, families, log or Log(), **options)


def lasting(record):
    """The rows without their times, which no two runs share."""
    return [
        {name: row[name] for name in row if name not in ("first_token", "total", "of_full")} for row in record["rows"]
    ]


def answers(log: bytes) -> int:
    """How many are whole in a log."""
    return sum(line.startswith(b"[") for line in log[: log.rfind(b"\n") + 1].splitlines())


@pytest.fixture(scope="module")
def whole(llava, tmp_path_factory):
    """An uninterrupted run: its record, and its log."""
    path = tmp_path_factory.mktemp("evaluate") / "whole.jsonl"
    return run(llava, Log(path)), path.read_bytes()


# ---- surviving


@pytest.mark.parametrize("share", [0, 0.31, 0.77, 1])
def test_a_killed_run_ends_as_one_that_was_not(llava, whole, tmp_path, share):
    record, log = whole
    path = tmp_path / "log.jsonl"
    path.write_bytes(log[: int(share * len(log))])
    answered = []
    resumed = run(llava, Log(path), progress=lambda done, of: answered.append(of))
    assert lasting(resumed) == lasting(record)
    there = answers(log[: int(share * len(log))])
    assert set(answered) == ({answers(log) - there} if share < 1 else set())  # only what was missing
    if share == 1:
        assert resumed == record
    again = Log(path)
    assert len(again.said) == answers(log) and run(llava, again) == resumed


def test_killed_for_real(llava, folder, whole, tmp_path):
    """Two processes, the parent shot dead in the middle: no worker stays, and the next run ends as if nothing was."""
    import signal
    import subprocess
    import sys
    import time

    out = tmp_path / "rows.json"
    flags = ["--methods", "Full,Random,Oracle", "--budgets", "9,4", "--families", ",".join(FAMILIES)]
    flags = ["evaluate", "--model", str(folder), *flags, "--scenes", "2", "--jobs", "2", "--out", str(out)]
    command = [sys.executable, "-m", "longtail", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT)
    log = Path(f"{out}.partial.jsonl")
    give_up = time.monotonic() + 120
    while not (log.exists() and log.read_bytes().count(b"\n") > 3) and time.monotonic() < give_up:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)  # returns once nobody holds stdout: the workers are gone too
    assert main(flags) == 0
    assert lasting(json.loads(out.read_text())) == lasting(whole[0])


def test_a_worker_that_dies_ends_the_run(capfd):
    """Here one that finds no model."""
    with pytest.raises(OSError, match="a worker process ended early: run the same command again to go on"):
        list(in_processes(1, {"name": "/nowhere"}, [(SEEDS[0], {"exist": CELLS})]))
    assert "there is no model '/nowhere'" in capfd.readouterr().err


def test_cells_scenes_and_families_can_be_added(llava, whole, tmp_path):
    path, asked = tmp_path / "log.jsonl", []
    few = run(llava, Log(path), CELLS[:2], SEEDS[:1], FAMILIES[:2])
    assert [row["method"] for row in few["rows"]] == ["Full", "Random"] and few["rows"][0]["questions"] == 2
    record = run(llava, Log(path), progress=lambda done, of: asked.append(of))
    assert lasting(record) == lasting(whole[0]) and asked[0] == answers(whole[1]) - 4


def test_fresh_starts_over(llava, whole, tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_bytes(whole[1])
    assert len(Log(path).said) == answers(whole[1])
    assert Log(path, fresh=True).said == {} and not path.exists()


def test_an_answer_can_be_taken_from_the_log(llava, whole, tmp_path):
    """What the log holds is believed, so a stale line would show."""
    path = tmp_path / "log.jsonl"
    path.write_text(re.sub(r'"[^"]*", 9, 9\.0', '"forged", 9, 9.0', whole[1].decode()))
    forged = run(llava, Log(path))
    assert forged["rows"][1]["mean"] == 0 and forged["rows"][1]["agreement"] == 0


# ---- what makes a line stale


def test_fingerprint_of_the_model(llava):
    before = fingerprint(llava)
    weight = next(p for name, p in llava.model.named_parameters() if name.endswith("v_proj.weight"))
    kept = weight.data[0, 0].clone()
    weight.data[0, 0] += 1
    changed = fingerprint(llava)
    weight.data[0, 0] = kept
    assert changed != before == fingerprint(llava)


def test_fingerprint_of_the_text_tower(llava, tmp_path):
    class Clip:
        place = str(tmp_path)

    kept, llava.clip = llava.clip, Clip()
    try:
        (tmp_path / "model.safetensors").write_bytes(b"one")
        one = fingerprint(llava)
        (tmp_path / "model.safetensors").write_bytes(b"two")
        assert fingerprint(llava) != one
    finally:
        llava.clip = kept


def test_fingerprint_of_a_cell(monkeypatch):
    marks = {cell: cell.fingerprint("model") for cell in grid("all", "9,4")}
    assert len(set(marks.values())) == len(marks)
    cell = Cell("TopK", 9)
    assert cell.fingerprint("another") != marks[cell] == cell.fingerprint("model")
    monkeypatch.setattr(Cell, "params", lambda self: {"budget": 9, "layer": 3})
    assert cell.fingerprint("model") != marks[cell]


def test_a_methods_source_counts_and_no_others(monkeypatch):
    cells = Cell("TopK", 9), Cell("Random", 9)
    before = [cell.fingerprint("model") for cell in cells]
    read = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda self, **o: read(self, **o) + "#" * (self.name == "topk.py"))
    after = [cell.fingerprint("model") for cell in cells]
    assert after[0] != before[0] and after[1] == before[1]


def test_stale_lines_are_not_used(llava, whole, tmp_path, monkeypatch):
    path, asked = tmp_path / "log.jsonl", []
    path.write_bytes(whole[1])
    mark = Cell.fingerprint
    monkeypatch.setattr(Cell, "fingerprint", lambda self, model: mark(self, model) + "x" * (self.method == "Random"))
    record = run(llava, Log(path), progress=lambda done, of: asked.append(of))
    assert lasting(record) == lasting(whole[0])
    assert asked[0] == answers(whole[1]) * 2 // len(CELLS)  # both budgets of Random, nothing else


# ---- what cannot be run


def test_a_cell_that_cannot_run_says_why_and_stops_no_other(llava, whole, refuser):
    cells = [*CELLS[:2], *grid("Refuser", "9,4"), *CELLS[2:]]
    rows = run(llava, cells=cells)["rows"]
    assert [(row["method"], row["budget"]) for row in rows] == [(cell.method, cell.budget) for cell in cells]
    assert rows[3] == {"method": "Refuser", "budget": 4, "params": {"budget": 4}, "reason": "four is not mine"}
    assert "reason" not in rows[2] and rows[2]["tokens"] == 9
    assert lasting({"rows": [*rows[:2], *rows[4:]]}) == lasting(whole[0])
    text = results.table({"conditions": "Conditions.", "rows": rows})
    assert "Refuser at 4 could not be run: four is not mine." in text and "| Refuser | 9 |" in text


def test_a_cell_that_cannot_be_built(llava, refuser):
    rows = run(llava, cells=grid("Full,Refuser", "99,9"))["rows"]
    assert rows[1]["reason"].startswith("Refuser.budget must be between 1 and 36") and rows[1]["params"] == {}
    assert rows[2]["visual"] == 9


def test_all_is_the_registry_and_the_oracle():
    cells = grid("all", "288,32")
    assert [*dict.fromkeys(cell.method for cell in cells)] == [*REDUCERS, "Oracle"]
    assert [cell.budget for cell in cells if cell.method == "Full"] == [None]
    assert [cell.budget for cell in cells if cell.method == "LongTail"] == [288, 32]


# ---- the numbers


def test_rows_say_what_was_measured(llava, whole):
    rows = whole[0]["rows"]
    full, few = rows[0], rows[1]
    asked = sum(len([q for q in questions(scene(seed)) if q.family in FAMILIES]) for seed in SEEDS)
    assert full["scenes"] == 2 and full["questions"] == asked == sum(n for _, n in full["families"].values())
    assert full["visual"] == full["tokens"] == 36 and full["agreement"] == 1
    assert full["of_full"] == pytest.approx(1, abs=0.5) and few["of_full"] > 0
    assert few["visual"] == 9 and few["params"] == {"budget": 9} and 0 < few["first_token"] < few["total"]
    answer = longtail.answer(llava, scene(SEEDS[0]).image, questions(scene(SEEDS[0]))[0].text, max_new_tokens=160)
    first = json.loads(whole[1].split(b"\n")[1])
    assert first[1:6] == [SEEDS[0], "exist", answer.text, 36, 36.0]
    assert whole[0]["timed"][0] in whole[0]["conditions"] and "1 process of 1 thread" in whole[0]["timed"][0]
    assert whole[0]["weights"] == fingerprint(llava)


def made(right: dict[tuple, bool]):
    """Questions by (scene, family), and answers that are right where told."""
    asked = {key: Question(key[1], "?", (("yes", 0),)) for key in right}
    return asked, {key: Said("yes" if fine else "no", 4, 3.5, 0.1, 0.2, 0.4) for key, fine in right.items()}


def test_mean_and_share():
    """Three of four colours, no count: families weigh the same in the mean, questions in the share."""
    right = {(i, "color"): i != 2 for i in range(4)} | {(0, "count"): False}
    row = results.row(*made(right))
    assert row["mean"] == 0.375 and row["share"] == 0.6 and row["families"] == {"color": [0.75, 4], "count": [0, 1]}
    assert (
        row["agreement"] is None
        and row["tokens"] == 3.5
        and (row["first_token"], row["total"], row["of_full"]) == (0.1, 0.2, 0.25)
    )
    assert results.row(*made(right), made(dict.fromkeys(right, True))[1])["agreement"] == 0.6


def test_descriptions_stand_beside():
    right = {(i, "color"): True for i in range(4)} | {(0, "describe"): False}
    row = results.row(*made(right))
    assert row["mean"] == row["share"] == 1 and row["questions"] == 4 and row["families"]["describe"][1] == 1


def test_intervals_hold_the_mean_and_shrink():
    rng = np.random.default_rng(1)
    widths = []
    for scenes in (40, 160, 640):
        right = {(i, family): rng.random() < 0.8 for i in range(scenes) for family in ("color", "count", "read")}
        row = results.row(*made(right))
        for name in ("mean", "share"):
            low, high = row[f"{name}_95"]
            assert low < row[name] < high
        widths.append(high - low)
        by_hand = 2 * 1.96 * (row["share"] * (1 - row["share"]) / len(right)) ** 0.5
        assert widths[-1] == pytest.approx(by_hand, rel=0.3)
    assert widths == sorted(widths, reverse=True)


def test_intervals_are_over_scenes():
    """Scenes that are all right or all wrong are worth one question each, however many are asked about them."""
    one = {(i, "color"): i % 4 > 0 for i in range(60)}
    ten = {(i, f): fine for (i, _), fine in one.items() for f in ("color", "count", "read", "place", "size", "shape")}
    ends = [results.row(*made(right))["mean_95"] for right in (one, ten)]
    assert ends[0] == ends[1] == results.row(*made(ten))["share_95"]


def test_one_scene_has_no_spread():
    row = results.row(*made({(0, "color"): True, (0, "count"): False}))
    assert row["mean_95"] == [0.5, 0.5]


# ---- the command


def test_command_writes_record_figure_and_log(folder, tmp_path, capsys):
    out, figure = tmp_path / "rows.json", tmp_path / "figure.svg"
    flags = ["evaluate", "--model", str(folder), "--methods", "Full,LongTail,Random", "--budgets", "own,4"]
    flags += ["--scenes", "1", "--families", "exist,read,color", "--out", str(out), "--figure", str(figure)]
    assert main(flags) == 0
    printed, bar = capsys.readouterr()
    record = json.loads(out.read_text())
    assert list(record) == ["conditions", "timed", "weights", "rows"] and len(record["rows"]) == 5
    assert "without: shape, size" in record["conditions"] and "LongTail | 4 |" in printed and "min left" in bar
    assert figure.read_text() == pareto.svg(record)
    assert main([*flags, "--json"]) == 0
    printed, bar = capsys.readouterr()
    assert json.loads(printed) == record and bar == ""  # nothing was left to ask


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--families", "exist,smell"], "--families takes names of all, exact, exist"),
        (["--families", ","], "--families takes names of all, exact, exist"),
        (["--jobs", "0"], "--jobs must be at least 1, got 0"),
    ],
)
def test_what_is_wrong(folder, capsys, flags, sentence):
    assert main(["evaluate", "--model", str(folder), *flags]) == 2
    assert sentence in capsys.readouterr().err


def test_a_bar_that_tells_the_time_left(capsys, monkeypatch):
    from longtail import evaluate

    now = iter([0, 60, 61, 200, 300])
    monkeypatch.setattr(evaluate.time, "monotonic", lambda: next(now))
    progress = evaluate.Progress()
    for done in (25, 26, 50, 100):
        progress(done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == [
        "25 of 100 answers, 3.0 min left",
        "50 of 100 answers, 3.3 min left",
        "100 of 100 answers, 0.0 min left",
    ]
    assert [line.count("█") for line in lines] == [6, 12, 24]


# ---- the figure


def test_figure_names_every_method_and_shows_every_row():
    rng = np.random.default_rng(0)
    names = [*REDUCERS, "Oracle"]
    rows = [
        {"method": name, "budget": budget, "scenes": 9, "questions": 90, "tokens": float(budget or 576), "mean": mean,
         "mean_95": [mean - 0.02, min(1, mean + 0.02)], "of_full": 0.5 + mean / 9}
        for name in names for budget in ([None] if name == "Full" else [288, 64, 32])
        for mean in [round(float(rng.uniform(0.2, 1)), 4)]
    ]  # fmt: skip
    rows.insert(3, {"method": "ToMe", "budget": 5, "params": {}, "reason": "it cannot"})
    svg = pareto.svg({"timed": ["here"], "rows": rows})
    tree = ET.fromstring(svg)
    place = "{http://www.w3.org/2000/svg}"
    groups = [group for group in tree.iter(f"{place}g") if group.find(f"{place}title") is not None]
    titles = [group.find(f"{place}title").text for group in groups]
    assert {name: titles.count(name) for name in names} == dict.fromkeys(names, 2)  # a line in each panel
    assert sum(len(group.findall(f"{place}circle")) for group in groups) == 2 * (len(rows) - 1)
    words = " ".join(text.text for text in tree.iter(f"{place}text"))
    assert all(re.search(rf"\b{name}\b", words) for name in names)
    labels = [text for text in tree.iter(f"{place}text") if "label" in text.get("class", "")]
    assert {"LongTail", "Full", "Random", "Oracle"} <= {label.text for label in labels}
    width, height = (float(tree.get(side)) for side in ("width", "height"))
    for part in tree.iter():
        assert 0 <= float(part.get("x", part.get("cx", 0))) <= width
        assert 0 <= float(part.get("y", part.get("cy", 0))) <= height
    assert svg == pareto.svg({"timed": ["here"], "rows": rows}) and "http" not in svg.replace(place[1:-1], "")


def test_the_front_is_what_nothing_beats():
    shape = {"scenes": 1, "questions": 1, "mean_95": [0, 1], "of_full": 0.1, "budget": 1}
    points = {"A": (32, 0.5), "B": (64, 0.4), "C": (64, 0.8), "D": (128, 0.8), "Oracle": (32, 0.9), "E": (128, 0.85)}
    rows = [shape | {"method": name, "tokens": t, "mean": mean} for name, (t, mean) in points.items()]
    svg = pareto.svg({"timed": [], "rows": rows})
    front = re.search(r'<g class="front"><path d="M(.*?)"', svg).group(1).split(" L")
    assert len(front) == 3  # A, C, E; not the oracle
    assert re.findall(r'class="label front"[^>]*>(\w+)<', svg)[:3] == ["A", "C", "E"]


def test_figure_of_nothing_but_failures():
    with pytest.raises(ValueError, match="no row"):
        pareto.svg({"rows": [{"method": "A", "budget": 1, "params": {}, "reason": "cannot"}]})


def test_the_readmes_figure_is_drawn_from_the_bundled_results(tiny, tmp_path):
    record = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert FIGURE.read_text(encoding="utf-8") == pareto.svg(record)
    pareto.draw(RESULTS, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_bytes() == FIGURE.read_bytes()
    assert record["weights"] == fingerprint(tiny) and RESULTS.stat().st_size < 200_000
    results.write(record, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == RESULTS.read_bytes()
    assert {row["method"].split(":")[0] for row in record["rows"]} == {*REDUCERS, "Oracle"}
    keys = ", ".join(re.findall(r"^(\w+(?:, \w+)*)  ", results.__doc__, re.M)).split(", ")
    assert set(keys) - {"reason"} == {name for row in record["rows"] for name in row} - {"reason"}
