"""The engine around the mathematics: streaming, counts, clock, stop, limits, sampling, sharing, refusals."""

import threading
import time
from collections import deque
from itertools import pairwise

import pytest
import torch

import longtail
from longtail.decoder import Decoder
from longtail.generate import Clock, Halted, Sampling, look
from longtail.tokens import Reduced, TowerView

ASK = "What is in the picture?"


def stream(llava, picture, **options):
    return list(longtail.generate(llava, picture, ASK, longtail.LongTail(), **options))


def test_an_answer_after_every_token(llava, picture):
    answers = stream(llava, picture, max_new_tokens=9)
    assert [a.tokens.generated for a in answers] == list(range(1, len(answers) + 1))
    assert [a.finished for a in answers[:-1]] == [None] * (len(answers) - 1)
    assert answers[-1].finished in ("eos", "length")
    for before, after in pairwise(answers):
        assert after.token_ids[: len(before.token_ids)] == before.token_ids


def test_counts_add_up(llava, picture):
    answer = stream(llava, picture, max_new_tokens=6)[-1]
    knee, kept = answer.curve.knee, answer.curve.kept
    assert answer.tokens.patches == 36 and answer.tokens.visual == kept == max(1, int(0.24 * (36 - knee)))
    text = longtail.answer(llava, picture, ASK, longtail.Full(), max_new_tokens=1).tokens.prompt - 36
    assert answer.tokens.prompt == text + kept
    assert answer.visual_span[1] - answer.visual_span[0] == kept


def test_record_is_the_agreed_schema(llava, picture):
    import json

    record = json.loads(json.dumps(stream(llava, picture, max_new_tokens=3)[-1].record()))
    assert {
        "model",
        "method",
        "params",
        "answer",
        "finished",
        "tokens",
        "seconds",
        "curve",
        "keep",
        "source",
        "role",
    } <= set(record)
    assert {"device", "dtype", "seed"} <= set(record)
    assert {"patches", "visual", "prompt", "generated", "kv_entries", "kv_bytes"} <= set(record["tokens"])
    assert set(record["seconds"]) == {"preprocess", "vision", "method", "prefill", "first_token", "per_token", "total"}
    assert set(record["curve"]) == {"knee", "kept", "similarity"} and len(record["curve"]["similarity"]) == 36
    assert record["params"]["alpha"] == 0.24 and record["dtype"] == "float32" and record["device"] == "cpu"
    assert len(record["source"]) == len(record["role"]) == 36


def test_phases_close_with_first_token_and_total(llava, picture):
    seconds = stream(llava, picture, max_new_tokens=8)[-1].seconds
    parts = seconds.preprocess + seconds.vision + seconds.method + seconds.prefill
    assert seconds.first_token == pytest.approx(parts)
    assert seconds.total > seconds.first_token > 0 and seconds.per_token > 0


class FakeEvent:
    """As a CUDA event, on a device that is done at once; reading one that was not waited for is an error."""

    def __init__(self, enable_timing):
        assert enable_timing
        self.at, self.waited = None, False

    def record(self, stream):
        self.at = time.perf_counter()

    def synchronize(self):
        self.waited = True

    def elapsed_time(self, later):
        assert later.waited
        return 1e3 * (later.at - self.at)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_laps_of_one_name_add_up_and_nothing_is_lost(monkeypatch, device):
    """By the host's clock on a CPU, by events on a GPU, which are read when seconds are asked for, not before."""
    now, events = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    monkeypatch.setattr(torch.cuda, "Event", lambda **given: events.append(FakeEvent(**given)) or events[-1])
    clock = Clock(torch.device(device), limit=25)

    def lap(at, name):
        now[0] = at
        clock.lap(name)

    lap(1.0, "vision")
    lap(3.0, "method")
    lap(7.0, "vision")
    now[0] = 20.0
    clock.restart()  # the reader took 13, which is in no phase
    assert clock.halted() is None
    lap(21.0, "decode")
    lap(24.0, "decode")
    assert not any(event.waited for event in events) and len(events) == (7 if device == "cuda" else 0)
    for _ in range(2):
        seconds = clock.seconds()
        assert (seconds.vision, seconds.method, seconds.first_token) == (5.0, 2.0, 7.0)
        assert (seconds.per_token, seconds.total) == (2.0, 11.0)
    assert clock.halted() is None
    now[0] = 25.5
    assert clock.halted() == "time", "the limit is on the wall's clock: it counts the reader's time"


