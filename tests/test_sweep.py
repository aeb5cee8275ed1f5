"""A sweep: what its values say, what its rows hold, what it does when a method cannot run or somebody stops it."""

import csv
import dataclasses
import json
import threading
from dataclasses import dataclass

import pytest

import longtail
from longtail import REDUCERS, LongTail, Reducer, TopK, sweep
from longtail.__main__ import main
from longtail.front import front, summary
from longtail.points import MOST, Point, numbers_of, plan, points, values
from longtail.reducer import param, parse, spec
from longtail.versus import agreement, divergence

# ---- what is swept


def others(parameter):
    """Values of a parameter beside its default."""
    if parameter.choices:
        return [choice for choice in parameter.choices if choice != parameter.default]
    if parameter.kind is bool:
        return [not parameter.default]
    return ["0-3,7"] if parameter.kind is str else [parameter.low, parameter.high]


def reached(kind: type[Reducer]):
    """The reducer as it comes, and with each parameter elsewhere, so far as it allows that alone."""
    yield kind()
    for parameter in kind.parameters():
        for value in others(parameter):
            try:
                yield kind(**{parameter.name: value})
            except ValueError:
                continue


@pytest.mark.parametrize("name", REDUCERS)
def test_spec_is_the_inverse_of_parse(name):
    made = list(reached(REDUCERS[name]))
    assert len(made) > len(REDUCERS[name].parameters()), "every parameter was moved"
    assert [parse(spec(reducer)) for reducer in made] == made
    assert spec(made[0]) == name, "what is at its default is not said"


