"""What the card says of a finished model: answers through stock `generate`, CLS curves, phrase-patch similarity."""

import random

import numpy as np
import torch
import torch.nn.functional as F

from . import forward
from .data import Encoder, Plan, batch
from .losses import about
from .measure import Marks, measure
from .model import HEADS, Miniature
from .questions import described, questions, score
from .scenes import scene
from .world import GRID, HELD_OUT_SEED

FINAL_SEED = HELD_OUT_SEED + 10_000  # the scenes below were never looked at during training
SHARES = (1.0, 0.5, 0.34, 0.22, 0.1, 0.05)
CHOOSERS = ("cls", "random", "grid", "oracle")
READ_LAYERS = (4, 5, 6)
RANKS = (1, 2, 5, 10, 20, 40, 58, 100, 128, 200, 300, 576)


def pruning_table(model: Miniature, scenes: int) -> dict[str, dict]:
    """Exact match by chooser and number of tokens kept; `asked` is how many questions each family had."""
    kept = [("cls", GRID * GRID)]
    kept += [(chooser, round(share * GRID * GRID)) for share in SHARES[1:] for chooser in CHOOSERS]
    marks = measure(model, range(FINAL_SEED, FINAL_SEED + scenes), kept, rounds=2)
    table = {name: one.table() for name, one in marks.items() if name != "heads"}
    return table | {"asked": _asked(marks[f"cls-{GRID * GRID}"])}


def _asked(marks: Marks) -> dict[str, int]:
    from .questions import FAMILIES

    return {family: int(n) for family, n in zip(FAMILIES, marks.asked.tolist(), strict=False)}


@torch.no_grad()
def through_generate(folder, scenes: int, size: int = 12, dtype=torch.bfloat16) -> dict:
    """Every family's mark through `AutoModelForImageTextToText.generate`, greedy, on the scenes after the table's."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, local_files_only=True).eval()
    marks: dict[str, list[float]] = {}
    lengths = []
    for seed in range(FINAL_SEED + 5000, FINAL_SEED + 5000 + scenes):
        one = scene(seed)
        asked = questions(one)
        texts = [_prompt(processor, q.text) for q in asked]
        for short in (True, False):
            group = [(q, t) for q, t in zip(asked, texts, strict=True) if (q.family != "describe") == short]
            said, count = _generate(model, processor, one.image, [t for _, t in group], 8 if short else 160)
            for (question, _), answer in zip(group, said, strict=True):
                marks.setdefault(question.family, []).append(score(question.family, answer, question.answer))
                if not short:
                    right = described(answer)["background"] == one.background
                    marks.setdefault("describe_background", []).append(float(right))
                    marks.setdefault("describe_exact", []).append(float(answer.strip() == question.answer))
                    lengths.append(count)
    return {name: round(float(np.mean(values)), 4) for name, values in marks.items()} | {
        "describe_tokens_mean": round(float(np.mean(lengths)), 1),
        "describe_tokens_most": int(max(lengths)),
        "scenes": scenes,
    }


def _prompt(processor, question: str) -> str:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def _generate(model, processor, image, texts: list[str], most: int) -> tuple[list[str], int]:
    inputs = processor(images=[image] * len(texts), text=texts, return_tensors="pt", padding=True)
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    out = model.generate(**inputs, max_new_tokens=most, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    longest = int((out != processor.tokenizer.pad_token_id).sum(1).max())
    return [t.strip() for t in processor.batch_decode(out, skip_special_tokens=True)], longest


@torch.no_grad()
def curves(model: Miniature, scenes: int) -> dict[str, dict]:
    """The descending CLS similarity by kind and layer: means at some ranks, and what the top holds.

    `auc` is how well it tells patches of things from ground, `own` what CLS keeps for itself.
    """
    found: dict[str, list] = {}
    for columns in _pictures(scenes):
        x = forward.embed_patches(model.vision, columns["pixels"], columns["keep"])
        for index, layer in enumerate(model.vision.encoder.layers):
            before = x
            x, full, each = forward.vision_layer(layer, x, HEADS)
            hidden = (before[:, :1].float() * before[:, 1:].float()).sum(-1) * before.shape[-1] ** -0.5
            kinds = {"attention": full.softmax(-1), "attention_heads": each.softmax(-1).mean(1)}
            kinds["hidden"] = F.pad(hidden.softmax(-1), (1, 0))
            for kind, values in kinds.items():
                found.setdefault(f"{kind}-{index}", []).append((values, columns["owner"] > 0))
    return {name: _curve(*(torch.cat(part) for part in zip(*parts, strict=True))) for name, parts in found.items()}


def _curve(values, shown) -> dict:
    patches = values[:, 1:]
    falling = patches.sort(1, descending=True)[0].mean(0)
    share = falling.cumsum(0) / falling.sum()
    return {
        "ranks": [float(f"{falling[r - 1]:.2g}") for r in RANKS],
        "own": round(values[:, 0].mean().item(), 3),
        "top_1%": round(share[5].item(), 3),
        "top_10%": round(share[57].item(), 3),
        "top_22%": round(share[127].item(), 3),
        "auc": round(_auc(patches, shown), 3),
    }


def _auc(scores, true) -> float:
    """Mean over rows of the chance that a true patch scores above a false one."""
    ranks = scores.argsort(1).argsort(1).float() + 1
    count = true.sum(1).float()
    rows = (count > 0) & (count < true.shape[1])
    sums = (ranks * true).sum(1) - count * (count + 1) / 2
    return (sums / (count * (true.shape[1] - count)))[rows].mean().item()


@torch.no_grad()
def phrases(model: Miniature, scenes: int) -> dict[str, float]:
    """How well the text-patch cosine finds what a phrase is about, and how often a picture its caption among 16."""
    areas, hits = [], []
    for columns in _pictures(scenes):
        ids = columns["caption"]
        x = forward.embed_patches(model.vision, columns["pixels"], columns["keep"])
        *layers, last = model.vision.encoder.layers
        for layer in layers:
            x = forward.vision_layer(layer, x, HEADS)[0]
        cls = forward.last_vision_layer(last, x, HEADS)[0]
        post = model.vision.post_layernorm
        patches, image = (model.visual_projection(forward.normalise(t, post)).float() for t in (x[:, 1:], cls))
        texts = F.normalize(model.text(input_ids=ids.flatten(0, 1)).text_embeds.float(), dim=-1).view(
            *ids.shape[:2], -1
        )
        cosine = texts[:, 1:] @ F.normalize(patches, dim=-1).transpose(1, 2)
        areas.append(_auc(cosine.flatten(0, 1), about(columns["owner"], columns["about"]).flatten(0, 1)))
        hits.append(((F.normalize(image, dim=-1) @ texts[:, 0].T).argmax(1) == torch.arange(len(ids))).float().mean())
    return {"phrase_auc": round(float(np.mean(areas)), 3), "caption_retrieval_of_16": round(float(np.mean(hits)), 3)}


def _pictures(scenes: int):
    encode = Encoder()
    for start in range(FINAL_SEED, FINAL_SEED + scenes, 16):
        some = [scene(seed) for seed in range(start, start + 16)]
        yield batch(some, [[]] * 16, Plan(16), encode, random.Random(start))
