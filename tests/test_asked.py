"""CLIP's text tower runs once for all views, and once for all methods beside each other; its time is told to each."""

import pytest
import torch

import longtail
from longtail import clock
from longtail.bench.model import BLANK
from longtail.models import drawn, miniatures
from longtail.models.asked import Asked, Once
from longtail.models.clip import ClipText
from longtail.models.precision import Precision

ASK = "What stands in the corner?"
GUIDED = [longtail.Full(), longtail.make("TRIM"), longtail.make("CDPruner", budget=8), longtail.make("Recoverable")]
TEXT, PREAMBLE = 5.0, 7.0  # seconds that the stand-ins take


@pytest.fixture(params=("llava-1.5", "llava-1.6-vicuna"))
def guided(request, tmp_path):
    """A model with a CLIP text tower; LLaVA-1.6 sees several views."""
    miniatures.write(request.param, tmp_path)
    miniatures.write_clip(tmp_path)
    return longtail.load(str(tmp_path))


@pytest.fixture
def counted(monkeypatch):
    """What the text tower was asked, and a clock that moves only while it runs."""
    asked, now = [], [0.0]
    monkeypatch.setattr(clock.time, "perf_counter", lambda: now[0])
    for name, seconds in (("words", TEXT), ("last_words", PREAMBLE)):
        right = getattr(ClipText, name)

        def counting(self, text, name=name, seconds=seconds, right=right):
            asked.append((name, text))
            now[0] += seconds
            return right(self, text)

        monkeypatch.setattr(ClipText, name, counting)
    return asked


def test_once_for_all_views_of_an_answer(guided, picture, counted):
    for method in ("TRIM", "CDPruner"):
        counted.clear()
        answer = longtail.answer(guided, picture, ASK, longtail.make(method), max_new_tokens=1)
        assert counted == [("words", ASK)] and answer.seconds.method == TEXT
        again = longtail.answer(guided, picture, ASK, longtail.make(method), max_new_tokens=1, seen=answer.seen)
        assert len(counted) == 2 and again.seconds.method == TEXT, "another answer reads it anew"


def test_a_method_that_reads_no_text_pays_for_none(guided, picture, counted):
    answer = longtail.answer(guided, picture, ASK, longtail.LongTail(), max_new_tokens=1)
    assert counted == [] and answer.seconds.method == 0
    question = answer.visual[0].question
    assert not {"ids", "embeddings"} & set(vars(question)), "nobody read them, so nobody made them"
    assert len(question.ids) and question.embeddings.shape == (len(question.ids), miniatures.WIDTH)


def test_once_for_all_methods_beside_each_other(guided, picture, counted):
    released = longtail.make("Recoverable", variant="released")
    answers = longtail.compare(guided, picture, ASK, [*GUIDED, released], max_new_tokens=1)
    assert sorted(name for name, _ in counted) == ["last_words", "words"]
    assert [answer.seconds.method for answer in answers] == [0, TEXT, TEXT, TEXT, PREAMBLE]
    counted.clear()
    longtail.compare(guided, picture, ASK, GUIDED[:2], max_new_tokens=1)
    assert counted == [("words", ASK)], "another comparison reads it anew"


def test_what_is_shared_is_what_each_would_have_read(guided, picture):
    together = longtail.compare(guided, picture, ASK, GUIDED, max_new_tokens=3)
    for answer, reducer in zip(together, GUIDED, strict=True):
        alone = longtail.answer(guided, picture, ASK, reducer, max_new_tokens=3)
        assert alone.token_ids == answer.token_ids
        assert all(torch.equal(a.keep, b.keep) for a, b in zip(alone.reduced, answer.reduced, strict=True))


def test_a_drawn_model_reads_its_text_in_every_answer(counted):
    model = drawn.drawn("tiny-llava-1.6-vicuna", Precision(torch.float32), "cpu", text=13, size=(144, 48))
    for turn in (1, 2):
        said = longtail.answer(model, BLANK, "?", longtail.make("TRIM"), max_new_tokens=1)
        assert len(counted) == turn and said.seconds.method == TEXT


def test_words_made_for_another_are_owed_once():
    made = []
    once = Once(lambda: made.append(1) or torch.ones(1, 4), torch.device("cpu"))
    first = Asked(lambda: torch.arange(3), lambda ids: ids, once, lambda words, visual: words.sum() + visual)
    second, fresh = first.beside(), first.anew()
    assert first.relevance(1) == 5 and first.relevance(2) == 6 and first.owed == 0 and made == [1]
    once.seconds = 4.0
    assert second.owed == 0 and second.relevance(3) == 7 and second.relevance(4) == 8 and second.owed == 4.0
    assert fresh.relevance(0) == 4 and fresh.owed == 0 and made == [1, 1]
