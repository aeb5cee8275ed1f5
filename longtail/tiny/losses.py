"""The objectives: answers, what patches and the picture show, where CLS looks, and CLIP's image-text contrast."""

import torch
import torch.nn.functional as F

from . import forward
from .model import HEADS, IMAGE_LABELS, LETTER_WEIGHT, PATCH_LABELS, PATCH_WEIGHTS
from .questions import FAMILIES
from .tokenizer import BOS
from .world import MOST_ITEMS, SHAPES

DESCRIBE = FAMILIES.index("describe")
# How strongly CLS's view entering each vision layer is shaped: methods read layers 4, 5 and 6 of 7.
SHAPED = (0.0, 0.05, 0.05, 0.1, 1.0, 1.0, 1.0)
CLS_SHARE = 0.08  # of the attention that CLS may give to itself
DESCRIBE_WEIGHT = 0.5
LEGIBLE = 0.6  # share of a text's patches without which nobody can be asked to read it


class Passes:
    """The layers' forward functions, compiled or plain."""

    def __init__(self, compiled: bool = False):
        wrap = (lambda f: torch.compile(f, dynamic=False)) if compiled else (lambda f: f)
        self.vision, self.last, self.language = map(
            wrap, (forward.vision_layer, forward.last_vision_layer, forward.language_layer)
        )


def look(model, batch, passes):
    """Run the vision tower: -> patch features (layer -2), last CLS, saliency loss, what CLS attends to in layer 4."""
    vision = model.vision
    x = forward.embed_patches(vision, batch["pixels"], batch["keep"])
    wanted = batch["saliency"] / batch["saliency"].sum(1, keepdim=True)
    with_cls = torch.cat([torch.full_like(wanted[:, :1], CLS_SHARE), wanted * (1 - CLS_SHARE)], 1)
    loss, seen = 0.0, None
    *layers, last = vision.encoder.layers
    for index, layer in enumerate([*layers, last]):
        before = x
        x, full, each = (passes.vision if layer is not last else passes.last)(layer, x, HEADS)
        if SHAPED[index]:
            cls = (before[:, :1].float() * before[:, 1:].float()).sum(-1) * before.shape[-1] ** -0.5
            heads = torch.log(each.softmax(-1).mean(1) + 1e-7)
            parts = (with_cls * full.log_softmax(-1)).sum(1) + 0.5 * (with_cls * heads).sum(1)
            parts = parts + (wanted * cls.log_softmax(-1)).sum(1)
            loss = loss - SHAPED[index] * parts.mean() / 3
        if index == 4:
            seen = full[:, 1:].detach()
        if layer is not last:
            features = x[:, 1:]
    return features, forward.normalise(x, vision.post_layernorm), loss, seen


def teach(model, features, cls, batch):
    """The linear heads' losses on patches and on the picture."""
    teachers = model.teachers
    logits = teachers.patch_head(forward.normalise(features, teachers.patch_norm)).float()
    patch = 0.0
    for (name, classes), part in zip(PATCH_LABELS.items(), logits.split(list(PATCH_LABELS.values()), -1), strict=True):
        weight = part.new_ones(classes)
        if name not in ("background", "count"):
            weight[0] = 0.3
        if name == "content":
            weight[1 + len(SHAPES) :] = LETTER_WEIGHT
        patch = patch + PATCH_WEIGHTS[name] * F.cross_entropy(part.flatten(0, 1), batch[name].flatten(), weight)
    shown, count, ground = teachers.image_head(cls).float().split([IMAGE_LABELS, MOST_ITEMS + 1, 3], -1)
    image = 6 * F.binary_cross_entropy_with_logits(shown, batch["image"])
    image = (
        image + 0.2 * F.cross_entropy(count, batch["total"][:, 0]) + 0.2 * F.cross_entropy(ground, batch["total"][:, 1])
    )
    return patch, image, logits


def letters_read(logits, batch):
    """How many letter patches the head gets right, and of how many; the same for items."""
    said, true = logits[..., : PATCH_LABELS["content"]].argmax(-1), batch["content"]
    letter, item = true > len(SHAPES), (true > 0) & (true <= len(SHAPES))
    return torch.stack([((said == true) & m).sum() if k else m.sum() for m in (letter, item) for k in (1, 0)]).float()


