"""`bench prefill`, `bench decode`, their figure, and `bench gpu` where there is no GPU: structure and verdicts only."""

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tape
import torch

from longtail import graph
from longtail.__main__ import main
from longtail.bench import crowd, decode, figure, floors, gpu, prefill, protocol, reading, synthetic
from longtail.cost import HardwareSpec
from longtail.decoder import Decoder
from longtail.models import drawn
from longtail.models.catalogue import KNOWN
from longtail.models.precision import Precision
from longtail.reducers.full import Full

PREFILL = ("prefill", "--random", "tiny-llava-1.5", "--visual", "36,18,9", "--repeat", "2")
DECODE = ("decode", "--random", "tiny-llava-1.5", "--budget", "18", "--new", "40", "--repeat", "2")
ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BELOW = 1e6  # seconds: a floor that everything lies below


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No two seconds of probing, and no more than two warm-ups."""
    monkeypatch.setattr(floors, "probe", lambda: HardwareSpec(10, 0.2, None, 0.1))
    monkeypatch.setattr(protocol, "ENOUGH", 0)


def run(capsys, *argv):
    status = main(["bench", *argv])
    out, err = capsys.readouterr()
    return status, out, err


# ---- the stack


def test_a_slice_of_a_model_is_that_share_of_it(monkeypatch):
    monkeypatch.setattr(drawn, "untrained", lambda config, *_: config)
    config = KNOWN["llava-1.5-7b"].config()
    whole, part = floors.spec(config), floors.spec(drawn._sliced(KNOWN["llava-1.5-7b"].config(), 2))
    assert (part.layers, part.vocabulary) == (2, 2004) and 16 * part.linear == whole.linear
    assert part.hidden == 4096 and part.intermediate == 11008
    ratio = [floors.flops(spec, 636) / floors.flops(spec, 187) for spec in (whole, part)]
    assert ratio[0] == pytest.approx(ratio[1], rel=1e-4), "what holds for the slice holds for the model"
    with pytest.raises(ValueError, match="has 32 decoder layers, got 33: choose from 1 to 32"):
        drawn._sliced(KNOWN["llava-1.5-7b"].config(), 33)


@pytest.fixture(scope="module")
def stack():
    return drawn.stack("tiny-llava-1.5", Precision(torch.float32), "cpu", 2, text=10)


@torch.inference_mode()
def test_prompts_read_together_are_read_as_each_alone(stack):
    prompts = synthetic.Prompts(stack, 0)
    spliced = prompts.of(9)
    alone = Decoder(stack, Full()).prefill(spliced, prompts.unpruned, 1, synthetic.Quiet())
    together = reading.reading(stack, prompts, spliced, 3, None)()
    assert together.shape == (3, 200) and torch.allclose(together, alone.expand(3, -1), atol=1e-4)
    assert spliced.embeddings.shape == (19, 64) and spliced.count == 9


@torch.inference_mode()
def test_the_forms_are_the_engines_own(stack, monkeypatch):
    read = []
    own = Decoder.prefill
    monkeypatch.setattr(
        Decoder, "prefill", lambda self, image, *rest: (read.append(len(image.embeddings)), own(self, image, *rest))[1]
    )
    found = [*reading.forms(stack, synthetic.Prompts(stack, 0), (36, 9), (1,), graph=False)]
    assert [(form.visual, form.what) for form in found] == [(36, ""), (36, "again"), (9, "")]
    for form in found:
        form.run()
    assert read == [46, 46, 19]
    methods = reading.staged(stack, synthetic.Prompts(stack, 0), 9)
    assert [*methods] == ["Full", "Random", "Sequential", "TopK", "LongTail"]
    read.clear()
    for method in methods.values():
        method()
    assert read == [46, 19, 19, 19, 19] and all(len(method.laps) == 1 for method in methods.values())
    assert {*methods["LongTail"].stages(1)} == {"select_ms", "project_ms", "score_ms", "prefill_ms"}


@pytest.fixture
def taped(monkeypatch, stack):
    """A model whose prompts and steps are captured, on the tape that stands in for CUDA's."""
    monkeypatch.setattr(type(stack.llava), "capturable", property(lambda llava: True))
    monkeypatch.setattr(graph, "aside", lambda work: work())
    monkeypatch.setattr(graph, "capture", tape.capture)
    monkeypatch.setattr(stack, "prompts", None, raising=False)
    return stack


