"""`bench compare`, the arithmetic beside `bench model`, and the page beside the benchmark: no time is asserted."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

import longtail
from demo import latency
from longtail.__main__ import main
from longtail.bench import compare, floors, protocol
from longtail.bench.bounds import Bounds
from longtail.bench.compare import Entry, Plan
from longtail.cost import HardwareSpec

RANDOM = ("compare", "--random", "tiny-llava-1.5", "--new", "2", "--repeat", "2")
BELOW = 1e6  # seconds: a floor that everything lies below


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No two seconds of probing, and no more than two warm-ups."""
    monkeypatch.setattr(floors, "probe", lambda: HardwareSpec(10, 0.2, None, 0.1))
    monkeypatch.setattr(protocol, "ENOUGH", 0)
    monkeypatch.setattr(compare, "CLOSES", 1.0)  # of an answer of microseconds on a busy machine


def run(capsys, *argv):
    status = main(["bench", *argv])
    out, err = capsys.readouterr()
    return status, out, err


# ---- bench compare


def test_methods_by_budgets_between_two_runs_of_full(capsys, tmp_path):
    flags = ("--methods", "LongTail,FastV", "--budgets", "9,36", "--out", str(tmp_path / "a.json"))
    status, out, err = run(capsys, *RANDOM, *flags)
    assert (status, err) == (0, "")
    *words, last = out.splitlines()
    record = json.loads(last)
    assert record == json.loads((tmp_path / "a.json").read_text()) and record["failures"] == []
    named = [(row["method"], row["budget"], row["what"]) for row in record["rows"]]
    grid = [(m, b, "") for m in ("Random", "Sequential", "LongTail", "FastV") for b in (None, 9, 36)]
    assert named == [("Full", None, ""), *grid, ("Full", None, "again")]
    for row in record["rows"]:
        assert row["generated"] == 2 and 0 < row["closes"] <= 1.02 and row["first_token"]["ratio"] > 0
        assert row["visual"] == (row["budget"] if row["budget"] and row["method"] != "FastV" else row["visual"])
        assert row["flop_ratio"] >= 0.99 and row["prefill_floor_ms"] is None
        assert sum(row[f"{phase}_ms"] for phase in compare.PHASES) > 0
    assert record["rows"][0]["ratio"] == 1 and record["rows"][0]["flop_ratio"] == 1
    assert sum(line.startswith("A/A: Full again, whole call: ratio") for line in words) == 1
    assert record["conditions"]["image"] == "drawn" and record["conditions"]["threads"] == 1


def test_a_scene_and_the_bundled_model_are_the_default(capsys):
    flags = ("--methods", "TopK", "--budgets", "32", "--new", "1", "--repeat", "1", "--json")
    status, out, _ = run(capsys, "compare", *flags)
    record = json.loads(out)
    assert status == 0 and record["conditions"]["model"] == "tiny"
    assert record["conditions"]["image"] == "seven-objects.png" and record["rows"][-2]["visual"] == 32


def test_a_method_that_does_not_go_with_a_budget_says_why(capsys):
    status, out, _ = run(capsys, *RANDOM, "--methods", "Uniform,Manual:patches=999", "--budgets", "36")
    rows = {(r["method"], r["budget"]): r for r in json.loads(out.splitlines()[-1])["rows"]}
    assert status == 0 and "names patch 999" in rows["Manual:patches=999", None]["reason"]
    assert "Manual:patches=999 at its own budget: not run: " in out


def stages(first, decode, wall):
    """An entry of one run of so many seconds, and its wall clock."""
    seconds = dict(preprocess=0.0, vision=0.0, method=0.0, prefill=first, first_token=first, total=first + decode)
    tokens = SimpleNamespace(visual=4, prompt=10, generated=2, layers=(4,) * 6)
    answer = SimpleNamespace(seconds=SimpleNamespace(**seconds), tokens=tokens, graphs=())
    entry = Entry("TopK", 4, longtail.make("TopK", budget=4), answers=[answer])
    return entry, np.array([wall])


@pytest.mark.parametrize("wall, closes", [(1.0, True), (1.04, True), (1.06, False), (0.9, False)])
def test_stages_that_do_not_close_with_the_wall_clock_fail_the_run(wall, closes, monkeypatch):
    monkeypatch.setattr(compare, "CLOSES", 0.05)
    spec, peaks = floors.spec(longtail.load("tiny").model.config), floors.peaks("cpu")
    full = np.array([2.0]), np.array([1.0])
    row = compare.row(*stages(0.6, 0.4, wall), full, spec, peaks, 32)
    told = compare.failures([row], peaks)
    assert row["closes"] == pytest.approx(1 / wall, rel=1e-3) and bool(told) != closes
    assert closes or ("TopK at 4: preprocess to decode are" in told[0] and "between tokens" in told[0])
    assert row["ratio"] == pytest.approx(2 / wall, rel=1e-3) and row["first_token"]["ratio"] == pytest.approx(
        1 / 0.6, rel=1e-3
    )


def test_a_prefill_below_its_floor_fails_the_comparison(capsys, monkeypatch):
    monkeypatch.setattr(floors, "prefill", lambda *_: BELOW)
    with pytest.raises(SystemExit, match=r"Full at its own budget: prefill took .* below its floor"):
        main(["bench", *RANDOM, "--methods", "TopK", "--budgets", "9", "--json"])
    assert json.loads(capsys.readouterr().out)["failures"]


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (("--methods", "Nope"), "there is no method 'Nope'"),
        (("--budgets", "577"), "--budgets takes whole numbers from 1 to 576, comma between, got '577'"),
        (("--new", "0"), "--new must be at least 1, got 0"),
        (("--random", "llava-9"), "--random takes one of llava-1.5-7b"),
        (("--out", "a.csv"), "--out takes a .json file or a folder, got 'a.csv'"),
    ],
)
def test_compare_refuses_in_a_sentence(capsys, flags, sentence):
    status, out, err = run(capsys, *RANDOM, *flags)
    assert status == 2 and out == "" and sentence in err and len(err.splitlines()) == 1


