"""The forward pass of transformers' CLIP and Llama layers, written as few functions so that they compile once.

`tests/test_tiny.py` holds them to the stock classes.
"""

import torch
import torch.nn.functional as F

from .attention import attend
from .world import GRID, PATCH


def embed_patches(vision, pixels, keep):
    """Pixels [B, side, side, 3] in bytes and kept patches [B, V] -> [B, 1 + V, D], CLS first."""
    batch, tokens = keep.shape
    x = pixels.view(batch, GRID, PATCH, GRID, PATCH, 3).permute(0, 1, 3, 5, 2, 4).reshape(batch, GRID * GRID, -1)
    if tokens < GRID * GRID:
        x = torch.gather(x, 1, keep[..., None].expand(-1, -1, x.shape[-1]))
    weight, positions = vision.embeddings.patch_embedding.weight, vision.embeddings.position_embedding.weight
    x = F.linear((x.to(weight.dtype) - 127.5) / 64, weight.flatten(1)) + F.embedding(keep + 1, positions)
    cls = (vision.embeddings.class_embedding + positions[0]).expand(batch, 1, -1)
    return normalise(torch.cat([cls, x], 1), vision.pre_layrnorm)


def normalise(x, norm):
    return F.layer_norm(x, (x.shape[-1],), norm.weight, norm.bias, 1e-5)


def vision_layer(layer, x, heads):
    """-> the layer's output and what CLS attends to in it: logits over the 1 + V keys, full width and per head."""
    batch, length, width = x.shape
    attention = layer.self_attn
    h = normalise(x, layer.layer_norm1)
    query, key, value = (
        p(h).view(batch, length, heads, -1).transpose(1, 2)
        for p in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    each = (query[:, :, :1] @ key.transpose(-1, -2)).float()[:, :, 0]  # [B, H, 1 + V]
    out = attend(query, key, value).transpose(1, 2).reshape(batch, length, width)
    x = x + attention.out_proj(out)
    h = layer.mlp.fc1(normalise(x, layer.layer_norm2))
    x = x + layer.mlp.fc2(h * torch.sigmoid(1.702 * h))
    return x, each.sum(1) * width**-0.5, each * (width // heads) ** -0.5


def last_vision_layer(layer, x, heads):
    """The same for CLS alone: nothing reads the patches after the last layer."""
    batch, length, width = x.shape
    attention = layer.self_attn
    h = normalise(x, layer.layer_norm1)
    query = attention.q_proj(h[:, :1]).view(batch, 1, heads, -1).transpose(1, 2)
    key, value = (p(h).view(batch, length, heads, -1).transpose(1, 2) for p in (attention.k_proj, attention.v_proj))
    each = (query @ key.transpose(-1, -2)).float()[:, :, 0]
    weights = torch.softmax(each * (width // heads) ** -0.5, -1).to(x.dtype)[:, :, None]
    x = x[:, :1] + attention.out_proj((weights @ value).transpose(1, 2).reshape(batch, 1, width))
    h = layer.mlp.fc1(normalise(x, layer.layer_norm2))
    x = x + layer.mlp.fc2(h * torch.sigmoid(1.702 * h))
    return x[:, 0], each.sum(1) * width**-0.5, each * (width // heads) ** -0.5


def project(llava, features):
    projector = llava.model.multi_modal_projector
    return projector.linear_2(F.gelu(projector.linear_1(features)))


def rms(x, weight):
    y = x.float()
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype) * weight


def rotations(positions, width, dtype):
    """Cosines and sines of RoPE, [B, 1, T, width]."""
    rates = 10000 ** -(torch.arange(0, width, 2, device=positions.device) / width)
    angles = positions[..., None].float() * rates
    angles = torch.cat([angles, angles], -1)[:, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _rotate(x, cos, sin):
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


def language_layer(layer, x, cos, sin, mask, heads):
    batch, length, width = x.shape
    attention = layer.self_attn
    h = rms(x, layer.input_layernorm.weight)
    query, key, value = (
        p(h).view(batch, length, heads, -1).transpose(1, 2)
        for p in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    out = attend(_rotate(query, cos, sin), _rotate(key, cos, sin), value, mask)
    x = x + attention.o_proj(out.transpose(1, 2).reshape(batch, length, width))
    h = rms(x, layer.post_attention_layernorm.weight)
    return x + layer.mlp.down_proj(F.silu(layer.mlp.gate_proj(h)) * layer.mlp.up_proj(h))