@torch.inference_mode()
def test_captured_forms_read_as_launched_ones_do(taped):
    found = [*reading.forms(taped, synthetic.Prompts(taped, 0), (36, 9), (1, 2), graph=True)]
    assert [(form.batch, form.mode, form.what) for form in found if form.visual == 36] == [
        *((1, "eager", ""), (1, "eager", "again"), (1, "graph", ""), (1, "graph", "again")),
        *((2, "eager", ""), (2, "eager", "again")),
    ]
    one, captured = (
        next(f for f in found if (f.visual, f.mode, f.batch) == (9, mode, 1)) for mode in ("eager", "graph")
    )
    for _ in range(3):  # launched, captured, replayed
        assert torch.allclose(captured.run(), one.run(), atol=1e-4)
    prompts = graph.Graphs.of(taped).prompts
    assert not prompts.refused and sum(made is not None for made in prompts.kept.values()) == 1


@torch.inference_mode()
def test_captured_answers_grow_as_launched_ones_do(taped):
    plan = decode.Plan("tiny-llava-1.5", budget=9, new=30, repeat=1, device="cpu")
    runs, seconds = decode.grown(taped, synthetic.Prompts(taped, 0), plan, [False, True], lambda: None)
    assert seconds.shape == (5, 1, 29) and (seconds > 0).all()
    assert [(run.method, run.mode) for run in runs] == [(m, g) for g in ("eager", "graph") for m in decode.METHODS]
    for plain, replayed in zip(runs[:2], runs[2:], strict=True):
        assert replayed.stepping.replay and not replayed.stepping.refused
        assert torch.equal(plain.token, replayed.token) and plain.entries == replayed.entries


# ---- bench prefill


def test_prefill_has_a_row_a_count_controls_and_goals(capsys, tmp_path):
    threads = torch.get_num_threads()
    status, out, err = run(capsys, *PREFILL, "--batch", "1,2", "--out", str(tmp_path))
    assert (status, err) == (0, "") and torch.get_num_threads() == threads
    *words, last = out.splitlines()
    record = json.loads(last)
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text()) == record and "-prefill-" in file.name
    rows = record["rows"]
    expected = [(b, v, w) for b in (1, 2) for v, w in ((36, ""), (36, "again"), (18, ""), (9, ""))]
    assert [(r["batch"], r["visual"], r["what"]) for r in rows] == expected
    for row in rows:
        assert row["ms"] >= row["best_ms"] > 0 and row["ratio_95"][0] <= row["ratio"] <= row["ratio_95"][1]
        assert row["flop_ratio"] >= 1 and row["floor_ms"] is None, "a cache may hold so few weights"
    assert rows[0]["ratio"] == 1 and rows[0]["flop_ratio"] == 1
    assert [m["method"] for m in record["methods"]] == ["Full", *reading.CONTROLS]
    under = record["conditions"]
    assert (under["layers"], under["dtype"], under["threads"], under["vocabulary"]) == (2, "float32", 1, 200)
    assert sum(line.startswith("A/A: the unpruned prompt again") for line in words) == 2
    told = {goal["what"]: goal["verdict"] for goal in record["goals"]}
    assert sum(verdict == "not run here: needs a CUDA device" for verdict in told.values()) == 3
    assert "our selector, of the time that pruning saves, CPU" in told
    assert all(any(line.startswith(what) for line in words) for what in told)


