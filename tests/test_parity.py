"""Oracle: transformers itself. `Full` is stock LLaVA in tokens and tensors; keeping everything changes nothing."""

import pytest
import torch

import longtail
from longtail.generate import Clock, look

EVERYTHING = [
    longtail.LongTail(budget=576, heavy=1.0, recent=1.0),
    longtail.LongTail(budget=576, heavy=1.0, recent=1.0, cut="in_tower"),
    longtail.LongTail(reading="head", alpha=576, heavy=1.0, recent=1.0),
    longtail.LongTail(visual_stage=False, text_stage=False),
    longtail.TopK(budget=576),
    longtail.Random(budget=576),
    longtail.Sequential(budget=576),
    longtail.Uniform(budget=576),
]


def stock(llava, picture, question):
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = llava.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return llava.processor(images=picture, text=text, return_tensors="pt")


@pytest.fixture(params=["llava", "tiny"])
def model(request):
    return request.getfixturevalue(request.param)


def test_full_says_what_stock_generate_says(model, picture):
    for question in ("Describe the image.", "What is here?"):
        inputs = stock(model, picture, question)
        with torch.inference_mode():
            expected = model.model.generate(**inputs, max_new_tokens=40, do_sample=False)[
                0, inputs["input_ids"].shape[1] :
            ]
        answer = longtail.answer(model, picture, question, longtail.Full(), max_new_tokens=40)
        assert list(answer.token_ids) == expected.tolist()
        assert answer.tokens.prompt == inputs["input_ids"].shape[1]
        assert answer.tokens.generated == len(expected)


@torch.inference_mode()
def test_full_features_and_logits_equal_stock(model, picture):
    inputs = stock(model, picture, "What is here?")
    answer = longtail.answer(model, picture, "What is here?", longtail.Full(), max_new_tokens=1)
    features = model.model.get_image_features(pixel_values=inputs["pixel_values"]).pooler_output[0]
    assert torch.equal(model.projector(answer.visual[0].features), features)
    logits = model.model(**inputs, logits_to_keep=1).logits[0, -1]
    torch.testing.assert_close(answer.first_logits, logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reducer", EVERYTHING, ids=repr)
def test_keeping_everything_changes_nothing(model, picture, reducer):
    full = longtail.answer(model, picture, "What is here?", longtail.Full(), max_new_tokens=20)
    same = longtail.answer(model, picture, "What is here?", reducer, max_new_tokens=20)
    assert same.token_ids == full.token_ids
    assert same.tokens == full.tokens
    torch.testing.assert_close(same.first_logits, full.first_logits, rtol=0, atol=0)


@torch.inference_mode()
def test_captured_layer_is_what_the_tower_reads(model, picture):
    inputs = stock(model, picture, "?")
    states = model.tower(inputs["pixel_values"], output_hidden_states=True).hidden_states
    seen = look(model, picture, "?", (0, 16, 22, 23), Clock(model.device))
    depth = len(model.tower.encoder.layers)
    for layer, index in ((0, 0), (16, 16 * (depth - 1) // 23), (22, depth - 2), (23, depth - 1)):
        captured, block = seen.views[0][0].layer(layer), model.tower.encoder.layers[index]
        assert torch.equal(captured.hidden, states[index][0])
        normed = block.layer_norm1(states[index][0])
        torch.testing.assert_close(captured.key, block.self_attn.k_proj(normed))
        torch.testing.assert_close(captured.query, block.self_attn.q_proj(normed[:1]))


@torch.inference_mode()
def test_in_tower_cut_equals_a_tower_run_on_the_survivors(model, picture):
    """Positions were added at the input, so the later layers on the kept rows alone are the whole definition."""
    answer = longtail.answer(model, picture, "?", longtail.LongTail(cut="in_tower", alpha=0.3), max_new_tokens=1)
    layers = model.tower.encoder.layers
    index = 16 * (len(layers) - 1) // 23
    hidden = model.tower(stock(model, picture, "?")["pixel_values"], output_hidden_states=True).hidden_states[index]
    hidden = hidden[:, torch.cat([torch.zeros(1, dtype=torch.long), answer.reduced[0].keep + 1])]
    for layer in layers[index:-1]:
        hidden = layer(hidden, attention_mask=None)
    torch.testing.assert_close(answer.reduced[0].features, hidden[0, 1:], rtol=1e-5, atol=1e-5)
    gathered = longtail.answer(model, picture, "?", longtail.LongTail(alpha=0.3), max_new_tokens=1)
    assert torch.equal(gathered.reduced[0].keep, answer.reduced[0].keep)


@torch.inference_mode()
def test_pruned_logits_equal_stock_on_the_same_embeddings(model, picture):
    """A pruned prompt through our prefill equals transformers' own forward on those embeddings."""
    reducer = longtail.Random(budget=9, seed=5)
    answer = longtail.answer(model, picture, "What is here?", reducer, max_new_tokens=1)
    prompt = model.prompt(picture, "What is here?")
    spliced = model.splice(prompt, list(answer.reduced))
    assert spliced.span[1] - spliced.span[0] == 9 == answer.tokens.visual
    logits = model.model(inputs_embeds=spliced.embeddings[None]).logits[0, -1]
    torch.testing.assert_close(answer.first_logits, logits, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_recomputed_attention_rows_equal_eager(model, picture):
    from longtail.tokens import Prefill

    seen: list[Prefill] = []

    class Spy(longtail.Full):
        def drop(self, prefill):
            seen.append((prefill.layer, prefill.attention(torch.tensor([3, len(prefill.hidden) - 1]))))

    longtail.answer(model, picture, "What is here?", Spy(), max_new_tokens=1)
    inputs = stock(model, picture, "What is here?")
    model.model.set_attn_implementation("eager")
    try:
        attentions = model.model(**inputs, output_attentions=True).attentions
    finally:
        model.model.set_attn_implementation("sdpa")
    assert len(seen) == len(attentions)
    for layer, rows in seen:
        expected = attentions[layer][0][:, [3, -1]]
        torch.testing.assert_close(rows, expected, rtol=1e-4, atol=1e-5)
