"""In which numbers a model is held and by which kernel it attends: chosen by device, refused where it cannot run."""

import logging
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, BitsAndBytesConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
QUANTIZATIONS = ("none", "int8", "int4")
ATTENTIONS = ("sdpa", "flash_attention_2")
NEVER = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]  # quantised; prefixes of full names
OLDEST = {"bitsandbytes": (0, 46, 1), "accelerate": (1, 1, 0)}  # that transformers takes; before, no CPU kernels
UNMASKED = "longtail_unmasked"  # the name under which our attention is registered


@dataclass(frozen=True)
class Precision:
    """`quantization` is of the decoder's linear layers alone, the rest is in `dtype`; `double`: int4's scales too."""

    dtype: torch.dtype
    quantization: str = "none"
    double: bool = True
    attention: str = "sdpa"

    @property
    def words(self) -> str:
        """float32, or int4 with the rest in float32."""
        dtype = str(self.dtype).removeprefix("torch.")
        return dtype if self.quantization == "none" else f"{self.quantization} with the rest in {dtype}"


def choose(dtype: str, quantization: str, device: str, attention: str = "sdpa", double: bool = True) -> Precision:
    """What was asked for, `auto` settled. Raises ValueError for an unknown option and for what cannot run here."""
    asked = (("dtype", dtype, DTYPES), ("quantization", quantization, QUANTIZATIONS))
    for option, value, allowed in (*asked, ("attention", attention, ATTENTIONS)):
        if value not in allowed:
            raise ValueError(f"{option} must be one of {', '.join(allowed)}, got {value!r}")
    precision = Precision(DTYPES[dtype] or best(device), quantization, double, attention)
    if quantization != "none":
        _refuse_packages(quantization)
        _refuse_gpu(quantization, device)
    if attention != "sdpa":
        _refuse_flash(precision, device)
    return precision


def best(device: str) -> torch.dtype:
    """float32 on a CPU, bfloat16 on a GPU, float16 on one that has none of its own (a T4)."""
    if device == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def runs(quantization: str, linears: dict[str, nn.Linear], device: str) -> bool:
    """Whether a decoder of these layers can be quantised so on this device, packages aside."""
    try:
        _refuse_gpu(quantization, device)
        refuse_shapes(quantization, linears, device)
    except ValueError:
        return False
    return True


def refuse_shapes(quantization: str, linears: dict[str, nn.Linear], device: str) -> None:
    """ValueError where 4-bit kernels cannot take a decoder layer's shape: known from the config alone."""
    if quantization != "int4":
        return
    for name, layer in linears.items():
        if layer.in_features % 64 or (device == "cpu" and layer.out_features % 32):
            raise ValueError(
                f"int4 packs 64 weights a block, and on a CPU 32 rows: {name} has {layer.in_features} columns and "
                f"{layer.out_features} rows; use quantization none or int8"
            )


def options(precision: Precision, device: str) -> dict:
    """The keyword arguments of from_pretrained. `device`: where to; auto spreads over all GPUs, by accelerate."""
    given = {"dtype": precision.dtype, "attn_implementation": _attention(precision), "use_safetensors": True}
    if precision.quantization != "none":
        given["quantization_config"] = _bits_and_bytes(precision)
    if precision.quantization != "none" or (device != "cpu" and find_spec("accelerate")):
        given["device_map"] = device if device == "auto" else {"": device}
    return given


def held(model: nn.Module) -> int:
    """Bytes of a loaded model's weights, with the scales that bitsandbytes keeps beside them."""
    total = 0
    for weight in model.parameters():
        state, rows = getattr(weight, "quant_state", None), getattr(weight, "SCB", None)
        scales = [rows] if rows is not None else []
        while state is not None:
            scales += [part for part in (state.absmax, state.code, state.offset) if part is not None]
            state = state.state2
        total += weight.nbytes + sum(tensor.nbytes for tensor in scales)
    return total


# ---- quantisation


def _bits_and_bytes(precision: Precision) -> BitsAndBytesConfig:
    """int8, or NF4. The tower stays whole: its scores decide what is kept."""
    if precision.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=NEVER)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        llm_int8_skip_modules=NEVER,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=precision.double,
        bnb_4bit_compute_dtype=precision.dtype,
    )


def _refuse_packages(quantization: str) -> None:
    """transformers asks for them too, but only after the download."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # else int8 says once a matmul that it casts
    try:
        import accelerate  # noqa: F401
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ValueError(f"{quantization} needs two packages more: pip install bitsandbytes accelerate") from error
    for package, least in OLDEST.items():
        if _version(package) < least:
            wanted = ".".join(map(str, least))
            raise ValueError(
                f"{quantization} needs {package} {wanted} or newer, {version(package)} is installed: "
                f"pip install --upgrade {package}"
            )


def _version(package: str) -> tuple[int, ...]:
    """Of an installed package: numbers, as far as they go."""
    try:
        parts = version(package).split("+")[0].split(".")[:3]
    except PackageNotFoundError:
        return (0,)
    return tuple(int(part) for part in parts if part.isdecimal())


def _refuse_gpu(quantization: str, device: str) -> None:
    if quantization != "int8" or device == "cpu":
        return
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < (7, 5):
        raise ValueError(
            f"int8 needs a GPU of compute capability 7.5 or above (T4 and later), this one has {major}.{minor}: "
            "use --quantization int4 or --dtype float16"
        )


# ---- attention


def _attention(precision: Precision):
    """The language model's and the tower's: the tower is short, and capturing its scores reads SDPA's layout."""
    if precision.attention == "sdpa":
        return "sdpa"
    AttentionInterface.register(UNMASKED, unmasked)
    AttentionMaskInterface.register(UNMASKED, sdpa_mask)
    return {"": "sdpa", "text_config": UNMASKED, "vision_config": "sdpa"}


def unmasked(module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options):
    """FlashAttention where there is no mask (prefill), SDPA where there is one (slots of the cache, while decoding).

    query [B, H, T, D], key and value [B, G, S, D] -> [B, T, H, D] and no weights.
    """
    if attention_mask is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    from flash_attn import flash_attn_func

    rows = (states.transpose(1, 2) for states in (query, key, value))
    return flash_attn_func(*rows, softmax_scale=options.get("scaling"), causal=query.shape[2] > 1), None


def _refuse_flash(precision: Precision, device: str) -> None:
    if not find_spec("flash_attn"):
        raise ValueError("flash_attention_2 needs one package more: pip install flash-attn, or use --attention sdpa")
    if device == "cpu":
        raise ValueError("flash_attention_2 runs on a GPU only: use --attention sdpa on a CPU")
    if precision.dtype == torch.float32:
        raise ValueError("flash_attention_2 takes 16 bits only: use --dtype bfloat16 or float16, or --attention sdpa")
