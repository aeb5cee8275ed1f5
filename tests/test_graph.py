"""Decode replayed as a captured graph: on a CPU the tape of tests/tape.py stands in for CUDA's, and is as strict."""

from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace

import pytest
import tape
import torch
from conftest import in_one_view, random_llava

from longtail import REDUCERS, Full, LongTail, Reducer, TopK, answer, compare, generate, generate_batch, graph, preview
from longtail.clock import Clock
from longtail.decoder import Decoder
from longtail.models.llava import Llava
from longtail.models.miniatures import config, random_model
from longtail.reducer import spec
from longtail.reducers.fastv import FastV
from longtail.reducers.h2o import H2O
from longtail.reducers.pyramiddrop import PyramidDrop
from longtail.reducers.snapkv import SnapKV

NEW = 8


@pytest.fixture
def taped(monkeypatch):
    """Models whose steps are captured, on tape; the list tells how often."""
    captured = []

    def capture(work):
        captured.append(work)
        return tape.capture(work)

    monkeypatch.setattr(Llava, "capturable", property(lambda llava: True))
    monkeypatch.setattr(graph, "aside", lambda work: work())
    monkeypatch.setattr(graph, "capture", capture)
    return captured


@pytest.fixture
def endless(tiny, monkeypatch):
    """A model that never ends its answer."""
    monkeypatch.setattr(tiny, "ends", frozenset())
    monkeypatch.setattr(tiny, "graphs", None)
    return tiny


@pytest.mark.parametrize("name", REDUCERS)
def test_a_graph_changes_nothing(endless, picture, taped, name):
    """Words, counts and what is given up, after every token, as launched op by op."""
    asked = endless, picture, "What is it?", REDUCERS[name]()
    plain = list(generate(*asked, max_new_tokens=NEW, eager=True))
    replayed = list(generate(*asked, max_new_tokens=NEW))
    assert len(taped) == 1 and len(plain) == len(replayed) == NEW  # what is met first is launched
    assert replayed[-1].graphs == ("decode",)
    again = list(generate(*asked, max_new_tokens=NEW))
    at_once = not {"drop", "evict"} & set(asked[3].active()) or name == "LongTail"
    before = ("vision",) * ("trim" not in asked[3].active()) + ("prefill",) * at_once
    assert (again[0].graphs, again[-1].graphs, plain[-1].graphs) == (before, (*before, "decode"), ())
    for ours, theirs in (*zip(replayed, plain, strict=True), *zip(again, plain, strict=True)):
        same(ours, theirs)
    torch.testing.assert_close(again[0].first_logits, plain[0].first_logits, rtol=1e-4, atol=1e-4)


def same(ours, theirs):
    """Everything but times and how it was run."""
    for part in ("token_ids", "text", "lost", "recycled", "steps", "finished", "tokens"):
        assert getattr(ours, part) == getattr(theirs, part), part


@pytest.mark.parametrize(
    "reducer", [Full(), LongTail(), LongTail(heavy=0.2, recent=0.1), H2O(), SnapKV(), FastV(), PyramidDrop()], ids=spec
)
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_logits_are_those_of_plain_steps(taped, reducer, heads):
    """Step by step beside a decoder that launches, whatever tokens are read; grouped heads too."""
    llava = Llava(random_llava(key_value_heads=heads), None)
    torch.manual_seed(heads)
    embeddings = torch.randn(70, llava.model.config.text_config.hidden_size)
    decoders = [Decoder(llava, reducer) for _ in range(2)]
    with torch.inference_mode():
        for decoder in decoders:
            decoder.prefill(in_one_view(embeddings, (20, 56)), 70, 20, Clock(llava.device))
        plain, replayed = decoders[0], graph.Steps(decoders[1])
        for token in torch.randint(5, 90, (20, 1)):
            torch.testing.assert_close(replayed.step(token), plain.step(token), rtol=1e-4, atol=1e-5)
            assert decoders[1].lost() == decoders[0].lost()
            assert decoders[1].entries() == decoders[0].entries() and decoders[1].bytes() == decoders[0].bytes()


def test_sampled_words_are_the_same(endless, picture, taped):
    """The draw does not depend on how a step is launched."""
    asked = endless, picture, "What is it?", LongTail()
    options = {"max_new_tokens": NEW, "temperature": 1.5, "top_p": 0.9, "seed": 4}
    assert answer(*asked, **options).token_ids == answer(*asked, **options, eager=True).token_ids


def test_a_short_answer_is_not_captured(tiny, picture, taped):
    """Its steps would be over before."""
    said = answer(tiny, picture, "What is it?", max_new_tokens=graph.WARM_UPS + 1)
    assert said.tokens.generated <= graph.WARM_UPS + 1 and not taped


def test_on_a_cpu_nothing_is_captured(llava, picture):
    """The answer says how its steps were run."""
    assert not llava.capturable
    said = answer(llava, picture, "What is it?", max_new_tokens=4)
    assert said.graphs == () and said.record()["graphs"] == []