def test_a_planted_time_below_its_floor_fails_the_run(capsys, monkeypatch):
    monkeypatch.setattr(floors, "prefill", lambda *_: BELOW)
    with pytest.raises(SystemExit, match=r"prefill of 36 visual tokens, batch 1, eager took .* below its floor of 1e"):
        main(["bench", *PREFILL, "--json"])
    record = json.loads(capsys.readouterr().out)
    assert len(record["failures"]) == 4 and all(row["efficiency"] for row in record["rows"])


METHODS = [
    {"method": "Full", "prefill_ms": 5000, "select_ms": 0},
    {"method": "LongTail", "prefill_ms": 1500, "select_ms": 35},
]


def rows_of(*lines):
    keys = ("batch", "mode", "visual", "ratio", "of_flops")
    return [dict(zip(keys, line, strict=True)) | {"what": ""} for line in lines]


def test_the_goals_of_prefill():
    rows = rows_of((1, "eager", 576, 1, 1), (1, "eager", 127, 3.3, 0.96), (8, "eager", 127, 2.8, 0.8),
                   (1, "graph", 127, 1.9, 0.6))  # fmt: skip
    more = {"rows": rows, "methods": METHODS}
    cpu = prefill.aims({"conditions": {"device": "cpu", "dtype": "float32"}, **more, "rows": rows[:2]})
    assert [goal.verdict for goal in cpu] == ["met", *3 * ["not run here: needs a CUDA device"], "met"]
    cuda = prefill.aims({"conditions": {"device": "cuda", "dtype": "bfloat16"}, **more})
    verdicts = [cpu_alone := cuda[0].verdict, "missed", "met", "reported", "met"]
    assert cpu_alone == "not run here: needs float32 on a CPU, and --visual with 576 and 127"
    assert [goal.verdict for goal in cuda] == verdicts and cuda[3].measured == 3.3
    half = prefill.aims({"conditions": {"device": "cpu", "dtype": "bfloat16"}, **more, "rows": rows[:2]})
    assert half[0].measured is None and "float32" in half[0].verdict


def test_what_our_selector_takes_of_the_time_it_saves():
    full, pruned = METHODS
    assert prefill.overhead(METHODS) == 1.0
    assert prefill.overhead([full, pruned | {"select_ms": 105}]) == 3.0
    assert prefill.overhead([full, pruned | {"prefill_ms": 5000}]) is None, "nothing is saved"


def test_a_disturbed_run_meets_no_goal():
    rows = rows_of((1, "eager", 576, 1, 1), (1, "eager", 127, 5.9, 1.72))
    under = {"device": "cpu", "dtype": "float32"}
    more = {"conditions": under, "methods": METHODS}
    assert prefill.aims({**more, "rows": rows})[0].verdict == "in doubt: more than the operations allow"
    rows[1] |= {"of_flops": 1.0}
    again = rows[0] | {"what": "again", "ratio": 1.36}
    (first, *_) = prefill.aims({**more, "rows": [*rows, again]})
    assert first.verdict == "in doubt: the unpruned prompt against itself was 1.36 x" and first.met is None
    assert prefill.aims({**more, "rows": [*rows, again | {"ratio": 0.96}]})[0].met


