"""The command line as a person or a script meets it: words, JSON, files, one line with status 2 for what is wrong."""

import csv
import json
import re
import subprocess
import sys

import pytest
from test_image import bomb, encoded

import longtail
from longtail.__main__ import main

QUESTION = "What is here?"


@pytest.fixture
def photo(picture, tmp_path):
    path = tmp_path / "photo.png"
    picture.save(path)
    return str(path)


@pytest.fixture
def run(capsys):
    def run_(*argv):
        status = main([str(a) for a in argv])
        out, err = capsys.readouterr()
        return status, out, err

    return run_


def test_answer_in_words(run, photo, folder):
    status, out, err = run("answer", photo, QUESTION, "--model", folder, "--max-new-tokens", 5)
    assert status == 0 and err == ""
    assert "of 36 visual tokens, knee i* = " in out and "first token" in out and "float32, cpu" in out


def test_answer_as_json_equals_the_library(run, photo, folder, llava):
    flags = ["--alpha", 0.5, "--reading", "head", "--no-text-stage", "--layer", 9, "--max-new-tokens", 6]
    status, out, err = run("answer", photo, QUESTION, "--model", folder, "--method", "LongTail", *flags, "--json")
    record = json.loads(out)
    same = longtail.answer(
        llava,
        photo,
        QUESTION,
        longtail.LongTail(alpha=0.5, reading="head", text_stage=False, layer=9),
        max_new_tokens=6,
    ).record()
    assert status == 0 and err == ""
    for name in ("answer", "params", "tokens", "keep", "source", "role", "curve", "finished", "seed"):
        assert record[name] == same[name]


def test_flags_may_stand_anywhere(run, photo, folder):
    status, out, _ = run("answer", "--alpha", 0.9, photo, "--model", folder, QUESTION, "--max-new-tokens", 1, "--json")
    assert status == 0 and json.loads(out)["params"]["alpha"] == 0.9


def test_seed_reaches_methods_that_draw(run, photo, folder):
    ask = (
        "answer",
        photo,
        QUESTION,
        "--model",
        folder,
        "--method",
        "Random",
        "--budget",
        9,
        "--max-new-tokens",
        1,
        "--json",
    )
    kept = [json.loads(run(*ask, "--seed", seed)[1])["keep"] for seed in (1, 1, 2)]
    assert kept[0] == kept[1] != kept[2]


def test_compare_writes_its_files(run, photo, folder, tmp_path):
    base = ("compare", photo, QUESTION, "--model", folder, "--methods", "Full,LongTail,Random", "--budget", 9)
    for ending in ("json", "csv", "html"):
        status, out, err = run(*base, "--repeat", 2, "--max-new-tokens", 3, "--out", tmp_path / f"c.{ending}")
        assert status == 0 and err == "" and "median of 2 in rotated order" in out
    record = json.loads((tmp_path / "c.json").read_text())
    assert [a["tokens"]["visual"] for a in record["answers"]] == [36, 9, 9]
    rows = list(csv.DictReader((tmp_path / "c.csv").open()))
    assert [row["method"] for row in rows] == ["Full", "LongTail", "Random"] and rows[0]["repeat"] == "2"
    page = (tmp_path / "c.html").read_text()
    assert page.count("<section>") == 3 and page.count("h-0.1667z") == 2 * 27
    assert "<script" not in page and not re.search(r"(src|href)='(?!data:)", page)


def test_set_and_json(run, photo, folder):
    base = ("compare", photo, QUESTION, "--model", folder, "--methods", "LongTail,TopK", "--max-new-tokens", 2)
    settings = ("--set", "LongTail.cut=in_tower", "--set", "TopK.budget=5", "--set", "LongTail.text_stage=false")
    status, out, _ = run(*base, *settings, "--json")
    answers = json.loads(out)["answers"]
    assert status == 0 and answers[0]["params"]["cut"] == "in_tower" and not answers[0]["params"]["text_stage"]
    assert answers[1]["tokens"]["visual"] == 5