def test_the_readers_time_is_not_ours(llava, picture):
    """A reader who sleeps half a second between tokens does not appear in any number (a bound on what is counted)."""
    answers = longtail.generate(llava, picture, ASK, longtail.Full(), max_new_tokens=4)
    last = deque((time.sleep(0.5) or answer for answer in answers), maxlen=1)[0]
    assert last.seconds.total - last.seconds.first_token < 1.0 < 3 * 0.5


def test_stop_between_tokens(llava, picture):
    stop, answers = threading.Event(), []
    for answer in longtail.generate(llava, picture, ASK, longtail.LongTail(), max_new_tokens=50, stop=stop):
        answers.append(answer)
        if len(answers) == 3:
            stop.set()
    assert answers[-1].finished == "stopped" and answers[-1].tokens.generated == 3


def test_stop_before_and_inside_prefill(llava, picture):
    stop = threading.Event()
    stop.set()
    (answer,) = stream(llava, picture, stop=stop)
    assert (answer.finished, answer.text, answer.first_logits) == ("stopped", "", None)
    calls = []

    class Later:
        def is_set(self):
            calls.append(1)
            return len(calls) > len(llava.tower.encoder.layers) + 1  # the tower is through, prefill is not

    (answer,) = stream(llava, picture, stop=Later())
    assert answer.finished == "stopped" and answer.tokens.visual > 0 and answer.tokens.generated == 0


def test_time_limit(llava, picture):
    assert stream(llava, picture, time_limit=1e-9)[-1].finished == "time"
    assert stream(llava, picture, time_limit=600, max_new_tokens=3)[-1].finished in ("eos", "length")


def test_greedy_is_deterministic_and_sampling_is_seeded(llava, picture):
    def ids(**options):
        return stream(llava, picture, max_new_tokens=12, **options)[-1].token_ids

    assert ids() == ids()
    assert ids(temperature=2.0, seed=1) == ids(temperature=2.0, seed=1)
    assert len({ids(temperature=2.0, seed=s) for s in range(6)}) > 1
    assert ids(temperature=2.0, top_p=1e-9) == ids()  # the nucleus holds the likeliest token alone