@pytest.mark.parametrize(
    "device, places, quantization, can",
    [
        ("cuda", {}, "none", True),
        ("cuda", {"": "cuda:0"}, "int4", True),
        ("cuda", {}, "int8", False),
        ("cuda", {"a": 0, "b": 1}, "none", False),
        ("cuda", {"a": 0, "b": "cpu"}, "none", False),
        ("cuda:0", {}, "none", True),
        ("cuda:1", {}, "none", False),
        ("cpu", {}, "none", False),
    ],
)
def test_what_can_be_captured(device, places, quantization, can, monkeypatch):
    """One GPU, the current one, and no matrix whose product waits for the host."""
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    model = SimpleNamespace(hf_device_map=places)
    here = SimpleNamespace(device=torch.device(device), model=model, quantization=quantization, eager=False)
    assert Llava.capturable.fget(here) is can
    here.eager = True
    assert not Llava.capturable.fget(here)


def test_nothing_in_a_step_asks_the_host(llava, monkeypatch):
    """A step that does is no step to capture, and the tape says so."""
    asks = Decoder.read

    def read(decoder, token):
        int(token)
        return asks(decoder, token)

    monkeypatch.setattr(Decoder, "read", read)
    decoder = Decoder(llava, Full())
    with torch.inference_mode():
        embeddings = torch.randn(40, llava.model.config.text_config.hidden_size)
        decoder.prefill(in_one_view(embeddings, (2, 38)), 40, 8, Clock(llava.device))
        with pytest.raises(RuntimeError, match="waits for the host"):
            tape.capture(lambda: decoder.read(torch.tensor([7])))


@dataclass(frozen=True)
class EveryThird(Reducer):
    """Gives up five entries behind every third token: what leaves is no part of what was captured."""

    def evict(self, cache):
        if cache.seen == cache.prompt or cache.seen % 3:
            return None
        return (cache.position >= 0).nonzero().flatten()[:5]


def test_what_leaves_is_decided_anew_at_each_step(endless, picture, taped):
    """A reducer may change its mind from step to step."""
    asked = endless, picture, "What is it?", EveryThird()
    plain = [said.lost for said in generate(*asked, max_new_tokens=NEW, eager=True)]
    assert plain == [said.lost for said in generate(*asked, max_new_tokens=NEW)] and len(plain[-1]) >= 5


@dataclass(frozen=True)
class Tight(Reducer):
    """Has just the slots that are full when a step is captured, and gives up five entries whenever they are."""

    def slots(self, prompt, unpruned, new):
        return prompt + graph.WARM_UPS + 1

    def evict(self, cache):
        if cache.count <= cache.prompt + graph.WARM_UPS:
            return None
        return (cache.position >= 0).nonzero().flatten()[:5]


