"""Stage 2 against a slow, plain reference: lists of entries and a DynamicCache that is physically gathered."""

import math

import pytest
import torch
from conftest import in_one_view
from transformers import DynamicCache

import longtail
from longtail.reducers.longtail import LongTail

QUESTION = "What can be seen in this picture, and where does each thing stand?"


def plain_scores(embeddings):
    """s_j = sum over i >= j of softmax_j(e_i . e_j / sqrt(D)), row by row."""
    rows, scores = embeddings.double(), [0.0] * len(embeddings)
    for i in range(len(rows)):
        products = [float(rows[i] @ rows[j]) / math.sqrt(rows.shape[1]) for j in range(i + 1)]
        top = max(products)
        total = sum(math.exp(p - top) for p in products)
        for j, product in enumerate(products):
            scores[j] += math.exp(product - top) / total
    return scores


def plain_lowest(entries, recent_from, first):
    """Index of the entry of the lowest score among the settled ones, the oldest where scores tie."""
    settled = [i for i, entry in enumerate(entries) if first <= entry["position"] < recent_from]
    return min(settled, key=lambda i: (entries[i]["score"], entries[i]["position"]))


@torch.inference_mode()
def reference(llava, embeddings, heavy_ratio, recent_ratio, steps, protect_first=False):
    """Analysis C in a loop: (tokens, logits per step, positions given up, visible keys per step)."""
    model, length = llava.model, len(embeddings)
    heavy, recent = max(math.floor(heavy_ratio * length), int(protect_first)), max(math.floor(recent_ratio * length), 1)
    entries = [
        {"position": i, "score": score, "x": embeddings[i].double()} for i, score in enumerate(plain_scores(embeddings))
    ]
    gone = []
    while len(entries) > heavy + recent:
        gone.append(entries.pop(plain_lowest(entries, length - recent, int(protect_first)))["position"])
    gone.sort()
    positions = torch.tensor([entry["position"] for entry in entries])
    cache = DynamicCache(config=model.config.text_config)
    hidden = model.model.language_model(
        inputs_embeds=embeddings[positions][None], position_ids=positions[None], past_key_values=cache, use_cache=True
    ).last_hidden_state
    tokens, logits, visible = [], [model.lm_head(hidden[0, -1])], []
    for step in range(steps):
        tokens.append(int(logits[-1].argmax()))
        x = llava.embed(torch.tensor([tokens[-1]]))[0]
        entries.append({"position": length + step, "score": 0.0, "x": x.double()})
        products = torch.stack([x.double() @ entry["x"] / math.sqrt(len(x)) for entry in entries]).softmax(0)
        for entry, received in zip(entries, products, strict=True):
            entry["score"] += float(received)
        hidden = model.model.language_model(
            inputs_embeds=x[None, None],
            position_ids=torch.tensor([[length + step]]),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        logits.append(model.lm_head(hidden[0, -1]))
        visible.append(len(entries))
        if len(entries) > heavy + recent:
            out = plain_lowest(entries, length + step + 1 - recent, int(protect_first))
            gone.append(entries.pop(out)["position"])
            stay = [i for i in range(cache.layers[0].keys.shape[2]) if i != out]
            for layer in cache.layers:
                layer.keys, layer.values = layer.keys[:, :, stay], layer.values[:, :, stay]
    return tokens, logits, gone, visible


@torch.inference_mode()
def ours(llava, embeddings, span, reducer, steps):
    """The same by decoder.py: tokens, logits, positions given up, visible keys per step."""
    from longtail.decoder import Decoder
    from longtail.generate import Clock

    decoder = Decoder(llava, reducer)
    logits = [decoder.prefill(in_one_view(embeddings, span), len(embeddings), steps, Clock(llava.device))]
    tokens, visible = [], []
    for _ in range(steps):
        before = decoder.entries()
        tokens.append(int(logits[-1].argmax()))
        logits.append(decoder.step(torch.tensor([tokens[-1]])))
        visible.append(before + 1)
    return tokens, logits, list(decoder.lost()), visible, decoder


@pytest.mark.parametrize("question", [QUESTION, QUESTION + "?"], ids=["one parity", "the other"])
@pytest.mark.parametrize("heavy, recent", [(0.5, 0.5), (0.3, 0.3), (0.1, 0.4), (0.6, 0.5), (0.0, 0.2), (0.5, 0.0)])
@pytest.mark.parametrize("protect_first", [False, True])
def test_agrees_with_the_reference(llava, picture, question, heavy, recent, protect_first):
    prompt = llava.prompt(picture, question)
    with torch.inference_mode():
        seen = longtail.answer(llava, picture, question, longtail.TopK(budget=20), max_new_tokens=1)
        prompt = llava.splice(prompt, list(seen.reduced))
    embeddings, span = prompt.embeddings, prompt.span
    reducer = LongTail(heavy=heavy, recent=recent, protect_first=protect_first)
    expected = reference(llava, embeddings, heavy, recent, 40, protect_first)
    tokens, logits, gone, visible, decoder = ours(llava, embeddings, span, reducer, 40)
    assert tokens == expected[0]
    for got, want in zip(logits, expected[1], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert gone == expected[2]
    assert visible == expected[3]
    length = len(embeddings)
    budget = max(math.floor(heavy * length), int(protect_first)) + max(math.floor(recent * length), 1)
    assert max(visible) <= budget + 1
    for layer in decoder.cache.layers:  # fixed slots, and the same entries in every layer
        assert layer.ledger is decoder.ledgers[0]
        assert layer.keys.shape[2] == min(length + 40, budget + 1) == layer.values.shape[2]


def spliced(llava, picture, length):
    """A prompt of exactly `length` embeddings, random but fixed."""
    generator = torch.Generator().manual_seed(length)
    width = llava.embed(torch.tensor([0])).shape[1]
    return torch.randn(length, width, generator=generator), (5, length - 10)


@pytest.mark.parametrize("length, visible", [(190, [191, 191, 191]), (191, [191, 191, 191])])
def test_visible_keys_of_the_golden_prompts(llava, picture, length, visible):
    """Real drop after attending: 191 keys at every step for L = 190 and L = 191 (two floors: 190, and a newcomer)."""
    embeddings, span = spliced(llava, picture, length)
    result = ours(llava, embeddings, span, LongTail(), 3)
    assert result[3] == visible
    assert len(result[2]) == 3 + length % 2
    positions = result[4].ledgers[0].position
    assert positions.max() == length + 2  # true positions, not cache length


def test_nothing_goes_before_the_first_token_of_an_even_prompt(llava, picture):
    even, odd = spliced(llava, picture, 60), spliced(llava, picture, 61)
    assert ours(llava, *even, LongTail(), 0)[2] == []
    assert len(ours(llava, *odd, LongTail(), 0)[2]) == 1


def test_full_budget_gives_the_logits_of_the_full_cache(llava, picture):
    embeddings, span = spliced(llava, picture, 50)
    kept = ours(llava, embeddings, span, LongTail(heavy=1.0, recent=1.0), 30)
    full = ours(llava, embeddings, span, longtail.Full(), 30)
    assert kept[0] == full[0] and kept[2] == []
    for a, b in zip(kept[1], full[1], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_an_evicted_slot_is_overwritten_in_place(llava, picture):
    embeddings, span = spliced(llava, picture, 40)
    result = ours(llava, embeddings, span, LongTail(), 1)
    decoder = result[4]
    keys, addresses = decoder.cache.layers[0].keys.clone(), [layer.keys.data_ptr() for layer in decoder.cache.layers]
    hole = int((decoder.ledgers[0].position[: decoder.ledgers[0].used] < 0).nonzero())
    with torch.inference_mode():
        decoder.step(torch.tensor([7]))
    assert [layer.keys.data_ptr() for layer in decoder.cache.layers] == addresses
    changed = (decoder.cache.layers[0].keys != keys).any(-1).any(1)[0].nonzero().flatten().tolist()
    assert changed == [hole]


def test_budget_of_unpruned_leaves_room_for_what_stage_one_took(llava, picture):
    pruned = longtail.answer(llava, picture, QUESTION, LongTail(), max_new_tokens=30)
    roomy = longtail.answer(llava, picture, QUESTION, LongTail(budget_of="unpruned"), max_new_tokens=30)
    assert len(pruned.lost) > 0 and pruned.tokens.kv_entries == 2 * (pruned.tokens.prompt // 2)
    assert len(roomy.lost) < len(pruned.lost)


def test_kv_bytes_are_what_the_entries_take(llava, picture):
    text = llava.model.config.text_config
    for reducer in (longtail.Full(), LongTail()):
        answer = longtail.answer(llava, picture, QUESTION, reducer, max_new_tokens=12)
        one = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * 4
        assert answer.tokens.kv_bytes == answer.tokens.kv_entries * one
    full = longtail.answer(llava, picture, QUESTION, longtail.Full(), max_new_tokens=12).tokens
    assert full.kv_entries == full.prompt + full.generated - 1  # the last token was never read
