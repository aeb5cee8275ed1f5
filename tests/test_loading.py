"""From a name to a model in memory: downloads, refusals before them, precision, adapters."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from hub import COMMIT, hub
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

import longtail
from longtail.models import Llava, catalogue, fetch, memory, precision
from longtail.models import adapter as lora
from longtail.models.catalogue import KNOWN, weights
from longtail.models.loading import Loaded, Progress, gib
from longtail.models.precision import Precision

ROOT = Path(__file__).parents[1]
ASK = "What is here?"


# ---- the catalogue


def test_parameters_are_those_of_the_released_checkpoints():
    """Counts that the hub shows for the files of llava-hf."""
    counted = {name: catalogue.counted(catalogue.architecture(KNOWN[name].config())) for name in KNOWN}
    assert counted["llava-1.5-7b"] == 7_063_427_072
    assert counted["llava-1.5-13b"] == 13_351_494_656
    assert counted["llava-1.6-mistral-7b"] == 7_566_747_648
    assert counted["llava-1.6-vicuna-7b"] == counted["llava-1.5-7b"] + 4096  # image_newline
    tiny = load_file(catalogue.TINY / "model.safetensors")
    assert counted["tiny"] == sum(tensor.numel() for tensor in tiny.values())


def test_views_and_tokens():
    assert catalogue.most_tokens(KNOWN["llava-1.5-7b"].config()) == (1, 576)
    assert catalogue.most_tokens(KNOWN["llava-1.6-vicuna-7b"].config()) == (5, 576 + 48 * 49)


def test_four_bits_are_what_the_paper_says():
    """QLoRA: 0.127 bits a weight for scales quantised again, 0.5 for plain ones."""
    rows, columns = 11008, 4096
    assert 8 * catalogue._nf4_nested(rows, columns) / (rows * columns) == pytest.approx(4.127, abs=5e-4)
    assert 8 * catalogue._nf4(rows, columns) / (rows * columns) == pytest.approx(4.5, abs=5e-4)


def test_models_are_listed(capsys):
    from longtail.__main__ import main

    assert main(["models", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == list(KNOWN)
    mistral = rows["llava-1.6-mistral-7b"]
    assert mistral["bytes_by_arithmetic"]["bfloat16"] == 2 * mistral["parameters"]
    assert (mistral["views"], mistral["clip"]) == (5, "openai/clip-vit-large-patch14-336")
    assert main(["models"]) == 0
    table = capsys.readouterr().out
    assert "llava-1.5-7b          7,063 M     26.3     13.2" in table and "by arithmetic" in table


# ---- the hub, in processes of their own


@pytest.fixture(scope="module")
def repositories(folder, tmp_path_factory):
    """On disk: the random model whole, in two shards, pickled only, without a tokenizer, lacking weights."""
    top = tmp_path_factory.mktemp("hub")
    made = {name: top / name for name in ("whole", "shards", "pickled", "bare", "partial")}
    for place in made.values():
        shutil.copytree(folder, place, ignore=shutil.ignore_patterns("clip", "*.md"))
    (made["whole"] / "pytorch_model.bin").write_bytes(b"never fetched")
    (made["whole"] / "run_me.py").write_text("never fetched")
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    halves = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in (0, 1)}
    for file, keys in halves.items():
        save_file({key: tensors[key] for key in keys}, made["shards"] / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: file for file, keys in halves.items() for key in keys}}
    (made["shards"] / fetch.INDEX).write_text(json.dumps(index))
    (made["shards"] / fetch.WEIGHTS).unlink()
    (made["pickled"] / fetch.WEIGHTS).rename(made["pickled"] / "pytorch_model.bin")
    (made["bare"] / "tokenizer.json").unlink()
    lacking = {key: tensors[key] for key in names if "mm" not in key and "projector" not in key}
    save_file(lacking, made["partial"] / fetch.WEIGHTS, metadata={"format": "pt"})
    return {f"someone/{name}": place for name, place in made.items()}


def loads(cases: list[dict], home: Path, endpoint: str, **environment) -> subprocess.Popen:
    """A fresh process that loads one case after another."""
    env = os.environ | {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", **environment}
    env = {name: value for name, value in env.items() if name != "HF_HUB_CACHE"}
    command = [sys.executable, str(ROOT / "tests" / "loads.py"), json.dumps(cases)]
    env["PYTHONPATH"] = str(ROOT)
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def told(process: subprocess.Popen) -> list[dict]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


CASES = {
    "little memory": {"name": "someone/whole", "free": "less than its weights"},
    "full disk": {"name": "someone/whole", "disk": 100_000},
    "gated": {"name": "someone/gated"},
    "nobody": {"name": "someone/nothing"},
    "revision": {"name": "someone/whole", "revision": "v9"},
    "pickled": {"name": "someone/pickled"},
    "bare": {"name": "someone/bare"},
    "partial": {"name": "someone/partial"},
    "whole": {"name": "someone/whole"},
    "again": {"name": "someone/whole", "revision": COMMIT},
    "shards": {"name": "someone/shards", "dtype": "bfloat16"},
}


@pytest.fixture(scope="module")
def online(repositories, tmp_path_factory):
    """Every case against a hub that works: results by name, the hub's log, the cache."""
    home = tmp_path_factory.mktemp("hf")
    CASES["little memory"]["free"] = (repositories["someone/whole"] / fetch.WEIGHTS).stat().st_size * 9 // 10
    with hub(repositories, gated=("someone/gated",)) as (address, log):
        results = told(loads(list(CASES.values()), home, address))
    return dict(zip(CASES, results, strict=True)), log, home


