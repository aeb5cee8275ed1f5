"""What every benchmark shares: order, ratios and intervals, floors, goals, the record and its file; never a time."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from longtail import clock
from longtail.__main__ import main
from longtail.bench import floors, goals, protocol, record
from longtail.cost import MODELS, SHEET, HardwareSpec
from longtail.models.catalogue import KNOWN

MEASURED = floors.Peaks(HardwareSpec(10, 0.2, None, 0.1), "measured", True)
PRINTED = floors.Peaks(SHEET["H100"], "data sheet", False)


def test_each_repetition_starts_elsewhere_and_turns_round():
    orders = [protocol.order(3, turn).tolist() for turn in range(6)]
    assert orders == [[0, 1, 2], [2, 1, 0], [1, 2, 0], [0, 2, 1], [2, 0, 1], [1, 0, 2]]
    places = np.array([[order.index(i) for order in orders] for i in range(3)])
    assert (places.mean(axis=1) == 1).all(), "nobody always comes first"


def test_a_form_is_warmed_up_until_it_fills_the_time():
    def watch(taken):
        return lambda form: (form(), taken)[1]

    for taken, calls in ((0.0, protocol.WARM_UPS), (0.9, 3), (5.0, 2)):
        ran = []
        assert protocol.warmed(lambda ran=ran: ran.append(1), watch(taken)) == taken and len(ran) == calls


def test_a_ratio_is_the_median_of_pairs_with_its_interval():
    slow = np.array([2.0, 4.0, 9.0, 2.0, 4.0])
    assert protocol.paired(slow, np.ones(5)) == {"ratio": 4.0, "ratio_95": [2.0, 9.0]}
    drifting = np.linspace(1, 100, 50)
    pair = protocol.paired(2 * drifting, drifting)
    assert pair == {"ratio": 2.0, "ratio_95": [2.0, 2.0]}, "what falls on both cancels out"


def test_a_base_runs_between_every_two_forms():
    ran = []
    forms = [lambda i=i: ran.append(i) for i in range(3)]
    found = protocol.against(lambda: ran.append("base"), forms, "cpu", 2, also=[lambda: ran.append("also")])
    assert ran[-12:] == [0, "base", 1, 2, "base", "also", 2, "base", 1, 0, "base", "also"] and found.also.shape == (2,)
    assert found.forms.shape == found.beside.shape == (3, 2) and found.base.shape == (4,)
    assert found.beside[0, 0] == found.beside[1, 0] == found.base[0] and found.beside[2, 0] == found.base[1]
    assert found.beside[2, 1] == found.beside[1, 1] == found.base[2] and found.beside[0, 1] == found.base[3]
    (base, itself), *others = found.pairs()
    assert base is itself and [len(pair[0]) for pair in others] == [2, 2, 2]


def test_the_engines_phases_are_told_by_the_clock_that_is_asked_for(monkeypatch):
    began, ticks = clock.reading.get(), iter(range(10, 100, 7))
    monkeypatch.setitem(protocol.CLOCKS, "cpu", lambda: next(ticks))
    with protocol.phases_by("cpu"):
        watch = clock.Clock(torch.device("cpu"))
        watch.lap("select")
        watch.lap("prefill")
        assert watch.laps == {"select": 7, "prefill": 7}
    assert clock.reading.get() is began


def test_threads_are_given_back_even_where_something_fails():
    before = torch.get_num_threads()
    with pytest.raises(KeyError), protocol.threads(before + 1):
        assert torch.get_num_threads() == before + 1
        raise KeyError
    with protocol.threads(0):
        assert torch.get_num_threads() == before
    assert torch.get_num_threads() == before


# ---- floors


@pytest.mark.parametrize("name", ["llava-1.5-7b", "llava-1.5-13b", "llava-1.6-mistral-7b"])
def test_a_configuration_in_plain_numbers_is_the_one_that_cost_knows(name):
    known = MODELS[{"llava-1.5-7b": "LLaVA-1.5-7B", "llava-1.5-13b": "LLaVA-1.5-13B"}.get(name, "LLaVA-1.6-Mistral-7B")]
    spec = floors.spec(KNOWN[name].config())
    for part in ("hidden", "intermediate", "layers", "heads", "kv_heads", "vision"):
        assert getattr(spec, part) == getattr(known, part)


def test_floors_are_those_of_the_handbook_to_the_digit():
    """LLaVA-1.5-7B on an H100: 8.44, 3.97 and 3.96 ms for 636, 187 and 100 tokens; 3.97 ms for a later token."""
    model = MODELS["LLaVA-1.5-7B"]
    assert [round(1e3 * floors.prefill(model, PRINTED, n, 16), 2) for n in (636, 187, 100)] == [8.44, 3.97, 3.96]
    assert round(1e3 * floors.decode(model, PRINTED, 187, 16), 2) == 3.97
    assert round(floors.flops(model, 636) / floors.flops(model, 187), 2) == 3.43


def test_no_floor_where_no_peak_is_known_or_a_cache_may_hold_the_weights():
    model = MODELS["LLaVA-1.5-7B"]
    assert floors.prefill(model, MEASURED, 636, 8) is None and floors.prefill(model, MEASURED, 636, 32) > 0
    assert floors.decode(MODELS["tiny"], PRINTED, 187, 16) is None


@pytest.mark.parametrize(
    "name, known",
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-40GB", "A100-40"),
        ("NVIDIA A100-SXM4-80GB", "A100-80"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("Tesla T4", "T4"),
        ("NVIDIA L4", "L4"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("NVIDIA L40S", None),
        ("NVIDIA GeForce RTX 4090 Ti", "RTX 4090"),
        ("NVIDIA A10G", None),
    ],
)
def test_a_gpu_is_found_in_the_data_sheets_by_its_name(name, known):
    assert floors.sheet(name) == known


def test_a_measured_peak_rises_with_what_is_reached_and_a_printed_one_stays():
    assert MEASURED.at_least(3e11, 1.0, 32).hardware == HardwareSpec(10, 0.2, None, 0.3)
    assert MEASURED.at_least(3e11, 1.0, 16).hardware == HardwareSpec(10, 0.3, None, 0.1)
    assert MEASURED.at_least(1e10, 1.0, 32) == MEASURED and PRINTED.at_least(1e20, 1.0, 16) == PRINTED
    assert MEASURED.reads_at_least(2e10, 1.0).hardware.bandwidth == 20 and MEASURED.reads_at_least(1, 1.0) == MEASURED
    other = floors.Peaks(HardwareSpec(5, 0.4, None, 0.05), "measured", True)
    assert MEASURED.best(other).hardware == HardwareSpec(10, 0.4, None, 0.1)
    assert floors.Peaks.of(MEASURED.record()) == MEASURED and "10 GB/s, FP32 0.1" in MEASURED.words()


def test_a_time_below_its_floor_is_told():
    assert floors.below("A", 1.0, None, PRINTED) is None and floors.below("A", 1.0, 1.0, PRINTED) is None
    assert "A took 999 ms, below its floor of 1000 ms" in floors.below("A", 0.999, 1.0, PRINTED)
    assert floors.below("A", 0.98, 1.0, MEASURED) is None, "a measured peak has its own error"
    assert floors.below("A", 0.96, 1.0, MEASURED)


# ---- goals


@pytest.mark.parametrize(
    "measured, bounds, verdict",
    [
        (1.0, {"least": 1}, "met"),
        (0.99, {"least": 1}, "missed"),
        (1.0, {"most": 1}, "met"),
        (1.01, {"most": 1}, "missed"),
        (5.0, {}, "reported"),
        (0.0, {"most": 1}, "met"),
        (None, {"least": 1}, "not run here: needs a CUDA device"),
        (None, {"least": 1, "reason": "too late"}, "too late"),
    ],
)
def test_a_verdict(measured, bounds, verdict):
    goal = goals.Goal("speed", measured, unit=" x", **bounds)
    assert goal.verdict == goal.record()["verdict"] == verdict
    line = goals.words([goal.record()]).splitlines()[1]
    assert line.endswith(verdict) and (goal.aim in line) and ("None" not in line)


@pytest.mark.parametrize(
    "measured, ends, verdict",
    [
        (1.2, (1.1, 1.3), "met"),
        (1.2, (0.9, 1.3), "in doubt: 95 % interval 0.9 to 1.3"),
        (0.8, (0.7, 0.9), "missed"),
        (0.9, (0.7, 1.1), "in doubt: 95 % interval 0.7 to 1.1"),
        (None, (0.7, 1.1), "not run here: needs a CUDA device"),
    ],
)
def test_an_interval_that_reaches_across_is_a_doubt(measured, ends, verdict):
    assert goals.Goal("speed", measured, least=1).unless([*ends]).verdict == verdict


def written(folder, name, date, device, *aims):
    told = {"bench": name, "conditions": {"date": date, "device": device, "load": 0.1}}
    (folder / f"{date[:10]}-{name}-{device}.json").write_text(json.dumps(told | {"goals": [a.record() for a in aims]}))


def test_the_goals_of_the_newest_records(capsys, tmp_path):
    one, gpu = goals.Goal("A", 2.0, least=1, unit=" x"), goals.Goal("B, GPU", None, least=1)
    written(tmp_path, "prefill", "2026-01-02 10:00", "cpu", goals.Goal("A", 0.5, least=1, unit=" x"))
    written(tmp_path, "prefill", "2026-01-10 09:00", "cpu", gpu, one)
    assert main(["bench", "goals", str(tmp_path), "--markdown"]) == 0
    *_, first, second = capsys.readouterr().out.splitlines()
    file = f"{tmp_path}/2026-01-10-prefill-cpu.json"
    assert first == f"| A | >= 1 x | 2 x | met | [prefill]({file}), 2026-01-10, load 0.1 |"
    assert second == "| B, GPU | >= 1 |  | not run here: needs a CUDA device |  |"
    written(tmp_path, "gpu", "2026-01-03 10:00", "cuda", goals.Goal("B, GPU", 0.5, least=1))
    assert main(["bench", "goals", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert {line[0]: line.split()[-1] for line in lines} == {"A": "met", "B": "missed"}, "measured where it could be"


def test_no_records_no_goals(capsys, tmp_path):
    assert main(["bench", "goals", str(tmp_path / "none")]) == 2
    assert "there is no record of a benchmark in" in capsys.readouterr().err


# ---- the record


def arguments(tmp_path, **given):
    return SimpleNamespace(**{"out": str(tmp_path), "json": False} | given)


def test_a_dated_file_in_a_folder_says_what_and_where(tmp_path, capsys):
    found = {"bench": "prefill", "conditions": record.conditions("cpu") | {"dtype": "float32"}, "failures": []}
    record.deliver(found, "words", arguments(tmp_path, out=str(tmp_path / "new" / "folder")))
    (file,) = (tmp_path / "new" / "folder").iterdir()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d-prefill-[a-z0-9-]+-cpu\.json", file.name)
    words, _, last = capsys.readouterr().out.rstrip("\n").split("\n")
    assert words == "words" and json.loads(last) == json.loads(file.read_text()) == found
    for name in "date device_name processor processors threads load python torch transformers".split():
        assert name in found["conditions"]
    assert torch.__version__ in record.machine(found["conditions"])


def test_json_alone_and_a_named_file(tmp_path, capsys):
    found = {"bench": "prefill", "conditions": record.conditions("cpu")}
    record.deliver(found, "words", arguments(tmp_path, out=str(tmp_path / "a.json"), json=True))
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "a.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"], "no part is left behind"


def test_a_failure_ends_the_run_behind_the_record(tmp_path, capsys):
    found = {"bench": "prefill", "conditions": {}, "failures": ["A is below its floor"]}
    with pytest.raises(SystemExit, match=r"^longtail: A is below its floor$"):
        record.deliver(found, "words", arguments(tmp_path, out=None))
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == found


def test_where_a_record_cannot_be_written_is_said_before_anything_runs(tmp_path):
    for fine in (None, "a.json", "folder/of/results", str(tmp_path)):
        assert record.checked(fine) == fine
    with pytest.raises(ValueError, match=r"--out takes a .json file or a folder, got 'a.csv'"):
        record.checked("a.csv")