def test_spec_writes_what_a_person_would():
    assert spec(LongTail(alpha=0.1, text_stage=False)) == "LongTail:alpha=0.1:text_stage=false"


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("0.1,0.24, 0.5", [0.1, 0.24, 0.5]),
        ("0.05:0.25:0.05", [0.05, 0.1, 0.15, 0.2, 0.25]),
        ("32:64:16, 134", [32, 48, 64, 134]),
        ("1:2:0.7", [1, 1.7]),
        ("8,8.0", [8]),
    ],
)
def test_values(text, wanted):
    assert values(text) == wanted
    assert [type(value) for value in values(text)] == [type(value) for value in wanted]


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("", "there is no value to sweep"),
        ("a,b", "values are numbers, comma between, or low:high:step, got 'a'"),
        ("1:2", "with low below high and a step above 0, got '1:2'"),
        ("2:1:1", "with low below high"),
        ("1:2:0", "a step above 0"),
        ("1:2:-1", "a step above 0"),
        ("nan", "with low below high"),
        ("0:inf:1", "with low below high"),
        ("0:1e308:1e-300", f"more than {MOST} values: take a larger step"),
    ],
)
def test_bad_values_are_refused(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        values(text)


def test_points_of_a_method():
    assert [point.reducer() for point in points("LongTail", "alpha", [0.1, 0.5])] == [
        LongTail(alpha=0.1),
        LongTail(alpha=0.5),
    ]
    assert points("TopK", "alpha", [0.1, 0.5]) == [Point("TopK")], "what has no alpha runs once, as it comes"
    assert points("VisionZip", "budget", [64])[0].reducer() == REDUCERS["VisionZip"].at(64)
    assert points("TRIM:sign=paper", "budget", [8])[0].reducer() == parse("TRIM:sign=paper", 8)
    assert "budget" in numbers_of("VisionZip") and "visual_stage" not in numbers_of("LongTail")


def test_a_plan_leaves_full_out():
    assert plan(["Full", "TopK", "TopK"], "budget", [4]) == [Point("TopK", "budget", 4)]


@pytest.mark.parametrize(
    "methods, parameter, given, sentence",
    [
        (["LongTail", "Nope"], "alpha", [0.1], "there is no method 'Nope'"),
        (["Full"], "alpha", [0.1], "there is no method to sweep: choose from LongTail"),
        (["TopK"], "alpha", [0.1], "no parameter 'alpha' of TopK can be swept: choose one of budget, layer"),
        (["LongTail"], "visual_stage", [1], "no parameter 'visual_stage' of LongTail"),
        (["LongTail"], "alpha", [5, 6], r"LongTail.alpha must be between 0.01 and 1, got 5"),
        (["TopK"], "budget", [2.5], "whole number of visual tokens, at least 1, got 2.5"),
        (["LongTail"], "budget", [0], "at least 1, got 0"),
    ],
)
def test_what_cannot_be_swept_is_refused(methods, parameter, given, sentence):
    with pytest.raises(ValueError, match=sentence):
        plan(methods, parameter, given)


# ---- what came of it


def test_front_is_what_nothing_beats():
    cost = [(9.8, 0.5), (10, 0.7), (20, 0.6), (30, 0.7), (40, 1.0)]
    rows = [{"layer_mean": tokens, "agreement": share} for tokens, share in cost]
    assert front([*rows, {"reason": "none"}]) == [rows[1], rows[4]]
    timed = [{"first_of_full": 1.0, "agreement": 1.0}, {"first_of_full": 0.5, "agreement": 0.9}]
    assert front(timed, "first_of_full") == timed[::-1]


def test_summary_means_over_questions(llava, picture):
    asked = [(picture, "What is here?"), (picture, "Where?")]
    rows = [step.row for step in sweep.sweep(llava, asked, points("TopK", "budget", [4, 9]), 6) if step.row]
    full, four, nine = summary(rows)
    assert [row["spec"] for row in (full, four, nine)] == ["Full", "TopK:budget=4", "TopK:budget=9"]
    both = [row for row in rows if row["value"] == 4]
    assert four["n"] == 2 and four["agreement"] == pytest.approx(sum(row["agreement"] for row in both) / 2)
    assert four["question"] == min(both, key=lambda row: row["agreement"])["question"], "where it strays furthest"


# ---- the sweep


@dataclass(frozen=True)
class Choosy(Reducer):
    """Wants what this model does not have."""

    budget: int = param(8, 1, 576, 1, "how many")

    def reduce(self, visual):
        raise ValueError("this model has no CLIP text tower")


def test_rows_are_what_answers_say(llava, picture):
    steps = list(sweep.sweep(llava, [(picture, "What?")], points("LongTail", "alpha", [0.2, 0.6]), 6))
    assert [(step.done, step.of) for step in steps] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert steps[0].row is None and steps[0].left is None and steps[-1].left == 0 < steps[1].left
    full, *rows = (step.row for step in steps[1:])
    assert (full["method"], full["agreement"], full["same"], full["kl"], full["first_of_full"]) == (
        "Full",
        1,
        True,
        0,
        1,
    )
    unpruned = longtail.answer(llava, picture, "What?", max_new_tokens=6)
    for row in rows:
        alone = longtail.answer(llava, picture, "What?", parse(row["spec"]), max_new_tokens=6)
        assert (row["answer"], row["visual"], row["layer_mean"]) == (
            alone.text,
            alone.tokens.visual,
            alone.tokens.layer_mean,
        )
        assert row["agreement"] == agreement(alone.text, unpruned.text)
        assert row["kl"] == pytest.approx(divergence(alone.first_logits, unpruned.first_logits), abs=1e-6)
        assert row["first_of_full"] == pytest.approx(row["first_token"] / full["first_token"])
        assert (row["parameter"], row["n"], row["image"]) == ("alpha", 1, None)
    json.dumps([full, *rows], allow_nan=False)


def test_order_is_shuffled_by_the_seed_and_full_is_first(llava, picture):
    asked = points("TopK", "budget", [1, 2, 3, 4, 5, 6])

    def order(seed):
        two = [(picture, "What?"), (picture, "Who?")]
        return [step.row["value"] for step in sweep.sweep(llava, two, asked, 1, seed) if step.row]

    first = order(0)
    assert first == order(0) != order(1)
    assert first[0] is first[7] is None and first[1:7] != [1, 2, 3, 4, 5, 6] and first[1:7] != first[8:]
    assert sorted(first[1:7]) == sorted(first[8:]) == [1, 2, 3, 4, 5, 6]


def test_one_run_goes_before_uncounted(llava, picture, monkeypatch):
    engine, runs = sweep.answer, []
    monkeypatch.setattr(sweep, "answer", lambda *a, **o: runs.append(a[3]) or engine(*a, **o))
    list(sweep.sweep(llava, [(picture, "What?")], [Point("TopK")], 1))
    assert runs == [longtail.Full(), longtail.Full(), TopK()]


def test_what_cannot_run_gives_its_reason_and_the_others_go_on(llava, picture, monkeypatch):
    monkeypatch.setitem(REDUCERS, "Choosy", Choosy)
    asked = [*points("Choosy", "budget", [4]), *points("TopK", "budget", [4, 900])]
    rows = {step.row["spec"]: step.row for step in sweep.sweep(llava, [(picture, "What?")], asked, 2) if step.row}
    assert rows["Choosy:budget=4"]["reason"] == "this model has no CLIP text tower"
    assert "must be between" in rows["TopK:budget=900"]["reason"]
    assert rows["TopK:budget=4"]["agreement"] >= 0 and "agreement" not in rows["TopK:budget=900"]
    assert {row["spec"] for row in summary(list(rows.values()))} == {"Full", "TopK:budget=4"}


def test_a_stop_ends_it_without_a_half_row(llava, picture, monkeypatch):
    stop, engine = threading.Event(), sweep.answer

    def stopping(llava, image, question, reducer, **options):
        if reducer == TopK(budget=5):
            stop.set()
        return engine(llava, image, question, reducer, **options)

    monkeypatch.setattr(sweep, "answer", stopping)
    asked = points("TopK", "budget", [4, 5, 6])
    rows = [step.row for step in sweep.sweep(llava, [(picture, "What?")], asked, 4, stop=stop) if step.row]
    assert 1 <= len(rows) < 4 and all(row["value"] != 5 and row["answer"] for row in rows)


def test_a_limit_of_time_is_a_reason(llava, picture, monkeypatch):
    engine = sweep.answer

    def late(llava, image, question, reducer, **options):
        given = engine(llava, image, question, reducer, **options)
        return given if reducer == longtail.Full() else dataclasses.replace(given, finished="time")

    monkeypatch.setattr(sweep, "answer", late)
    steps = list(sweep.sweep(llava, [(picture, "What?")], [Point("TopK")], 2, time_limit=30))
    assert steps[-1].row["reason"] == "it took longer than 30 s"
    monkeypatch.setattr(sweep, "answer", engine)
    with pytest.raises(ValueError, match="the unpruned model took longer than 0 s over"):
        list(sweep.sweep(llava, [(picture, "What?")], [Point("TopK")], 2, time_limit=0))


def test_too_many_runs_are_refused_before_the_first(llava, picture):
    with pytest.raises(ValueError, match=r"at most 200 runs, this one 3 x \(1 \+ 70\) = 213"):
        next(sweep.sweep(llava, [(picture, "What?")] * 3, points("TopK", "budget", list(range(1, 71)))))


def test_a_question_nobody_could_answer_is_refused(llava, picture):
    with pytest.raises(ValueError, match="the question is empty"):
        list(sweep.sweep(llava, [(picture, "")], [Point("TopK")], 2))


# ---- the command


@pytest.fixture
def photo(picture, tmp_path):
    path = tmp_path / "photo.png"
    picture.save(path)
    return str(path)


@pytest.fixture
def run(capsys, folder):
    def run_(*argv):
        status = main(["sweep", "--model", str(folder), "--max-new-tokens", "3", *argv])
        return status, *capsys.readouterr()

    return run_


def test_command_prints_a_table_with_conditions(run, photo):
    status, out, _ = run(photo, "What?", "--methods", "Full,LongTail,TopK", "--over", "budget=4,9")
    assert status == 0 and "float32" in out and "n = 1" in out
    first = [line.removeprefix("*").split()[0] for line in out.splitlines()[1:6]]
    assert first == ["Full", "LongTail:budget=4", "LongTail:budget=9", "TopK:budget=4", "TopK:budget=9"]


def test_command_writes_json_and_csv(run, photo, tmp_path):
    base = (photo, "What?", "--methods", "LongTail,TopK", "--over", "alpha=0.2:0.6:0.2")
    status, out, _ = run(*base, "--json", "--out", str(tmp_path / "s.csv"))
    record = json.loads(out)
    assert status == 0 and len(record["rows"]) == 5 and record["rows"][0]["spec"] == "Full"
    rows = list(csv.DictReader((tmp_path / "s.csv").open()))
    assert [row["spec"] for row in rows] == [row["spec"] for row in record["rows"]]
    assert run(*base, "--out", str(tmp_path / "s.json"))[0] == 0
    assert json.loads((tmp_path / "s.json").read_text())["rows"][0]["agreement"] == 1


def test_command_takes_the_examples(run, photo, tmp_path, monkeypatch):
    (tmp_path / "examples.json").write_text(
        json.dumps([{"image": "photo.png", "question": q} for q in ("Who?", "What?")])
    )
    monkeypatch.setattr(sweep, "EXAMPLES", tmp_path / "examples.json")
    status, out, _ = run("--examples", "--methods", "TopK", "--over", "budget=4", "--json")
    assert status == 0 and [row["question"] for row in json.loads(out)["rows"]] == ["Who?", "Who?", "What?", "What?"]


@pytest.mark.parametrize(
    "argv, sentence",
    [
        (("{photo}",), "sweep takes an image and a question, or --examples alone"),
        (("{photo}", "q", "--examples"), "or --examples alone"),
        (("{photo}", "q", "--over", "alpha"), "there is no value to sweep"),
        (("{photo}", "q", "--over", "alpha=x"), "values are numbers"),
        (("{photo}", "q", "--methods", "Nope"), "there is no method 'Nope'"),
        (("{photo}", "q", "--out", "s.pdf"), "--out takes a .json or .csv file, got 's.pdf'"),
        (("missing.png", "q"), "there is no image file at missing.png"),
    ],
)
def test_what_is_wrong_is_one_line_and_status_two(run, photo, argv, sentence):
    status, out, err = run(*(a.format(photo=photo) for a in argv))
    assert status == 2 and out == "" and err.startswith("longtail: ") and err.count("\n") == 1 and sentence in err
