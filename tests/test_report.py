"""What answers have in common with the unpruned one, and reports: written, opened again, refused."""

import copy
import json
import math
import re

import pytest
import torch

import longtail
from longtail import report
from longtail.export import measure, write
from longtail.versus import agreement, differences, divergence, overlap


@pytest.fixture(scope="module")
def comparison(llava, picture):
    reducers = [longtail.Full(), longtail.LongTail(alpha=0.5), longtail.make("ToMe"), longtail.make("SparseVLM")]
    return measure(llava, picture, "<b>What</b> & why?", reducers, repeat=2, max_new_tokens=6)


@pytest.mark.parametrize(
    "text, reference, line",
    [
        ("a b c", "a b c", [("same", "a b c")]),
        ("a x c", "a b c", [("same", "a"), ("missing", "b"), ("added", "x"), ("same", "c")]),
        ("", "a b", [("missing", "a b")]),
        ("a b", "", [("added", "a b")]),
        ("", "", []),
        ("b b a", "a b b", [("added", "b b"), ("same", "a"), ("missing", "b b")]),
    ],
)
def test_differences(text, reference, line):
    found = differences(text, reference)
    assert " ".join(words for kind, words in found if kind != "missing") == text
    assert " ".join(words for kind, words in found if kind != "added") == reference
    if text != "b b a":  # where several readings are right
        assert found == line


def test_agreement_is_of_words():
    assert agreement("a b c", "a b c") == 1 == agreement("", "")
    assert agreement("a b", "c d") == 0
    assert agreement("a b c d", "a b") == pytest.approx(2 * 2 / 6)


def test_divergence_is_kl_of_the_reference():
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.5, 0.25])
    assert divergence(q.log() + 7, p.log() - 3) == pytest.approx(0.5 * math.log(2) - 0.25 * math.log(2))
    assert divergence(p, p) == 0
    oracle = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=torch.tensor([1.0, 2.0, -3.0])),
        torch.distributions.Categorical(logits=torch.tensor([0.0, 5.0, 1.0])),
    )
    assert divergence(torch.tensor([0.0, 5.0, 1.0]), torch.tensor([1.0, 2.0, -3.0])) == pytest.approx(float(oracle))


def test_overlap_counts_patches():
    assert overlap([1, 2, 3], [2, 3, 4]) == 0.5
    assert overlap([1, -1], [1]) == 1, "a token that stands on no patch is none"
    assert overlap([-1], []) == 1 and overlap([1], [2]) == 0


def test_records_stand_beside_the_unpruned_one(comparison):
    full, ours, *_ = comparison.records
    assert "versus" not in full
    assert ours["versus"]["faster"]["total"] == pytest.approx(full["seconds"]["total"] / ours["seconds"]["total"])
    assert ours["versus"]["kl"] > 0 and 0 <= ours["versus"]["agreement"] <= 1


@pytest.mark.parametrize("ending", ["json", "html"])
def test_a_report_comes_back_as_it_went(comparison, tmp_path, ending):
    path = tmp_path / f"report.{ending}"
    write(comparison, str(path))
    again = report.read(path.read_text())
    assert again.crop.tobytes() == comparison.crop.tobytes() and again.conditions == comparison.conditions
    for mine, theirs in zip(again.records, json.loads(json.dumps(comparison.records)), strict=True):
        assert {name: mine[name] for name in theirs} == theirs


def test_the_page_runs_and_fetches_nothing(comparison):
    page = report.page(comparison)
    assert "<script" not in page and "<b>What" not in page and "&lt;b&gt;What&lt;/b&gt; &amp; why?" in page
    assert not re.search(r"(src|href)=['\"](?!data:)", page)
    assert page.count("<section>") == 4 and "knee i* = " in page and "agreement with Full" in page


def first(file):
    return file["answers"][1]


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda f: f.pop("crop"), "crop, field required"),
        (lambda f: f.update(crop="https://example.org/x.png"), "crop, string should match pattern"),
        (lambda f: f.update(crop="data:image/png;base64,AAAA"), "is not a readable"),
        (lambda f: f.update(crop="data:image/png;base64,%%%"), "picture in this report is damaged"),
        (lambda f: f.update(answers=[]), "answers, list should have at least 1 item"),
        (lambda f: f.update(answers=f["answers"] * 3), "answers, list should have at most 8 items"),
        (lambda f: first(f).update(role=["gone"] * 36), "answers.1.role.0, input should be 'kept'"),
        (lambda f: first(f)["seconds"].update(total=math.inf), "total, input should be a finite number"),
        (lambda f: first(f)["seconds"].update(total="1"), "total, input should be a valid number"),
        (lambda f: first(f)["seconds"].update(total=-1), "total, input should be greater than or equal to 0"),
        (lambda f: first(f)["tokens"].update(visual=1.5), "visual, input should be a valid integer"),
        (lambda f: first(f).update(source=[99] * 36), "its counts contradict each other"),
        (lambda f: first(f).update(order=[0] * 36), "its counts contradict each other"),
        (lambda f: first(f).update(keep=[10**9]), "keep"),
        (lambda f: first(f)["curve"].update(knee=99), "its counts contradict each other"),
        (lambda f: first(f).update(views=[{"grid": [6, 5], "box": [0, 0, 1, 1]}]), "its counts contradict each other"),
        (lambda f: first(f).update(views=[{"grid": [6, 6], "box": [0, 0, 0, 1]}]), "box.2, input should be greater"),
        (lambda f: first(f)["tokens"].update(prompt=1), "its counts contradict each other"),
        (
            lambda f: first(f).update(role=[], source=[], views=[{"grid": [200, 200], "box": [0, 0, 1, 1]}]),
            "contradict",
        ),
        (lambda f: first(f).update(visual_span=[9, 3]), "its counts contradict each other"),
        (lambda f: first(f).update(recycled=[[0, 10**6]]), "its counts contradict each other"),
        (lambda f: first(f).update(method=["x"]), "method, input should be a valid string"),
        (lambda f: first(f).update(answer="x" * 200_000), "answer, string should have at most 20000"),
    ],
)
def test_a_hostile_report_is_a_sentence(comparison, change, sentence):
    file = copy.deepcopy(comparison.file())
    change(file)
    with pytest.raises(ValueError, match=re.escape(sentence)) as refusal:
        report.read(json.dumps(file))
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 400


@pytest.mark.parametrize("text", ["", "null", "[]", "{", "<html>", "[" * 100_000, "1e999", '{"answers": {"a": 1}}'])
def test_what_is_no_report_is_a_sentence(text):
    with pytest.raises(ValueError, match="this is no report of a comparison"):
        report.read(text)


def test_a_vast_report_is_not_parsed():
    with pytest.raises(ValueError, match="at most 20,000,000 are read"):
        report.read(" " * (report.LONGEST + 1))