@pytest.mark.parametrize(
    "case, words",
    [
        ("little memory", ["whole in float32 needs", "GiB are free on the CPU: try", "--quantization int8"]),
        ("full disk", ["someone/whole needs", "GiB more on disk", "GiB are free at", "set HF_HOME"]),
        ("gated", ["someone/gated is gated: accept its terms at http", "hf auth login"]),
        ("nobody", ["there is no repository someone/nothing on the hub, or it is private"]),
        ("revision", ["someone/whole has no revision 'v9'"]),
        ("pickled", ["no weights in safetensors, only pickled ones (pytorch_model.bin)", "llava-hf"]),
        ("bare", ["someone/bare has no tokenizer (tokenizer.json or tokenizer.model)"]),
        ("partial", ["someone/partial lacks 4 of the weights", "multi_modal_projector", "llava-hf"]),
    ],
)
def test_what_the_hub_cannot_give_is_a_sentence(online, case, words):
    results, _, _ = online
    assert "error" in results[case], results[case]
    for part in words:
        assert part in results[case]["error"]
    assert "\n" not in results[case]["error"]


def test_refusals_come_before_a_weight_is_asked_for(online):
    """All that was refused stood before the first case that loads: no weight of these repositories was requested."""
    _, log, _ = online
    asked = [line.split("/resolve/")[0].split()[1] for line in log if line.endswith(".safetensors")]
    assert not {"someone/pickled", "someone/bare", "someone/gated"} & set(asked)
    first = next(i for i, line in enumerate(log) if line.endswith(".safetensors") and "someone/whole" in line)
    assert any("someone/partial" in line for line in log[:first])  # so memory and disk had been refused by then


def test_a_download_tells_how_far_it_is(online, repositories):
    results, log, _ = online
    steps = [Progress(*step) for step in results["whole"]["told"]]
    assert [*dict.fromkeys(step.phase for step in steps)] == ["config", "files", "weights"]
    files = [step for step in steps if step.phase == "files"]
    wanted = [f for f in repositories["someone/whole"].iterdir() if f.suffix not in (".bin", ".py")]
    new = sum(f.stat().st_size for f in wanted if f.name != "config.json")  # that one was there by then
    assert {step.total for step in files} == {new} and files[-1].done == new
    assert [step.done for step in files] == sorted(step.done for step in files)
    assert {step.file for step in files} == {f.name for f in wanted} - {"config.json"}
    assert not [line for line in log if line.endswith((".bin", ".py"))]


def test_what_is_cached_is_not_fetched_again(online):
    results, _, home = online
    assert not [step for step in results["again"]["told"] if step[0] == "files"]
    assert results["again"]["loaded"]["revision"] == results["whole"]["loaded"]["revision"] == COMMIT
    assert (home / "hub" / "models--someone--whole" / "snapshots" / COMMIT / "config.json").is_file()


def test_shards_load_like_one_file(online):
    results, _, _ = online
    whole, shards = (results[name]["loaded"]["weights_bytes"] for name in ("whole", "shards"))
    assert shards == whole / 2 and results["shards"]["layers"] == 3


