"""`python -m longtail bench selectors`: both forms of each selection agree, the table and its JSON; never a time."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from longtail.__main__ import main
from longtail.bench import counted, protocol, race, selectors

SMALL = ("--patches", "36", "--width", "64", "--repeat", "1")
METHODS = [
    "LongTail stage 1",
    *("PruMerge", "PruMergePlus", "Recoverable", "FastV rank", "H2O step", "H2O step, attending"),
    *("DivPrune selection", "VisionZip", "ToMe"),
]
GOALS = [None, 10, 20, 5, 8, 4.5, None, 4, 3, 1.3]


def run(capsys, *argv):
    status = main(["bench", *argv])
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.parametrize("patches, width, seed", [(36, 64, 0), (36, 64, 5), (49, 32, 1), (144, 64, 2)])
@torch.inference_mode()
def test_both_forms_hand_over_the_same(patches, width, seed):
    found = selectors.selectors(race.Conditions(patches=patches, width=width, seed=seed))
    assert [each.method for each in found] == METHODS
    for each in found:
        race.check(each)


def test_the_table_and_the_last_line(capsys, tmp_path):
    file = tmp_path / "bench.json"
    threads = torch.get_num_threads()
    status, out, err = run(capsys, "selectors", *SMALL, "--out", str(file))
    assert (status, err) == (0, "") and torch.get_num_threads() == threads
    *words, last = out.splitlines()
    record = json.loads(last)
    assert record == json.loads(file.read_text()) and record["bench"] == "selectors"
    assert [row["method"] for row in record["rows"]] == METHODS
    over = {goal["what"]: goal for goal in record["goals"] if "over its released form" in goal["what"]}
    aimed = {name: least for name, least in zip(METHODS, GOALS, strict=True) if least}
    assert {what.split(":")[0]: goal["least"] for what, goal in over.items()} == aimed
    for row, line in zip(record["rows"], words[1:], strict=False):
        assert line.startswith(row["method"]) and row["size"] in line
        assert min(row["published_ms"], row["published_best_ms"], row["ours_ms"], row["ours_best_ms"]) > 0
        assert row["ratio_95"] == [row["ratio"]] * 2, "of one repetition"
        if goal := over.get(f"{row['method']}: over its released form, CPU"):
            assert goal["measured"] == row["ratio"] and goal["met"] == (row["ratio"] >= goal["least"])
    under = next(line for line in words if "seed 0" in line)
    for words in ("(cpu), float32, 1 thread", torch.__version__, "n = 36, D = 64", "1 repetitions", "load"):
        assert words in under
    conditions = record["conditions"]
    assert (conditions["patches"], conditions["width"], conditions["repeat"], conditions["threads"]) == (36, 64, 1, 1)


def test_json_alone(capsys):
    status, out, _ = run(capsys, "selectors", *SMALL, "--json")
    record = json.loads(out)
    assert status == 0 and len(record["rows"]) == len(METHODS)
    own, *elsewhere = (goal for goal in record["goals"] if goal["what"].startswith("LongTail stage 1"))
    assert (own["what"], own["most"], own["aim"]) == ("LongTail stage 1: ms, CPU", 0.2, "<= 0.2 ms")
    assert own["measured"] == record["rows"][0]["ours_ms"] and own["met"] == (own["measured"] <= 0.2)
    assert [goal["verdict"] for goal in elsewhere] == 3 * ["not run here: needs a CUDA device"]


def test_on_a_gpu_our_selector_has_two_goals_more():
    own = race.Race("A", 5, "", "", None, None, most=selectors.OWN)
    line = {"ours_ms": 0.1, "ratio": 9, "kernels": 21, "synchronisations": 1}
    told = {goal.what: goal for goal in race.aims_of(own, line, "cuda:0")}
    assert [told[f"A: {name}, GPU"].met for name in ("ms", "kernels", "synchronisations")] == [True, False, True]
    for what in ("A: ms, CPU", "A: over its released form, CPU"):
        assert told[what].verdict == "not run here: is measured on a CPU"
    assert counted.count(lambda: 1 / 0, "cpu") == {}, "nothing is counted on a CPU"


def test_a_benchmark_of_wrong_results_prints_nothing(capsys, monkeypatch):
    right_ones = selectors.selectors

    def wrong(conditions):
        *right, last = right_ones(conditions)
        return [*right, replace(last, ours=lambda: last.ours() * 1.01)]

    def never(*_):
        raise AssertionError("nothing is timed")

    monkeypatch.setattr(selectors, "selectors", wrong)
    monkeypatch.setattr(protocol, "timed", never)
    with pytest.raises(SystemExit, match="ToMe: ours and the published form do not hand over the same"):
        main(["bench", "selectors", *SMALL])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "plain, ours", [([1.0], [1.0, 1.0]), ([1.0, 2.0], [2.0, 1.0]), ([1], [2]), ([float("nan")], [float("nan")])]
)
def test_what_counts_as_the_same(plain, ours):
    pair = race.Race("A", 1, "", "", lambda: torch.tensor(plain), lambda: torch.tensor(ours))
    with pytest.raises(race.Disagreement):
        race.check(pair)


def test_a_race_of_steps_agrees_at_every_one():
    seen = iter([1, 1, 2])
    pair = race.Race("A", 1, "", "", lambda: torch.tensor([1]), lambda: torch.tensor([next(seen)]))
    race.check(replace(pair, checks=2))
    with pytest.raises(race.Disagreement):
        race.check(pair)


def test_an_outcome_is_looked_at_in_the_end():
    calls = []
    pair = race.Race("A", 1, "", "", lambda: calls.append(1), lambda: calls.append(2), checks=3)
    count = lambda: torch.tensor(len(calls))  # noqa: E731
    race.check(replace(pair, outcomes=(count, lambda: torch.tensor(6))))
    assert calls == [1, 2] * 3
    with pytest.raises(race.Disagreement):
        race.check(replace(pair, outcomes=(count, lambda: torch.tensor(6))))


def test_every_form_runs_once_a_repetition_in_rotated_order():
    ran = []
    forms = [lambda i=i: ran.append(i) for i in range(4)]
    seconds = protocol.timed(forms, "cpu", 4, group=2, least=1e-9)
    assert seconds.shape == (4, 4) and (seconds > 0).all()
    rounds = np.reshape(ran[4 * protocol.WARM_UPS :], (4, 4)).tolist()
    assert rounds == [[0, 1, 2, 3], [3, 2, 1, 0], [2, 3, 0, 1], [1, 0, 3, 2]]


def test_ratios_are_paired():
    pair = race.Race("A", 2.5, "", "", None, None)
    row = race.row(pair, np.array([2.0, 4.0, 9.0]), np.array([1.0, 2.0, 3.0]))
    assert (row["ratio"], row["published_ms"], row["ours_ms"], row["published_best_ms"]) == (2, 4000, 2000, 2000)
    assert row["ratio_95"] == [2, 3]
    assert [goal.met for goal in race.aims_of(pair, row, "cpu")] == [False]
    assert race.aims_of(replace(pair, goal=None), row, "cpu") == []


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (("--repeat", "0"), "--repeat must be at least 1, got 0"),
        (("--patches", "35"), "--patches must be at least 36, got 35"),
        (("--width", "100"), "--width must be a multiple of 16, got 100"),
        (("--threads", "0"), "--threads must be at least 1, got 0"),
        (("--device", "tpu"), "--device must be cpu, cuda or cuda:N, got 'tpu'"),
        (("--out", "bench.csv"), "--out takes a .json file or a folder, got 'bench.csv'"),
    ],
)
def test_a_bad_flag_is_one_sentence(capsys, flags, sentence):
    status, out, err = run(capsys, "selectors", *flags)
    assert status == 2 and out == "" and sentence in err and len(err.splitlines()) == 1


def test_a_bench_needs_a_kind(capsys):
    status, out, err = run(capsys)
    assert status == 2 and out == "" and "kind" in err
