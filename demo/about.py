"""The page about the page: the method drawn, which model answers, what its numbers can say, privacy, whom to cite."""

import json
import math
from html import escape

import gradio as gr
from safetensors import safe_open

from longtail.models import TINY

from .drawing import ALPHA, drawing, scene

TEXT = {
    "lead": "How few of an image’s tokens does a language model need?",
    "figure_title": "How LongTail prunes",
    "figure_desc": (
        "An image is cut into patches; a CLIP vision tower compares each patch with CLS at layer 16; "
        "the similarities, sorted, fall steeply, flatten into a long tail, and are cut behind the knee; the "
        "patches before the cut are put into the prompt between its words; the language model reads the prompt; its KV "
        "cache holds the entries that received most similarity and the newest ones, and gives up the least related."
    ),
    "image": "Image",
    "image_text": "cut into patches, each one visual token",
    "tower": "CLIP tower",
    "tower_text": "at layer 16 of 24, how similar is each patch to CLS?",
    "curve": "Long tail",
    "curve_text": "the similarities, sorted; the knee i* is where f is highest, and the cut follows from it",
    "prompt": "Prompt",
    "prompt_text": "the kept tokens, spliced in between the words",
    "model": "Language model",
    "model_text": "reads fewer tokens",
    "cache": "KV cache",
    "cache_text": "holds a budget; for each new token the least related leaves",
    "knee_mark": "knee i*",
    "cut_mark": "kept",
    "heavy_mark": "heavy",
    "recent_mark": "recent",
    "caption": (
        "A drawing: the scene and its scores are made up. Knee and cut are computed from them as on a real image: "
        "f(i) = (n − i)(d₁ − dᵢ) / (d₁ − dₙ), i* = argmax f, kept = ⌊α (n − i*)⌋; "
        "here n = {n}, α = {alpha}, i* = {knee}, kept = {kept}."
    ),
    "model_title": "The model that answers",
    "tiny": (
        "A miniature answers here: a LLaVA of the real classes (CLIP tower, projector, Llama), trained from nothing "
        "on drawn scenes, small enough to come with the code. It knows coloured shapes and short strings, nothing else."
    ),
    "tiny_limits": (
        "Where its CLS looks was taught, things before ground. So it shows how a method works, not that it works: a "
        "curve drawn on it is no evidence about a real LLaVA, and a photograph tells it nothing."
    ),
    "tiny_source": (
        "Exact match on {scenes} held-out scenes, by teacher forcing, the mean over families of questions; the last "
        "two keep {fewer} of {patches} tokens. The model's card has the rest."
    ),
    "other": "{name} answers here, in {dtype} on {device}; an image is {rows} × {columns} patches to it.",
    "other_limits": (
        "It is not the miniature that comes with LongTail. Nobody has measured its accuracy here: what you see is one "
        "answer to one question."
    ),
    "none": "No model answers here: this page shows reports that were recorded before.",
    "none_limits": "Each report names its model, its device and the conditions of its times.",
    "stat_parameters": "parameters",
    "stat_tokens": "visual tokens an image",
    "stat_full": "right with all tokens",
    "stat_cls": "right, kept by CLS",
    "stat_random": "right, kept at random",
    "honest_title": "What the numbers say",
    "measured": "Measured",
    "measured_text": (
        "Answers, tokens kept, prompt length, entries and bytes of the KV cache are counted in the run you see. Times "
        "are taken in it, from pixels to words, the drawing of this page left out."
    ),
    "arithmetic": "Arithmetic",
    "arithmetic_text": (
        "A share is one count over another. What follows from a formula and the sizes of a model, such as operations "
        "or memory traffic, is labelled as such, and is not a time."
    ),
    "once": "n = 1",
    "once_text": (
        "One run is one run: another program may have wanted the machine just then. Read a time as an impression, a "
        "count as exact. Repeat and take the median to compare."
    ),
    "interpretation": "Interpretation",
    "interpretation_text": (
        "The paper prints α i* as the number kept, but its own counts come out of ⌊α (n − i*)⌋: that is our default, "
        "and the other readings of α are a setting. It tells the cache's budget in three ways; ours scores embeddings."
    ),
    "silent": "What no number here shows",
    "silent_text": (
        "Whether a method is good in general. That takes a real model, a benchmark and many questions. A right answer "
        "after pruning may be luck, a wrong one too."
    ),
    "privacy_title": "Privacy",
    "privacy_text": (
        "An image you upload is deleted from this server within about an hour. Nobody looks at it, and neither it nor "
        "your question is logged. There are no analytics and no third-party cookies, and this page asks no other "
        "server for anything. Only a program that gives the API an address of an image makes this server fetch it."
    ),
    "cite_title": "Citations",
    "cite_text": "The method, its neighbours in this comparison, and the model family.",
    "copy": "Copy BibTeX",
    "copied": "Copied",
}