def test_without_a_network_the_cache_answers(online):
    _, _, home = online
    cases = [{"name": "someone/whole"}, {"name": "someone/never"}, {"name": "someone/bare"}]
    dead = "http://127.0.0.1:9"  # nobody listens there
    offline, cut = loads(cases, home, dead, HF_HUB_OFFLINE="1"), loads(cases, home, dead)
    for process, why in ((offline, "HF_HUB_OFFLINE is set"), (cut, "cannot be reached")):
        there, never, part = told(process)
        assert there["loaded"]["revision"] == COMMIT, there
        assert why in never["error"] and "someone/never is not in the cache" in never["error"]
        assert why in part["error"] and "only part of someone/bare" in part["error"]


# ---- folders


def test_a_folder_that_lacks_a_shard_names_it(repositories, tmp_path):
    place = tmp_path / "m"
    shutil.copytree(repositories["someone/shards"], place)
    (place / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of the 2 weight files .* model-00002-of-00002.safetensors; copy"):
        longtail.load(str(place))


def test_a_folder_has_no_revision(folder):
    with pytest.raises(ValueError, match="a revision belongs to a hub id"):
        longtail.load(str(folder), revision="main")


# ---- memory


def test_memory_is_refused_with_what_would_fit(monkeypatch):
    monkeypatch.setattr(memory, "free", lambda device: 15 * 2**30)
    config = KNOWN["llava-1.5-13b"].config()
    with pytest.raises(ValueError) as caught:
        memory.refuse(
            "llava-1.5-13b", config, Precision(torch.float32), "cpu", weights(config, Precision(torch.float32))
        )
    said = str(caught.value)
    assert said.startswith(
        "llava-1.5-13b in float32 needs 49.7 GiB of weights (arithmetic; answering takes more), 15.0"
    )
    assert "--quantization int4" in said and "--dtype bfloat16" not in said and "--model tiny" in said
    monkeypatch.setattr(memory, "free", lambda device: 27 * 2**30)
    with pytest.raises(
        ValueError, match=r"try --dtype bfloat16 \(24.9 GiB\), .*--model llava-1.6-vicuna-7b \(26.3 GiB\)"
    ):
        memory.refuse(
            "llava-1.5-13b", config, Precision(torch.float32), "cpu", weights(config, Precision(torch.float32))
        )
    monkeypatch.setattr(memory, "free", lambda device: 1000)
    with pytest.raises(ValueError, match="free some, or use a machine with more"):
        memory.refuse("llava-1.5-13b", config, Precision(torch.float32), "cpu", 10**9)


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    for name, text in (("max", "1000"), ("current", "900"), ("stat", "anon 1\ninactive_file 300\n")):
        (tmp_path / name).write_text(text)
    files = tuple(str(tmp_path / name) for name in ("max", "current", "stat"))
    monkeypatch.setattr(memory, "GROUPS", (files,))
    assert memory.free("cpu") == 400
    (tmp_path / "max").write_text("max\n")
    assert memory.free("cpu") > 10**8


def test_several_gpus_take_what_one_cannot(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device=None: (10, 16))
    assert memory.spread("auto", "cuda", 15) == "auto" and memory.spread("auto", "cuda", 9) == "cuda"
    assert memory.spread("auto", "cuda", 25) == "cuda" and memory.spread("cuda", "cuda", 15) == "cuda"
    monkeypatch.setattr(precision, "find_spec", lambda name: True)
    assert precision.options(Precision(torch.bfloat16), "auto")["device_map"] == "auto"
    assert precision.options(Precision(torch.bfloat16), "cuda")["device_map"] == {"": "cuda"}


# ---- precision


def gpu(monkeypatch, capability: tuple[int, int]):
    """As torch speaks of a GPU of that compute capability."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: capability >= (8, 0))


@pytest.mark.parametrize("capability, dtype", [((7, 5), torch.float16), ((8, 6), torch.bfloat16)])
def test_the_device_decides_the_dtype(monkeypatch, capability, dtype):
    gpu(monkeypatch, capability)
    assert precision.choose("auto", "none", "cuda").dtype == dtype
    assert precision.choose("float32", "none", "cuda").dtype == torch.float32
    assert precision.choose("auto", "none", "cpu").dtype == torch.float32


def test_what_cannot_run_is_refused(monkeypatch, folder):
    gpu(monkeypatch, (7, 0))
    with pytest.raises(ValueError, match=r"int8 needs a GPU of compute capability 7.5 .* this one has 7.0: use"):
        precision.choose("auto", "int8", "cuda")
    with pytest.raises(ValueError, match="attention must be one of sdpa, flash_attention_2, got 'eager'"):
        longtail.load(str(folder), attention="eager")
    with pytest.raises(ValueError, match="pip install flash-attn"):
        longtail.load(str(folder), attention="flash_attention_2")
    monkeypatch.setattr(precision, "find_spec", lambda name: True)
    with pytest.raises(ValueError, match="runs on a GPU only"):
        longtail.load(str(folder), attention="flash_attention_2")
    with pytest.raises(ValueError, match="takes 16 bits only"):
        precision.choose("float32", "none", "cuda", "flash_attention_2")
    monkeypatch.setattr(precision, "version", lambda package: "0.45.5")
    with pytest.raises(ValueError, match=r"int8 needs bitsandbytes 0.46.1 or newer, 0.45.5 is installed: pip install"):
        longtail.load(str(folder), quantization="int8")


def test_four_bits_refuse_a_shape_they_cannot_pack(folder, tmp_path):
    place = resized(folder, tmp_path / "narrow", 48, 128)
    with pytest.raises(ValueError, match=r"int4 packs 64 weights a block.*q_proj has 48 columns and 48 rows; use"):
        longtail.load(str(place), quantization="int4")


def resized(folder: Path, place: Path, hidden: int, inner: int) -> Path:
    """The random model with a language model of other widths."""
    shutil.copytree(folder, place, ignore=shutil.ignore_patterns("clip", "model.safetensors", "config.json"))
    config = AutoConfig.from_pretrained(folder)
    config.text_config.update({"hidden_size": hidden, "intermediate_size": inner, "head_dim": hidden // 4})
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def wide(folder, tmp_path_factory):
    """Wide enough for 4-bit blocks."""
    return resized(folder, tmp_path_factory.mktemp("wide") / "model", 64, 128)


@pytest.mark.parametrize("kind, layer", [("int8", "Linear8bitLt"), ("int4", "Linear4bit")])
def test_only_the_decoders_linear_layers_are_quantised(wide, picture, kind, layer):
    llava = longtail.load(str(wide), quantization=kind)
    kinds = {name: type(module).__name__ for name, module in llava.model.named_modules() if hasattr(module, "weight")}
    taken = {name for name, found in kinds.items() if found == layer}
    assert len(taken) == 3 * 7 and all(name.startswith("model.language_model.layers.") for name in taken)
    whole = dict(longtail.load(str(wide)).model.named_parameters())
    untouched = {name for name in whole if name.rpartition(".")[0] not in taken}
    assert len([name for name in untouched if "vision_tower" in name or "projector" in name]) > 80
    now = dict(llava.model.named_parameters())
    assert all(torch.equal(now[name], whole[name]) for name in untouched)
    answer = longtail.answer(llava, picture, ASK, longtail.LongTail(), max_new_tokens=3)
    assert answer.tokens.generated == 3 and llava.quantization == kind


@pytest.mark.parametrize("kind, double", [("none", True), ("int8", True), ("int4", True), ("int4", False)])
def test_the_arithmetic_is_what_is_held(wide, kind, double):
    """To the byte."""
    llava = longtail.load(str(wide), quantization=kind, double_quantization=double)
    assert llava.loaded.weights == weights(llava.model.config, Precision(torch.float32, kind, double))


@pytest.fixture
def flash(monkeypatch):
    """The package is not here: a stand-in with its layout, which notes what it was asked for."""
    calls = []

    def flash_attn_func(query, key, value, softmax_scale, causal):
        calls.append(causal)
        rows = (states.transpose(1, 2) for states in (query, key, value))
        out = functional.scaled_dot_product_attention(*rows, is_causal=causal, scale=softmax_scale, enable_gqa=True)
        return out.transpose(1, 2)

    package = ModuleType("flash_attn")
    package.flash_attn_func = flash_attn_func
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    return calls


def test_flash_attends_without_a_mask_and_sdpa_with_one(flash):
    torch.manual_seed(0)
    module = SimpleNamespace(num_key_value_groups=2, is_causal=True, training=False)
    query, key, value = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)
    mine, _ = precision.unmasked(module, query, key, value, None, scaling=8**-0.5)
    mask = torch.full((5, 5), float("-inf")).triu(1)[None, None]
    other, _ = precision.unmasked(module, query, key, value, mask, scaling=8**-0.5)
    assert flash == [True] and torch.allclose(mine, other, atol=1e-6)
    last, _ = precision.unmasked(module, query[:, :, -1:], key, value, None, scaling=8**-0.5)
    assert flash == [True, False] and torch.allclose(last[:, 0], other[:, -1], atol=1e-6)


def test_flash_is_for_the_language_model_alone(flash, folder, llava, picture):
    """transformers takes the names we register, and an answer goes through ours."""
    given = precision.options(Precision(torch.float32, attention="flash_attention_2"), "cpu")
    model = AutoModelForImageTextToText.from_pretrained(folder, **given)
    assert model.config.text_config._attn_implementation == precision.UNMASKED
    assert model.config.vision_config._attn_implementation == "sdpa"
    fast = Llava(model, AutoProcessor.from_pretrained(folder, backend="pil"))
    ours, plain = (longtail.answer(m, picture, ASK, longtail.Full(), max_new_tokens=4) for m in (fast, llava))
    assert ours.text == plain.text
    assert flash == [True] * 3 + [False] * 3 * (ours.tokens.generated - 1)  # a layer each: prefill, later tokens


# ---- adapters

RANK, ALPHA = 4, 6
TARGET = "layers.1.self_attn.q_proj"
OWN, NOW, BEFORE = "model.", "model.language_model.", "language_model.model."


def adapter(folder: Path, layout: str = NOW, shape: tuple[int, int] = (64, 64), **changes) -> dict:
    """A LoRA adapter on disk for one projection -> its matrices."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(5)
    parts = {"lora_A": torch.randn(RANK, shape[1]), "lora_B": torch.randn(shape[0], RANK)}
    file = {f"base_model.model.{layout}{TARGET}.{part}.weight": tensor for part, tensor in parts.items()}
    save_file(file, folder / lora.LORA)
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": ["q_proj"],
        "task_type": "CAUSAL_LM",
    }
    (folder / lora.CONFIG).write_text(json.dumps(config | changes))
    return parts