def test_efficiency_is_of_what_the_floors_allow(monkeypatch):
    plan = prefill.Plan(random="llava-1.5-7b", device="cpu").settled()
    peaks, spec = floors.Peaks(floors.SHEET["H100"], "data sheet", False), floors.spec(KNOWN["llava-1.5-7b"].config())
    seconds, base = np.array([0.005, 0.005]), np.array([0.010, 0.010])
    row = prefill.row(reading.Form(127, 1, "eager", None), seconds, base, plan, spec, peaks, 16)
    assert (row["floor_ms"], row["bound"], row["ratio"], row["flop_ratio"]) == (3.972, 2.124, 2.0, 3.432)
    assert row["efficiency"] == pytest.approx(2 / 2.124, abs=1e-3) and row["of_floor"] == 0.7943


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (("--visual", "37"), "--visual takes whole numbers from 1 to 36, comma between, got '37'"),
        (("--visual", "a,b"), "--visual takes whole numbers from 1 to 36"),
        (("--batch", "0"), "--batch takes whole numbers from 1 to 256"),
        (("--clock", "sun"), "--clock must be one of wall, cpu, got 'sun'"),
        (("--clock", "cpu", "--threads", "2"), "--clock cpu is the time of one thread on a CPU"),
        (("--layers", "4"), "the language model has 3 decoder layers, got 4: choose from 1 to 3"),
        (("--layers", "0"), "--layers must be at least 1, got 0"),
        (("--repeat", "0"), "--repeat must be at least 1, got 0"),
        (("--random", "llava-9"), "--random takes one of llava-1.5-7b"),
        (("--device", "cuda"), "--device cuda: there is no CUDA device here"),
        (("--graph",), "--graph captures a CUDA graph: there is no CUDA device here"),
        (("--out", "a.txt"), "--out takes a .json file or a folder, got 'a.txt'"),
    ],
)
def test_prefill_refuses_in_a_sentence(capsys, monkeypatch, flags, sentence):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, out, err = run(capsys, *PREFILL, *flags)
    assert status == 2 and out == "" and sentence in err and len(err.splitlines()) == 1


# ---- bench decode


def test_decode_grows_one_cache_and_holds_the_other(capsys):
    status, out, err = run(capsys, *DECODE, "--clock", "cpu")
    assert (status, err) == (0, "") and "1 thread, its own time" in out
    record = json.loads(out.splitlines()[-1])
    fixed, growing = record["rows"]
    assert (fixed["method"], growing["method"], fixed["mode"]) == ("LongTail", "TopK", "eager")
    entry = 2 * 2 * 2 * 16 * 4  # keys and values, layers, heads, width, float32
    assert fixed["entries"] == 78 and fixed["kv_live_bytes"] == 78 * entry == fixed["kv_arithmetic"]
    assert fixed["kv_bytes"] == 79 * entry, "a slot more for the newcomer"
    assert growing["entries"] == 78 + 39 and growing["kv_arithmetic"] == growing["kv_bytes"] == 118 * entry
    assert all(len(row["windows_ms"]) == decode.WINDOWS for row in record["rows"])
    told = {goal["what"]: goal for goal in record["goals"]}
    assert told["KV bytes off their arithmetic"]["met"]
    assert sum(goal["verdict"] == "not run here: needs a CUDA device" for goal in told.values()) == 6
    assert record["batches"] == [] and record["conditions"]["batches"] == [1]
    assert "control: the layers' MLPs alone" in out


def test_a_token_below_its_floor_fails_the_run(capsys, monkeypatch):
    monkeypatch.setattr(floors, "decode", lambda *_: BELOW)
    with pytest.raises(SystemExit, match=r"a token of LongTail, eager took .* below its floor"):
        main(["bench", *DECODE, "--json"])
    assert len(json.loads(capsys.readouterr().out)["failures"]) == 2


def test_a_slope_is_that_of_the_line_whatever_single_steps_do():
    steps = np.linspace(1.0, 1.02, 504)[None].repeat(2, axis=0)
    steps[:, ::50] *= 3  # what else ran
    found = decode.slope(steps)
    assert found["per_cent"] == pytest.approx(1.98, abs=0.05)
    assert found["per_cent_95"][0] == pytest.approx(1.98, abs=0.1) == found["per_cent_95"][1]
    assert decode.slope(np.ones((1, 504)))["per_cent"] == pytest.approx(0, abs=1e-9)