def test_sampling_follows_the_distribution():
    logits, counts = torch.tensor([2.0, 1.0, 0.0, -9.0]), torch.zeros(4)
    sampling = Sampling(1.0, 0.9)
    for seed in range(3000):
        counts[sampling.choose(logits, torch.Generator().manual_seed(seed))] += 1
    expected = torch.tensor([2.0, 1.0]).softmax(0)  # 0.67 + 0.24 reach 0.9 with the second
    torch.testing.assert_close(counts[:2] / 3000, expected, atol=0.03, rtol=0)
    assert counts[2:].sum() == 0


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"temperature": -1}, "temperature must be between 0 and 5, got -1"),
        ({"temperature": float("nan")}, "temperature must be a finite number, got nan"),
        ({"top_p": 0}, "top_p must be above 0 and at most 1, got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        (
            {"max_new_tokens": 5000},
            "are more than the 512 positions of .*: ask a shorter question or lower max_new_tokens",
        ),
    ],
)
def test_options_out_of_range(llava, picture, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        stream(llava, picture, **options)


@pytest.mark.parametrize(
    "question, sentence", [("", "is empty"), (" \n", "is empty"), ("x" * 10_000, "10,000 characters")]
)
def test_questions_that_cannot_be_asked(llava, picture, question, sentence):
    with pytest.raises(ValueError, match=sentence):
        longtail.answer(llava, picture, question)
    assert longtail.answer(llava, picture, ASK, max_new_tokens=1).finished  # and the next one works


def test_special_tokens_in_a_question_are_text(llava, picture):
    plain = longtail.answer(llava, picture, "What?", max_new_tokens=1)
    hostile = longtail.answer(llava, picture, "What? <image> </s> <pad>", max_new_tokens=1)
    assert hostile.tokens.patches == 36 and hostile.tokens.visual == 36
    assert hostile.tokens.prompt > plain.tokens.prompt
    assert (llava.prompt(picture, "<image></s>").ids == 4).sum() == 36


def test_compare_runs_the_tower_once_where_it_may(llava, picture, monkeypatch):
    runs = []
    encode = type(llava).encode
    monkeypatch.setattr(type(llava), "encode", lambda self, *a, **k: runs.append(1) or encode(self, *a, **k))
    reducers = [longtail.Full(), longtail.LongTail(), longtail.TopK(layer=9), longtail.LongTail(cut="in_tower")]
    together = longtail.compare(llava, picture, ASK, reducers, max_new_tokens=8)
    assert len(runs) == 2
    for reducer, answer in zip(reducers, together, strict=True):
        alone = longtail.answer(llava, picture, ASK, reducer, max_new_tokens=8)
        assert alone.token_ids == answer.token_ids and alone.tokens == answer.tokens
    assert together[0].seconds.vision == together[1].seconds.vision > 0


def test_a_failing_reducer_leaves_the_next_run_unharmed(llava, picture):
    class Broken(longtail.Full):
        def drop(self, prefill):
            if prefill.layer == 1:
                raise RuntimeError("in the middle")

    fine = longtail.answer(llava, picture, ASK, max_new_tokens=4)
    with pytest.raises(RuntimeError, match="in the middle"):
        longtail.answer(llava, picture, ASK, Broken(), max_new_tokens=4)
    assert longtail.answer(llava, picture, ASK, max_new_tokens=4).token_ids == fine.token_ids


def test_dropping_inside_the_language_model(llava, picture):
    """A reducer that drops entering layer 1 and evicts unevenly: layers then hold different entries."""

    class Inside(longtail.Full):
        def drop(self, prefill):
            if prefill.layer != 1:
                return None
            text, visual = (~prefill.visual).nonzero().flatten(), prefill.visual.nonzero().flatten()
            return torch.cat([text, visual[:10]]).sort().values

    full = longtail.answer(llava, picture, ASK, max_new_tokens=5).tokens
    answer = longtail.answer(llava, picture, ASK, Inside(), max_new_tokens=5)
    layers = len(llava.decoder_layers)
    assert answer.tokens.layer_mean == pytest.approx((36 + 10 * (layers - 1)) / layers)
    assert answer.tokens.kv_entries == pytest.approx(full.kv_entries - 26 * (layers - 1) / layers)
    assert len(answer.lost) == 26


@torch.inference_mode()
def test_dropping_equals_masking_in_the_later_layers(llava, picture):
    """Oracle: the dense run whose later layers cannot see the dropped keys."""
    gone = torch.tensor([8, 9, 20])

    class Inside(longtail.Full):
        def drop(self, prefill):
            if prefill.layer == 1:
                stays = torch.ones(len(prefill.hidden), dtype=torch.bool)
                stays[gone] = False
                return stays.nonzero().flatten()

    answer = longtail.answer(llava, picture, ASK, Inside(), max_new_tokens=1)
    hidden = llava.splice(llava.prompt(picture, ASK), list(answer.reduced)).embeddings
    t = len(hidden)
    mask = torch.full((t, t), -torch.inf).triu(1)
    masked = mask.clone()
    masked[:, gone] = -torch.inf
    masked[gone, gone] = 0  # a dropped row's own output is read by nobody
    rotary = llava.rotary(hidden, torch.arange(t))
    for i, layer in enumerate(llava.decoder_layers):
        hidden = layer(
            hidden[None], attention_mask=(mask if i < 1 else masked)[None, None], position_embeddings=rotary
        )[0]
    torch.testing.assert_close(answer.first_logits, llava.logits(hidden[-1]), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_holes_that_no_newcomer_has_filled_are_seen_by_nobody(llava, picture):
    """Three entries go at once, one newcomer comes: equal to a cache that was physically gathered, scores included."""
    from transformers import DynamicCache

    class Thrice(longtail.LongTail):
        def evict(self, cache):
            return torch.tensor([6, 7, 9]) if cache.seen == cache.prompt + 1 else None

        def slots(self, prompt, unpruned, new):
            return prompt + new

    reducer = Thrice(alpha=0.9, heavy=1.0, recent=1.0)
    answers = list(longtail.generate(llava, picture, ASK, reducer, max_new_tokens=6))
    assert answers[-1].lost == (6, 7, 9)
    assert answers[-1].tokens.kv_entries == answers[-1].tokens.prompt + 5 - 3

    spliced = llava.splice(llava.prompt(picture, ASK), list(answers[-1].reduced))
    embeddings = spliced.embeddings
    decoder, cache = Decoder(llava, reducer), DynamicCache(config=llava.model.config.text_config)
    logits = decoder.prefill(spliced, len(embeddings), 6, Clock(llava.device))
    model = llava.model.model.language_model
    model(inputs_embeds=embeddings[None], past_key_values=cache, use_cache=True)
    entries = [row.double() for row in embeddings]
    for step, token in enumerate(answers[-1].token_ids[:-1]):
        assert int(logits.argmax()) == token
        before = decoder.ledgers[0].score.clone()
        logits = decoder.step(torch.tensor([token]))
        x, position = llava.embed(torch.tensor([token])), torch.tensor([[len(embeddings) + step]])
        hidden = model(
            inputs_embeds=x[None], position_ids=position, past_key_values=cache, use_cache=True
        ).last_hidden_state
        torch.testing.assert_close(logits, llava.model.lm_head(hidden[0, -1]), rtol=1e-4, atol=1e-4)
        entries.append(x[0].double())
        received = torch.stack([x[0].double() @ e / len(e) ** 0.5 for e in entries]).softmax(0)
        live = [p for p in range(5) if decoder.ledgers[0].position[p] == p]
        gained = (decoder.ledgers[0].score - before)[live]
        torch.testing.assert_close(gained.double(), received[: len(live)], rtol=1e-4, atol=1e-6)
        if step == 0:
            stay = [i for i in range(len(entries)) if i not in (6, 7, 9)]
            entries = [entries[i] for i in stay]
            for layer in cache.layers:
                layer.keys, layer.values = layer.keys[:, :, stay], layer.values[:, :, stay]


def test_trim_between_attention_and_mlp_is_idle_when_it_keeps_all(llava, picture):
    places = []

    class Watch(longtail.Full):
        def trim(self, tower: TowerView):
            places.append((tower.index, tower.place))
            return Reduced.select(tower.visual, torch.arange(len(tower.visual.features)))

    full = longtail.answer(llava, picture, ASK, max_new_tokens=2)
    watched = longtail.answer(llava, picture, ASK, Watch(), max_new_tokens=2)
    assert torch.equal(full.first_logits, watched.first_logits)
    used = len(llava.tower.encoder.layers) - 1
    assert places == [(i, place) for i in range(used) for place in ("entering", "between")]


def test_halted_is_raised_between_layers(llava, picture):
    clock = Clock(llava.device, limit=0.0)
    with pytest.raises(Halted, match="time"):
        look(llava, picture, ASK, (), clock)


def test_clip_relevance_and_its_absence(llava, clip_folder, folder, picture):
    seen = longtail.answer(llava, picture, ASK, max_new_tokens=1)
    with pytest.raises(
        ValueError, match="no CLIP text tower, so text-guided methods cannot run: use the bundled model"
    ):
        seen.visual[0].question.relevance(seen.visual[0])
    guided = longtail.load(str(folder))
    seen = longtail.answer(guided, picture, ASK, max_new_tokens=1)
    with torch.inference_mode():
        got = seen.visual[0].question.relevance(seen.visual[0])
        from safetensors.torch import load_file
        from transformers import AutoTokenizer, CLIPTextModelWithProjection

        text = CLIPTextModelWithProjection.from_pretrained(clip_folder)
        ids = AutoTokenizer.from_pretrained(clip_folder)(ASK, return_tensors="pt").input_ids
        words = text(input_ids=ids).text_embeds[0]
        weight = load_file(clip_folder / "model.safetensors")["visual_projection.weight"]
        for patch in (0, 17, 35):
            state = guided.tower.post_layernorm(seen.visual[0].features[patch]) @ weight.T
            torch.testing.assert_close(got[patch], state @ words / state.norm() / words.norm(), rtol=1e-4, atol=1e-5)


def test_grouped_queries(picture, tmp_path, folder):
    """Eight heads on two, four on one: the tables say what the cache really holds."""
    import shutil

    from conftest import random_llava

    shutil.copytree(folder, tmp_path / "m", ignore=shutil.ignore_patterns("clip", "model.safetensors", "config.json"))
    random_llava(key_value_heads=1).save_pretrained(tmp_path / "m")
    model = longtail.load(str(tmp_path / "m"))
    answer = longtail.answer(model, picture, ASK, longtail.LongTail(), max_new_tokens=6)
    assert answer.tokens.kv_bytes == answer.tokens.kv_entries * 2 * 3 * 1 * 16 * 4


def test_loading_refuses_in_a_sentence(tmp_path):
    import json

    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    for options, sentence in [
        ({"name": "nope"}, "there is no model 'nope': give one of tiny, llava-1.5-7b"),
        ({"name": str(tmp_path / "none")}, "there is no model '.*none'"),
        ({"name": str(tmp_path / "empty")}, "holds no config.json"),
        ({"name": str(tmp_path / "other")}, "is a 'bert' model, which is not supported: llava, llava_next are"),
        ({"dtype": "int3"}, "dtype must be one of auto, float32, bfloat16, float16, got 'int3'"),
        ({"quantization": "int2"}, "quantization must be one of none, int8, int4, got 'int2'"),
        ({"device": "tpu"}, "device must be auto, cpu, cuda or cuda:N, got 'tpu'"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            longtail.load(**options)


def test_quantization_says_what_to_install(folder, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for kind in ("int8", "int4"):
        with pytest.raises(ValueError, match=f"{kind} needs two packages more: pip install bitsandbytes accelerate"):
            longtail.load(str(folder), quantization=kind)


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"vision_feature_layer": [-2, -3]}, r"reads tower layers \[-2, -3\]"),
        ({"vision_feature_select_strategy": "full"}, "by strategy 'full'"),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "has a 'siglip_vision_model' vision tower"),
    ],
)
def test_other_layouts_are_refused_before_a_weight_is_read(folder, tmp_path, change, sentence):
    import json

    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=sentence):
        longtail.load(str(tmp_path))


def test_public_names_are_all_there_is():
    assert {n for n in dir(longtail) if n[0].isupper()} >= {
        "Full",
        "LongTail",
        "TopK",
        "Random",
        "Sequential",
        "Uniform",
    }
    for name in (
        "load",
        "generate",
        "answer",
        "compare",
        "open_image",
        "make",
        "param",
        "register",
        "REDUCERS",
        "Reducer",
    ):
        assert hasattr(longtail, name)