def projection(llava, index: int = 1):
    return llava.decoder_layers[index].self_attn.q_proj


@pytest.mark.parametrize("layout", [NOW, OWN, BEFORE])
def test_an_adapter_is_merged(wide, tmp_path, layout, picture):
    """W + alpha / r * B A by hand, in whatever layout the file is; no other weight, the tower's q_proj among them."""
    parts = adapter(tmp_path, layout)
    plain, adapted = longtail.load(str(wide)), longtail.load(str(wide), adapter=str(tmp_path))
    before = dict(plain.model.named_parameters())
    by_hand = projection(plain).weight + ALPHA / RANK * parts["lora_B"] @ parts["lora_A"]
    for name, tensor in adapted.model.named_parameters():
        if name == f"{NOW}{TARGET}.weight":
            assert torch.allclose(tensor, by_hand, atol=1e-6) and not torch.allclose(tensor, before[name])
        else:
            assert torch.equal(tensor, before[name]), name
    assert type(projection(adapted)) is torch.nn.Linear
    assert adapted.loaded.adapter == str(tmp_path) and adapted.loaded.weights == plain.loaded.weights
    assert longtail.answer(adapted, picture, ASK, longtail.Full(), max_new_tokens=3).text


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_an_adapter_stands_beside_quantised_weights(wide, tmp_path, kind, picture):
    parts = adapter(tmp_path)
    plain = longtail.load(str(wide), quantization=kind)
    adapted = longtail.load(str(wide), quantization=kind, adapter=str(tmp_path))
    states = torch.randn(3, 64)
    with torch.inference_mode():
        beside = projection(adapted)(states) - projection(plain)(states)
    by_hand = ALPHA / RANK * states @ parts["lora_A"].T @ parts["lora_B"].T
    assert torch.allclose(beside, by_hand, atol=1e-3)
    assert "lora" in type(projection(adapted)).__module__ and type(projection(adapted, 0)) is type(projection(plain, 0))
    assert longtail.answer(adapted, picture, ASK, longtail.LongTail(), max_new_tokens=3).tokens.generated == 3