CITATIONS = r"""@article{yu2024sparsity, title={Sparsity Meets Similarity: Leveraging Long-Tail Distribution for Dynamic Optimized Token Representation in Multimodal Large Language Models}, author={Yu, Gaotong and Chen, Yi and Xu, Jian}, journal={arXiv:2409.01162}}
@inproceedings{shang2025prumerge, title={LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models}, author={Shang, Yuzhang and Cai, Mu and Xu, Bingxin and Lee, Yong Jae and Yan, Yan}, booktitle={ICCV}, year={2025}}
@inproceedings{liu2024improved, title={Improved Baselines with Visual Instruction Tuning}, author={Liu, Haotian and Li, Chunyuan and Li, Yuheng and Lee, Yong Jae}, booktitle={CVPR}, year={2024}}
@inproceedings{zhang2023h2o, title={H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models}, author={Zhang, Zhenyu and others}, booktitle={NeurIPS}, year={2023}}
"""  # noqa: E501 (as in the README, to be pasted)

COPY = """
const button = element.querySelector('button');
button.onclick = () => {
  getSelection().selectAllChildren(element.querySelector('code'));
  document.execCommand('copy');
  button.textContent = button.dataset.copied;
};"""
FEWER = 58  # of measurements.json: a tenth of the tokens
HONEST = ("measured", "arithmetic", "once", "interpretation", "silent")


def about(llava) -> None:
    """Lay the content out in the Blocks around; `llava` is None where no model answers."""
    with gr.Column(elem_classes="about-page"):
        gr.HTML(figure(), elem_classes="about-figure", js_on_load=None)
        gr.HTML(_section("model", model(llava)), js_on_load=None)
        gr.HTML(_section("honest", honest()), js_on_load=None)
        gr.HTML(_section("privacy", _paragraph("privacy_text")), js_on_load=None)
        gr.HTML(_section("cite", citations()), js_on_load=COPY)


def figure() -> str:
    """The method drawn, and what is made up about it."""
    curve = scene()
    facts = {"n": len(curve.similarity), "alpha": ALPHA, "knee": curve.knee, "kept": curve.kept}
    caption = _paragraph("caption", **facts)
    return f"<figure>{_paragraph('lead')}{drawing(TEXT)}<figcaption>{caption}</figcaption></figure>"


def model(llava) -> str:
    """Which model answers, and what it is good for."""
    if llava is None:
        return _paragraph("none") + _paragraph("none_limits")
    if llava.name == "tiny":
        return _paragraph("tiny") + _paragraph("tiny_limits") + _miniature()
    rows, columns = llava.grid
    dtype = str(llava.dtype).removeprefix("torch.")
    facts = {"name": llava.name, "dtype": dtype, "device": llava.device, "rows": rows, "columns": columns}
    return _paragraph("other", **facts) + _paragraph("other_limits")


def honest() -> str:
    """What is counted, what follows, what is only one run, what is read into the paper, what cannot be said."""
    items = "".join(f"<dt>{escape(TEXT[name])}</dt><dd>{escape(TEXT[f'{name}_text'])}</dd>" for name in HONEST)
    return f"<dl>{items}</dl>"


def citations() -> str:
    """BibTeX, and a button that copies it."""
    button = f'<button type="button" data-copied="{escape(TEXT["copied"])}">{escape(TEXT["copy"])}</button>'
    return f"{_paragraph('cite_text')}<pre tabindex='0'><code>{escape(CITATIONS)}</code></pre>{button}"


def _miniature() -> str:
    """The bundled model in five numbers, each read from the files that come with it."""
    measured = json.loads((TINY / "measurements.json").read_text(encoding="utf-8"))
    config = json.loads((TINY / "config.json").read_text(encoding="utf-8"))
    table, patches = measured["table"], config["image_seq_length"]
    numbers = {
        "parameters": f"{_parameters() / 1e6:.1f} M",
        "tokens": str(patches),
        "full": f"{table[f'cls-{patches}']['mean']:.1%}",
        "cls": f"{table[f'cls-{FEWER}']['mean']:.1%}",
        "random": f"{table[f'random-{FEWER}']['mean']:.1%}",
    }
    stats = "".join(f"<li><b>{value}</b>{escape(TEXT[f'stat_{name}'])}</li>" for name, value in numbers.items())
    source = _paragraph("tiny_source", scenes=measured["scenes"], fewer=FEWER, patches=patches)
    return f'<ul class="about-stats">{stats}</ul><div class="about-source">{source}</div>'


def _parameters() -> int:
    """Weights of the bundled model, by the header of its file."""
    with safe_open(TINY / "model.safetensors", "pt") as weights:
        return sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())


def _section(name: str, body: str) -> str:
    title = escape(TEXT[f"{name}_title"])
    return f'<section class="about-section about-{name}"><h2>{title}</h2><div>{body}</div></section>'


def _paragraph(text: str, /, **facts) -> str:
    return f'<p class="about-{text.replace("_", "-")}">{escape(TEXT[text].format(**facts))}</p>'