def test_the_goals_of_decode_on_a_gpu():
    slope = {"per_cent": 0.4, "per_cent_95": [-0.1, 0.9]}
    line = {"slope_over_control": slope, "kv_bytes": 103, "kv_arithmetic": 100, "over_floor": 1.3}
    eager = {"method": "LongTail", "mode": "eager", "kernels": 1300, "synchronisations": 1}
    graph = {"method": "LongTail", "mode": "graph", "synchronisations": 2}
    growing = {"method": "TopK", "mode": "graph"}
    rows = [line | eager, line | graph, line | growing]
    rows += [line | {"method": "TopK", "mode": "eager", "allocated_bytes": 195, "kv_arithmetic": 200}]
    rows[0] |= {"allocated_bytes": 101}
    at = {"LongTail": {"kv_bytes": 97, "kv_arithmetic": 100}, "Full": {"kv_bytes": 50, "kv_arithmetic": 50}}
    batches = [{"batch": 8, "ratio": 1.2, **at}, {"batch": 32, "ratio": 1.6, **at}]
    under = {"new": 512, "device": "cuda"}
    goals = decode.aims({"rows": rows, "peak_bytes": 14e9, "batches": batches, "conditions": under})
    met = ["met", "missed", "met", "missed", "missed", "reported", "missed", "reported", "met", "met"]
    assert [goal.verdict for goal in goals] == met
    assert goals[6].measured == 94 and goals[8].measured == 1.6 and goals[9].measured == 3


@torch.inference_mode()
def test_many_answers_grow_as_each_alone(stack):
    plan, prompts = decode.Plan("tiny-llava-1.5", budget=9, text=10, new=30, device="cpu"), synthetic.Prompts(stack, 0)
    alone = decode.Growing(stack, prompts, "LongTail", plan, False)
    many = crowd.Crowd(stack, prompts, "LongTail", plan, 3)
    assert many.tokens == 3 * alone.token.tolist()
    for _ in range(20):
        alone()
        many()
        assert many.tokens == 3 * alone.token.tolist()
    assert {row.entries() for row in many.rows} == {alone.decoder.entries()}, "fixed"
    full = crowd.Crowd(stack, prompts, "Full", plan, 2)
    full()
    assert [row.entries() for row in full.rows] == [47, 47], "all patches, and growing"


def test_decode_of_a_batch_has_its_caches_and_no_verdict_of_a_gpu(capsys):
    status, out, _ = run(capsys, *DECODE, "--batch", "1,2", "--repeat", "1")
    record = json.loads(out.splitlines()[-1])
    (line,) = record["batches"]
    entry = 2 * 2 * 2 * 16 * 4  # keys and values, layers, heads, width, float32
    assert status == 0 and line["batch"] == 2 and line["ratio_95"][0] <= line["ratio"] <= line["ratio_95"][1]
    assert line["LongTail"]["kv_bytes"] == line["LongTail"]["kv_arithmetic"] == 2 * (18 + 60 + 1) * entry
    assert line["Full"]["kv_bytes"] == line["Full"]["kv_arithmetic"] == 2 * (36 + 60 + 40) * entry
    told = {goal["what"]: goal for goal in record["goals"]}
    assert told["KV bytes of a batch off their arithmetic"]["met"]
    faster = told["a step of 32 answers, fixed caches over unpruned ones, GPU"]
    assert faster["verdict"] == "not run here: needs a CUDA device" and "Answers at once" in out


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (("--budget", "37"), "--budget must be between 1 and 36, the patches of a view, got 37"),
        (("--new", "8"), "--new must be at least 25, got 8"),
        (("--new", "512"), "--new must leave room: tiny-llava-1.5 has 512 positions"),
    ],
)
def test_decode_refuses_in_a_sentence(capsys, flags, sentence):
    status, out, err = run(capsys, *DECODE, *flags)
    assert status == 2 and out == "" and sentence in err and len(err.splitlines()) == 1


# ---- bench gpu


def test_without_a_gpu_bench_gpu_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, out, err = run(capsys, "gpu")
    assert (status, out) == (2, "") and "bench gpu needs a CUDA device, and there is none here" in err