def test_the_projector_that_was_trained_along_is_taken(wide, tmp_path):
    adapter(tmp_path, OWN)
    names = {"0.weight": "linear_1.weight", "0.bias": "linear_1.bias", "2.weight": "linear_2.weight"}
    plain = longtail.load(str(wide))
    mine = {key: torch.randn_like(plain.projector.get_parameter(name)) for key, name in names.items()}
    save_file({f"base_model.model.model.mm_projector.{key}": t for key, t in mine.items()}, tmp_path / lora.BESIDE)
    adapted = longtail.load(str(wide), adapter=str(tmp_path))
    for key, name in names.items():
        assert torch.equal(adapted.projector.get_parameter(name), mine[key])
    assert torch.equal(adapted.projector.linear_2.bias, plain.projector.linear_2.bias)


def test_adapters_that_cannot_be_used_are_refused(wide, tmp_path, monkeypatch):
    def refused(sentence, place="a"):
        with pytest.raises(ValueError, match=sentence):
            longtail.load(str(wide), adapter=str(tmp_path / place) if place == "a" else place)

    refused("there is no adapter 'nowhere'", "nowhere")
    adapter(tmp_path / "a", "model.somewhere.")
    refused(r"does not fit the model: base_model.model.model.somewhere.*lora_A.weight, .* have no weight of that name")
    adapter(tmp_path / "a", shape=(64, 32))
    refused(r"does not fit the model: .*q_proj.lora_A.weight")
    adapter(tmp_path / "a", peft_type="IA3")
    refused("is of the kind IA3: only LoRA is supported")
    adapter(tmp_path / "a", use_dora=True)
    refused("is of the kind DoRA")
    adapter(tmp_path / "a")
    (tmp_path / "a" / "non_lora_trainables.bin").write_bytes(b"pickled")
    refused(r"holds non_lora_trainables.bin, which is pickled .* weights_only=True")
    (tmp_path / "a" / "non_lora_trainables.bin").unlink()
    (tmp_path / "a" / lora.LORA).rename(tmp_path / "a" / "adapter_model.bin")
    refused(r"holds adapter_model.bin, which is pickled")
    (tmp_path / "a" / "adapter_model.bin").unlink()
    refused("has no adapter_model.safetensors")
    monkeypatch.setattr(lora, "find_spec", lambda name: None)
    refused("pip install peft")