# ---- bench model


def test_model_has_its_arithmetic_beside(capsys, monkeypatch):
    monkeypatch.setattr(floors, "CACHED", 0)
    flags = ("--random", "tiny-llava-1.5", "--methods", "LongTail:cut=in_tower,FastV", "--new", "2", "--repeat", "1")
    status, out, _ = run(capsys, "model", *flags)
    record = json.loads(out.splitlines()[-1])
    full, inside, later = record["rows"]
    assert status == 0 and record["failures"] == []
    assert all(0 < row["floors"]["prefill"] < row["seconds"]["prefill"] for row in record["rows"])
    assert full["floors"]["vision"] == later["floors"]["vision"] > 0 and inside["floors"]["vision"] is None
    assert full["tflop"] > later["tflop"] > inside["tflop"] > 0
    assert "method" in out and "vision, ms / floor" in out and "measured here" in out


def test_what_lies_below_its_floor_fails_the_model():
    llava = SimpleNamespace(
        model=longtail.load("tiny").model, dtype=longtail.load("tiny").dtype, quantization="none",
        drawn=SimpleNamespace(layout=SimpleNamespace(sizes=(576,))),
    )  # fmt: skip
    bounds = Bounds(llava, floors.Peaks(HardwareSpec(10, 0.2, None, 0.1), "planted", False))
    bounds._of = lambda row: {"floors": {"vision": 1.0, "prefill": None, "per_token": 2.0}, "tflop": 1}
    row = {"method": "Full", "seconds": {"vision": 0.5, "prefill": 0.1, "per_token": 0.0}}
    found = bounds.beside({"rows": [row, {"method": "FastV", "reason": "cannot"}]})
    assert len(found["failures"]) == 1 and found["failures"][0].startswith("Full: vision took 500 ms, below its floor")
    assert found["rows"][1] == {"method": "FastV", "reason": "cannot"}


# ---- the page beside the benchmark


def test_the_page_measures_what_the_benchmark_does(tiny, capsys):
    plan = Plan(new=2, repeat=2)
    found = latency.compared(tiny, plan, 1)
    assert found["methods"] == ["Full", "LongTail"] and found["page_ms"] > 0 and found["bench_ms"] > 0
    assert found["ratio"] == pytest.approx(found["page_ms"] / found["bench_ms"], rel=2e-3)
    (goal,) = found["goals"]
    assert goal["measured"] == found["ratio"] and (goal["least"], goal["most"]) == (0.95, 1.05)


@pytest.mark.parametrize(
    "ratio, ends, verdict",
    [
        (1.01, [0.96, 1.04], "met"),
        (1.04, [1.0, 1.06], "in doubt: 95 % interval 1 to 1.06"),
        (1.06, [1.04, 1.08], "in doubt: 95 % interval 1.04 to 1.08"),
        (1.08, [1.06, 1.1], "missed"),
    ],
)
def test_the_whole_interval_decides(ratio, ends, verdict):
    assert latency.aim({"ratio": ratio, "ratio_95": ends}).verdict == verdict


def test_the_page_and_the_benchmark_take_turns(monkeypatch, tiny):
    ran = []
    monkeypatch.setattr(latency, "pressed", lambda *_: ran.append("page") or {"Full": 1.04, "LongTail": 1.04})
    monkeypatch.setattr(latency, "benchmarked", lambda *_: ran.append("bench") or {"Full": 1.0, "LongTail": 1.0})
    found = latency.compared(tiny, Plan(new=2, repeat=2), 4)
    assert ran == ["page", "bench", "bench", "page", "bench", "page", "page", "bench"]
    assert found["ratio"] == 1.04 and found["goals"][0]["met"]
    monkeypatch.setattr(latency, "pressed", lambda *_: {"Full": 1.2})
    monkeypatch.setattr(latency, "benchmarked", lambda *_: {"Full": 1.0})
    assert latency.compared(tiny, Plan(new=2, repeat=2), 2)["goals"][0]["verdict"] == "missed"


def test_how_far_the_page_is_from_the_benchmark_decides(monkeypatch, capsys, tiny, tmp_path):
    monkeypatch.setattr(longtail, "load", lambda name: tiny)
    found = {
        "bench": "latency",
        "methods": ["Full"],
        "page_ms": 1.1,
        "bench_ms": 1.0,
        "ratio": 1.1,
        "ratio_95": [1.08, 1.2],
    }

    def between(*ends):
        return found | {"goals": [latency.aim(found | {"ratio_95": [*ends]}).record()]}

    monkeypatch.setattr(latency, "compared", lambda *_: between(1.08, 1.2))
    with pytest.raises(SystemExit, match=r"the page's time is 1.100 of the benchmark's, further than 5 %"):
        latency.main(["--out", str(tmp_path)])
    (file,) = tmp_path.iterdir()
    assert "-latency-" in file.name and json.loads(file.read_text()) == json.loads(
        capsys.readouterr().out.splitlines()[-1]
    )
    monkeypatch.setattr(latency, "compared", lambda *_: between(1.0, 1.2))  # in doubt is no failure
    assert latency.main([]) is None and "page over benchmark 1.100" in capsys.readouterr().out


def test_a_page_that_measures_nothing_is_an_error(tiny):
    with pytest.raises(ValueError, match="the page measured nothing"):
        latency.pressed(latency.page.build(tiny), Plan(question=" ", new=2, repeat=2))