def contrast(model, features, cls, batch):
    """CLIP's loss of captions against pictures, and phrases against the patches that they are about."""
    ids = batch["caption"]
    texts = model.text(input_ids=ids.flatten(0, 1)).text_embeds.float()
    texts = F.normalize(texts, dim=-1).view(*ids.shape[:2], -1)
    post = model.vision.post_layernorm
    images = F.normalize(model.visual_projection(cls).float(), dim=-1)
    logits = images @ texts[:, 0].T * model.caption_scale.float().exp().clamp(max=60)
    pairs = torch.arange(len(logits), device=logits.device)
    captions = (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2
    patches = F.normalize(model.visual_projection(forward.normalise(features, post)).float(), dim=-1)
    scores = texts[:, 1:] @ patches.transpose(1, 2) * model.phrase_scale.float().exp().clamp(max=60)
    meant = about(batch["owner"], batch["about"]).float()
    share = meant / meant.sum(-1, keepdim=True).clamp(min=1)
    phrases = -(share * scores.log_softmax(-1)).sum(-1).mean()
    return captions, phrases


def about(owner, bits):
    """Which patches belong to the things of a bit set: [B, V], [B, P] -> [B, P, V]."""
    thing = torch.where(owner > 0, 1 << (owner - 1).clamp(min=0), 0)
    return (thing[:, None] & bits[..., None]) > 0


def answer(model, features, batch, chosen, positions, passes):
    """Run the language model on chosen patches [B, K]; -> logits where something is learnt, and where that is."""
    llava = model.llava
    language = llava.model.language_model
    features = torch.gather(features, 1, chosen[..., None].expand(-1, -1, features.shape[-1]))
    visual = forward.project(llava, features)
    token, block = batch["token"], batch["block"]
    table = language.embed_tokens.weight
    start = F.embedding(token.new_tensor([BOS, batch["user"]]), table).expand(len(token), 2, -1)
    x = torch.cat([start, visual, F.embedding(token, table)], 1)
    first = positions.max(1, keepdim=True)[0] + 1
    lead = torch.arange(2, device=token.device).expand(len(token), 2)
    cos, sin = forward.rotations(
        torch.cat([lead, positions, first + batch["offset"]], 1), x.shape[-1] // HEADS, x.dtype
    )
    mask = packed_mask(block, 2 + visual.shape[1], x.dtype)
    for layer in language.layers:
        x = passes.language(layer, x, cos, sin, mask, HEADS)
    learnt = batch["target"] >= 0
    x = forward.rms(x[:, 2 + visual.shape[1] :][learnt], language.norm.weight)
    return llava.lm_head(x).float(), learnt


def packed_mask(block, prefix, dtype):
    """Every question sees the prefix and, causally, itself: an additive mask, [B, 1, T, T]."""
    batch, length = block.shape
    total = prefix + length
    sees = torch.ones(total, total, dtype=torch.bool, device=block.device).tril().expand(batch, -1, -1).clone()
    sees[:, prefix:, prefix:] &= block[:, :, None] == block[:, None, :]
    return torch.zeros(batch, 1, total, total, dtype=dtype, device=block.device).masked_fill_(~sees[:, None], -1e4)


def visible_bits(batch, chosen):
    """Bits of the things that can still be seen [B]: items with a patch left, texts with most of theirs left."""
    sizes, left = batch["sizes"], torch.gather(batch["owner"], 1, chosen)
    counts = torch.zeros_like(sizes).scatter_add_(1, left, torch.ones_like(left))
    index = torch.arange(sizes.shape[1], device=sizes.device)[None]
    needed = torch.where(index > batch["total"][:, :1], LEGIBLE * sizes, 1)
    alive = (counts >= needed) & (sizes > 0) & (index > 0)
    return (alive.long() << (index - 1).clamp(min=0)).sum(1)


def answer_loss(logits, learnt, batch, alive):
    """Cross-entropy of the answers' tokens, without those that speak of things that no visual token shows."""
    target, family, needs = (batch[name][learnt] for name in ("target", "family", "needs"))
    unseen = (needs & ~alive[:, None].expand_as(learnt)[learnt]) != 0
    weight = torch.where(family == DESCRIBE, DESCRIBE_WEIGHT, 1.0) * ~unseen
    return (F.cross_entropy(logits, target, reduction="none") * weight).sum() / weight.sum().clamp(min=1)