# ---- what is said of it


def test_progress_and_memory_in_words():
    assert Progress("files", 3 * 2**30, 13 * 2**30, "a.safetensors").line() == "3.0 of 13.0 GiB, a.safetensors"
    loaded = Loaded("", "", 14 * 2**30, 40 * 2**30, 26 * 2**30)
    assert loaded.line() == "weights 14.0 GiB; memory free 40.0 GiB before, 26.0 GiB after"
    assert Loaded("", "", 2**30, None, None).line() == "weights 1.0 GiB" and gib(2**24) == "0.02"


def test_a_terminal_is_told(folder, monkeypatch, capsys):
    from longtail.__main__ import main, parser

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    flags = ["--double-quantization", "--attention", "sdpa"]
    argv = ["answer", str(ROOT / "assets" / "examples" / "seven-objects.png"), ASK, "--model", str(folder)]
    assert main([*argv, "--max-new-tokens", "1", *flags]) == 0
    err = capsys.readouterr().err
    assert "weights 0.00 of 0.00 GiB" in err and "memory free" in err.splitlines()[-1]
    assert parser(argv).parse_args([*argv, "--no-double-quantization", "--revision", "v1"]).revision == "v1"


def test_the_log_of_a_server_is_told_in_lines(monkeypatch, caplog, folder):
    import app

    monkeypatch.setattr(app, "warm_up", lambda llava: None)
    monkeypatch.setenv("LONGTAIL_DOUBLE_QUANTIZATION", "off")
    flags = app.parsed(["--model", str(folder)])
    assert flags.double_quantization is False and flags.attention == "sdpa" and flags.adapter is None
    steps = []
    with caplog.at_level("INFO", "longtail"):
        llava = app.loaded(flags, str(folder), progress=steps.append)
    lines = caplog.messages
    assert [step.phase for step in steps] == ["config", "weights", "weights", "warm_up"]
    assert any(line.endswith("warm up") for line in lines) and lines[-1].endswith(llava.loaded.line())
    with pytest.raises(ValueError, match="a revision belongs to a hub id"):
        app.loaded(app.parsed(["--model", str(folder), "--revision", "v1"]), str(folder))
    other = app.parsed(["--model", "llava-1.5-7b", "--revision", "v1"])
    assert app.loaded(other, str(folder)).name == folder.name  # the revision is of --model alone