def test_a_part_that_cannot_run_leaves_the_others():
    def fails():
        raise RuntimeError("CUDA says no")

    record = gpu.run("decode", fails)
    found = {name: record for name in gpu.parts("llava-1.5-7b", "cuda", 0)}
    assert [*found] == [
        "prefill",
        "decode",
        "selectors",
        "preprocess",
        "preview",
        *(f"{p} {q}" for q in ("int8", "int4") for p in ("prefill", "decode")),
    ]
    assert {goal["verdict"] for goal in gpu.aims(found)} == {"not run: CUDA says no"}


# ---- the figure


def test_the_figure_shows_every_count_and_stays_on_the_page(capsys, tmp_path):
    file, drawing = tmp_path / "a.json", tmp_path / "speed.svg"
    assert run(capsys, *PREFILL, "--batch", "1,2", "--out", str(file))[0] == 0
    assert run(capsys, "figure", str(file), "--out", str(drawing)) == (0, "", "")
    svg, place = drawing.read_text(), "{http://www.w3.org/2000/svg}"
    tree = ET.fromstring(svg)
    assert len([*tree.iter(f"{place}circle")]) == 2 * 2 * 3, "panels, batches, counts"
    titles = [title.text for group in tree.iter(f"{place}g") for title in group.iter(f"{place}title")]
    assert titles.count("measured") == 4 and titles.count("FLOP bound") == 2 and "floor" not in titles
    width, height = (float(tree.get(side)) for side in ("width", "height"))
    for part in tree.iter():
        assert 0 <= float(part.get("x", part.get("cx", 0))) <= width
        assert 0 <= float(part.get("y", part.get("cy", 0))) <= height
    assert svg == figure.figure(json.loads(file.read_text())) and "random weights" in svg
    record = json.loads(file.read_text())
    for row in record["rows"]:
        row["floor_ms"], row["bound"] = row["ms"] / 2, row["flop_ratio"]
    same = figure.figure(record)
    assert same.count("<title>floor</title>") == 2 and "ratio of floors" not in same, "the two bounds are one line"
    for row in record["rows"]:
        row["bound"] = 1 + (row["flop_ratio"] - 1) / 2
    assert figure.figure(record).count("<title>ratio of floors</title>") == 2


def test_the_readmes_goals_are_those_of_the_records_that_are_kept(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert run(capsys, "goals", "--markdown")[1] == README.split("<!-- goals -->\n")[1].split("<!-- /goals -->")[0]


def test_the_newest_record_is_drawn_where_none_is_named(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    assert run(capsys, "figure", "--out", str(tmp_path / "a.svg"))[0] == 0
    assert (tmp_path / "a.svg").read_text() == (ROOT / "assets" / "readme" / "speed.svg").read_text()
    monkeypatch.chdir(tmp_path)
    assert "there is no record of a benchmark in assets/results" in run(capsys, "figure", "--out", "b.svg")[2]


def test_the_readmes_figure_is_drawn_from_a_record_that_is_kept():
    kept = [json.loads(file.read_text()) for file in (ROOT / "assets" / "results").glob("*-prefill-*.json")]
    drawn_now = [figure.figure(record) for record in kept]
    assert (ROOT / "assets" / "readme" / "speed.svg").read_text(encoding="utf-8") in drawn_now


def test_the_figure_refuses_other_records(capsys, tmp_path):
    file = tmp_path / "a.json"
    file.write_text('{"bench": "decode"}')
    status, out, err = run(capsys, "figure", str(file), "--out", str(tmp_path / "a.svg"))
    assert (status, out) == (2, "") and "drawn from a record of bench prefill, got one of 'decode'" in err
    status, _, err = run(capsys, "figure", str(file), "--out", "a.png")
    assert status == 2 and "--out takes a .svg file" in err


def test_a_graph_of_a_plan_is_for_a_gpu_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    plan = prefill.Plan(device="cuda").settled()
    assert (plan.layers, plan.batches, plan.graph, plan.repeat, plan.threads) == (32, (1, 8), True, 50, 0)
    assert replace(plan, batch="8").settled().batches == (8,)
    grow = decode.Plan(device="cuda").settled()
    assert (grow.layers, grow.repeat, grow.new) == (32, 3, 512)