def test_a_step_captured_with_every_slot_taken_still_looks_at_the_mask(taped):
    """What leaves later is not seen any more."""
    llava = Llava(random_llava(), None)
    embeddings = torch.randn(40, llava.model.config.text_config.hidden_size)
    decoders = [Decoder(llava, Tight()) for _ in range(2)]
    with torch.inference_mode():
        for decoder in decoders:
            decoder.prefill(in_one_view(embeddings, (2, 38)), 40, 12, Clock(llava.device))
        replayed = graph.Steps(decoders[1])
        for token in torch.randint(5, 90, (12, 1)):
            torch.testing.assert_close(replayed.step(token), decoders[0].step(token), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llava-1.5", "llava-1.6-mistral"])
def test_prompts_of_every_length_share_graphs(taped, family):
    """A length is rounded up; what stands behind a prompt is never seen, nor what an earlier one left there."""
    llava = Llava(random_model(config(family)), None)
    torch.manual_seed(1)
    held = []  # what an earlier prompt was answered with stays as it was
    with torch.inference_mode():
        for length in (47, 33, 48, 40, 49, 33):
            embeddings = torch.randn(length, llava.model.config.text_config.hidden_size)
            plain, replayed = Decoder(llava, Full()), Decoder(llava, Full(), graph.Graphs.of(llava).prompts)
            logits = [
                d.prefill(in_one_view(embeddings, (2, 30)), length, 5, Clock(llava.device)) for d in (plain, replayed)
            ]
            held.append(logits)
            for ours, theirs in zip(replayed.cache.layers, plain.cache.layers, strict=True):
                torch.testing.assert_close(ours.keys, theirs.keys, rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(ours.values, theirs.values, rtol=1e-4, atol=1e-5)
            assert replayed.entered == plain.entered
        for plain, replayed in held:
            torch.testing.assert_close(replayed, plain, rtol=1e-4, atol=1e-5)
        assert len(taped) == 1 and [*llava.graphs.prompts.kept] == [64, 48]
        assert not llava.graphs.prompts.reads(graph.LONGEST + 1)


def test_the_graphs_kept_are_the_last_used(taped, monkeypatch):
    """An adaptive method meets ever new lengths."""
    monkeypatch.setattr(graph, "MOST", 2)
    prompts = graph.Prompts(None)
    assert [prompts.reads(length) for length in (10, 30, 12, 40, 30, 31)] == [False, False, True, False, False, True]


@pytest.mark.parametrize("part, phase", [("looks", "vision"), ("prompts", "prefill"), ("steps", "decode")])
def test_what_cannot_be_captured_is_launched_and_told(endless, picture, taped, monkeypatch, caplog, part, phase):
    """The words are the same, the answer says how it was run, and so does the log."""
    asked = endless, picture, "What is it?", LongTail()
    plain = answer(*asked, max_new_tokens=NEW, eager=True)
    taken = {"looks": "through", "prompts": "_prefill", "steps": "_read"}[part]

    def capture(work):
        replay, made = tape.capture(work)  # on the host all of it has happened, on the device nothing
        if taken in {*work.__code__.co_names, work.__name__}:
            raise RuntimeError("operation not permitted when stream is capturing")
        return replay, made

    monkeypatch.setattr(graph, "capture", capture)
    said = [answer(*asked, max_new_tokens=NEW) for _ in range(3)]
    same(said[1], plain)
    same(said[2], plain)
    assert said[2].graphs == tuple(p for p in ("vision", "prefill", "decode") if p != phase)
    assert "cannot be captured as a CUDA graph and are launched op by op: operation not permitted" in caplog.text
    assert caplog.text.count("cannot be captured") == (3 if part == "steps" else 1)


def test_compare_looks_through_a_graph_too(endless, picture, taped):
    """Where the tower runs once for all, it may be replayed; each answer says so."""
    said = [compare(endless, picture, "What is it?", [Full(), LongTail()], max_new_tokens=2) for _ in range(2)]
    assert [one.graphs for one in said[0]] == [(), ()]
    assert all("vision" in one.graphs for one in said[1])
    for ours, theirs in zip(*said, strict=True):
        same(ours, theirs)
    eager = compare(endless, picture, "What is it?", [Full()], max_new_tokens=2, eager=True)
    assert eager[0].graphs == ()


def test_another_picture_is_another_look(endless, picture, taped):
    """What a graph was captured with is not what it looks at."""
    other = picture.rotate(90)
    for _ in range(2):
        answer(endless, picture, "What is it?", max_new_tokens=1)
    said = answer(endless, other, "What is it?", TopK(), max_new_tokens=3)
    plain = answer(endless, other, "What is it?", TopK(), max_new_tokens=3, eager=True)
    again = answer(endless, other, "What is it?", TopK(), max_new_tokens=3)
    assert "vision" in again.graphs
    for one in (said, again):
        torch.testing.assert_close(one.first_logits, plain.first_logits, rtol=1e-4, atol=1e-4)
        assert torch.equal(one.reduced[0].keep, plain.reduced[0].keep)


def test_steps_of_several_answers_are_one_graph(endless, picture, taped):
    """As long as the same answers go on; where one ends, those left are captured anew."""
    reducers = [Full(), LongTail(heavy=0.3, recent=0.2), H2O(), FastV()]
    plain = [*preview(endless, picture, "What is it?", reducers, max_new_tokens=NEW, eager=True)]
    assert not taped
    together = [*preview(endless, picture, "What is it?", reducers, max_new_tokens=NEW)]
    assert len(taped) == 1 and len(plain) == len(together)
    for ours, theirs in zip(together[len(reducers) :], plain[len(reducers) :], strict=True):
        for one, other in zip(ours, theirs, strict=True):
            same(one, other)
    assert [one.graphs for one in together[-1]] == [("decode",)] * len(reducers)

    asked = [(picture, "What is it?", reducer) for reducer in reducers]
    taped.clear()
    done = dict(generate_batch(endless, asked, max_new_tokens=NEW, batch=4))
    assert len(taped) == 1
    for at, other in enumerate(plain[-1]):
        same(done[at], other)


def test_when_an_answer_ends_the_others_are_captured_anew(endless, picture, taped, monkeypatch):
    """And what they say is what they say alone."""
    reducers = [Full(), LongTail(), TopK(budget=9)]

    def alone(reducer):
        return answer(endless, picture, "What is it?", reducer, max_new_tokens=24, eager=True)

    monkeypatch.setattr(endless, "ends", frozenset({alone(reducers[0]).token_ids[6]}))
    plain = [alone(reducer) for reducer in reducers]
    together = [*preview(endless, picture, "What is it?", reducers, max_new_tokens=24)][-1]
    for one, other in zip(together, plain, strict=True):
        same(one, other)
    lengths = [1, *sorted({len(one.token_ids) for one in plain})]
    assert len(lengths) > 2 and len(taped) == sum(b - a > graph.WARM_UPS for a, b in pairwise(lengths))