def test_html_is_inert(run, photo, folder, tmp_path):
    run(
        "compare",
        photo,
        "<script>alert(1)</script>",
        "--model",
        folder,
        "--max-new-tokens",
        1,
        "--out",
        tmp_path / "x.html",
    )
    page = (tmp_path / "x.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page


def test_methods_lists_the_registry(run):
    status, out, _ = run("methods", "--json")
    rows = json.loads(out)
    assert status == 0 and [row["name"] for row in rows] == list(longtail.REDUCERS)
    longtail_row = next(row for row in rows if row["name"] == "LongTail")
    assert longtail_row["acts"] == ["trim", "reduce", "drop", "evict"]
    alpha = longtail_row["parameters"][0]
    assert (alpha["name"], alpha["default"], alpha["low"], alpha["high"]) == ("alpha", 0.24, 0.01, 1)
    words = run("methods")[1]
    assert all(f"{name}: " in words for name in longtail.REDUCERS) and "--similarity attention" in words


WRONG = [
    (("answer", "{text}", "q"), r"notes\.png is not a readable PNG"),
    (("answer", "{cut}", "q"), r"cut\.jpg is damaged or cut short"),
    (("answer", "{bomb}", "q"), r"bomb\.png is too large: at most 40 megapixels"),
    (("answer", "{none}", "q"), r"there is no image file at"),
    (("answer", "{photo}", ""), r"the question is empty"),
    (("answer", "{photo}", "x" * 10_000), r"10,000 characters, at most 4,000"),
    (("answer", "{photo}", "q", "--alpha", "0"), r"LongTail\.alpha must be between 0\.01 and 1, got 0"),
    (("answer", "{photo}", "q", "--alpha", "2"), r"LongTail\.alpha must be between 0\.01 and 1, got 2"),
    (("answer", "{photo}", "q", "--alpha", "much"), r"argument --alpha: invalid float value: 'much'"),
    (
        ("answer", "{photo}", "q", "--reading", "both"),
        r"LongTail\.reading must be one of tail, head, threshold, got 'both'",
    ),
    (("answer", "{photo}", "q", "--alhpa", "1"), r"unrecognized arguments: --alhpa 1"),
    (("answer", "{photo}", "q", "--method", "Nope"), r"there is no method 'Nope': choose one of Full"),
    (("answer", "{photo}", "q", "--model", "{none}"), r"there is no model"),
    (("answer", "{photo}", "q", "--dtype", "int7"), r"dtype must be one of"),
    (("answer", "{photo}", "q", "--temperature", "9"), r"temperature must be between 0 and 5"),
    (("answer", "{photo}", "q", "--time-limit", "nan"), r"time_limit must be a finite number, got nan"),
    (("compare", "{photo}", "q", "--time-limit", "-1"), r"time_limit must be at least 0, got -1\.0"),
    (
        ("sweep", "{photo}", "q", "--over", "budget=1", "--time-limit", "inf"),
        r"time_limit must be a finite number, got inf",
    ),
    (("answer", "{photo}"), r"the following arguments are required: question"),
    (("compare", "{photo}", "q", "--methods", "Full,Nope"), r"there is no method 'Nope'"),
    (("compare", "{photo}", "q", "--methods", ","), r"names no method"),
    (("compare", "{photo}", "q", "--budget", "0"), r"budget must be between 1 and 576, got 0"),
    (("compare", "{photo}", "q", "--set", "LongTail=1"), r"--set takes METHOD\.NAME=VALUE"),
    (("compare", "{photo}", "q", "--set", "LongTail.alpha=x"), r"LongTail\.alpha must be a number, got 'x'"),
    (("compare", "{photo}", "q", "--set", "Full.alpha=1"), r"Full has no parameter 'alpha'"),
    (("compare", "{photo}", "q", "--repeat", "0"), r"repeat must be at least 1, got 0"),
    (
        ("compare", "{photo}", "q", "--max-new-tokens", "1", "--out", "c.pdf"),
        r"written as \.json, \.csv, \.html, got 'c\.pdf'",
    ),
    (("evaluate", "--methods", "Nope"), r"there is no method 'Nope'"),
    (("evaluate", "--budgets", "many"), r"--budgets takes whole numbers of at least 1"),
    (("evaluate", "--scenes", "0"), r"--scenes must be at least 1, got 0"),
    (("nothing",), r"invalid choice: 'nothing'"),
    ((), r"the following arguments are required: command"),
]


@pytest.mark.parametrize("argv, sentence", WRONG, ids=[" ".join(argv)[:60] for argv, _ in WRONG])
def test_what_is_wrong_is_one_line_and_status_two(run, photo, folder, picture, tmp_path, argv, sentence):
    files = {name: tmp_path / file for name, file in (("text", "notes.png"), ("cut", "cut.jpg"), ("bomb", "bomb.png"))}
    files["text"].write_text("I am no picture")
    files["cut"].write_bytes(encoded(picture, "JPEG")[:900])
    files["bomb"].write_bytes(bomb(20_000, 20_000))
    argv = [a.format(photo=photo, none=tmp_path / "none", **files) for a in argv]
    if argv[:1] in (["answer"], ["compare"], ["evaluate"], ["sweep"]) and "--model" not in argv:
        argv += ["--model", str(folder)]
    status, out, err = run(*argv)
    assert status == 2 and out == ""
    assert err.startswith("longtail: ") and err.count("\n") == 1 and re.search(sentence, err)
    assert run("answer", photo, QUESTION, "--model", folder, "--max-new-tokens", 1)[0] == 0  # the next run works


def test_evaluate_counts_and_marks(run, folder, tmp_path):
    out_file = tmp_path / "rows.json"
    status, out, _ = run(
        "evaluate", "--model", folder, "--methods", "Full,Random,Oracle",
        "--budgets", "own,4", "--scenes", 1, "--out", out_file,
    )  # fmt: skip
    record = json.loads(out_file.read_text())
    assert status == 0 and "held-out scenes (seeds 1010000 to 1010000)" in record["conditions"]
    assert [(r["method"], r["budget"]) for r in record["rows"]] == [
        ("Full", None), ("Random", None), ("Random", 4), ("Oracle", 4),
    ]  # fmt: skip
    assert "| Random | 4 |" in out


def test_evaluate_writes_its_table_into_the_card(run, folder):
    card = folder / "README.md"
    card.write_text("before\n<!-- accuracy begins -->\nold\n<!-- accuracy ends -->\nafter\n")
    base = ("evaluate", "--model", folder, "--methods", "Full", "--scenes", 1)
    assert run(*base, "--card")[0] == 0
    text = card.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text and "| Full | 36 |" in text
    card.write_text("no place\n")
    status, _, err = run(*base, "--card")
    assert status == 2 and "has no place for the table" in err


def test_as_a_module_in_a_process_of_its_own(photo, folder):
    """stdout holds JSON and nothing else; a refusal leaves it empty."""
    command = [
        sys.executable,
        "-m",
        "longtail",
        "answer",
        photo,
        QUESTION,
        "--model",
        str(folder),
        "--max-new-tokens",
        "1",
    ]
    fine = subprocess.run([*command, "--json"], capture_output=True, text=True)
    assert fine.returncode == 0 and json.loads(fine.stdout)["tokens"]["patches"] == 36 and fine.stderr == ""
    wrong = subprocess.run([*command, "--alpha", "7"], capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stdout == "" and wrong.stderr.count("\n") == 1
