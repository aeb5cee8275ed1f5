"""The page about the page: the method drawn, which model answers, what its numbers can say, privacy, whom to cite."""

import json
import math
from html import escape

import gradio as gr
from safetensors import safe_open

from longtail.models.catalogue import TINY
from longtail.models.loading import gib

from .drawing import ALPHA, drawing, scene
from .words import say

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


def about(llava, logged: bool = False) -> None:
    """Lay the content out in the Blocks around; `llava` is None where no model answers, `logged` whether questions are
    in the server's log."""
    with gr.Column(elem_classes="about-page"):
        gr.HTML(figure(), elem_classes="about-figure", js_on_load=None)
        gr.HTML(_section("model", model(llava)), js_on_load=None)
        gr.HTML(_section("honest", honest()), js_on_load=None)
        gr.HTML(_section("privacy", _paragraph("privacy_logged" if logged else "privacy_text")), js_on_load=None)
        gr.HTML(_section("cite", citations()), js_on_load=COPY)


def figure() -> str:
    """The method drawn, and what is made up about it."""
    curve = scene()
    caption = _paragraph("caption", len(curve.similarity), ALPHA, curve.knee, curve.kept)
    return f"<figure>{_paragraph('lead')}{drawing()}<figcaption>{caption}</figcaption></figure>"


def model(llava) -> str:
    """Which model answers, and what it is good for."""
    if llava is None:
        return _paragraph("none") + _paragraph("none_limits")
    if llava.name == "tiny":
        return _paragraph("tiny") + _paragraph("tiny_limits") + _miniature() + _loaded(llava.loaded)
    dtype = str(llava.dtype).removeprefix("torch.")
    return (
        _paragraph("other", llava.name, dtype, llava.device, *llava.grid)
        + (_paragraph("tiles", llava.most_tiles) if llava.most_tiles else "")
        + _paragraph("other_limits")
        + _loaded(llava.loaded)
    )


def honest() -> str:
    """What is counted, what follows, what is only one run, what is read into the paper, what cannot be said."""
    items = "".join(f"<dt>{say(f'about_{name}')}</dt><dd>{say(f'about_{name}_text')}</dd>" for name in HONEST)
    return f"<dl>{items}</dl>"


def citations() -> str:
    """BibTeX, and a button that copies it."""
    button = f'<button type="button" data-copied="{say("about_copied")}">{say("about_copy")}</button>'
    return f"{_paragraph('cite_text')}<pre tabindex='0'><code>{escape(CITATIONS)}</code></pre>{button}"


def _loaded(loaded) -> str:
    """What its weights took of the memory, and which they are where there are several."""
    if loaded is None or loaded.before is None:
        return ""
    memory = _paragraph("memory", *map(gib, (loaded.weights, loaded.before, loaded.after)))
    named = loaded.revision or loaded.adapter
    return memory + (_paragraph("from", loaded.revision or "-", loaded.adapter or "-") if named else "")


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
    stats = "".join(f"<li><b>{value}</b>{say(f'about_stat_{name}')}</li>" for name, value in numbers.items())
    source = _paragraph("tiny_source", measured["scenes"], FEWER, patches)
    return f'<ul class="about-stats">{stats}</ul><div class="about-source">{source}</div>'


def _parameters() -> int:
    """Weights of the bundled model, by the header of its file."""
    with safe_open(TINY / "model.safetensors", "pt") as weights:
        return sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())


def _section(name: str, body: str) -> str:
    title = say(f"about_{name}_title")
    return f'<section class="about-section about-{name}"><h2>{title}</h2><div>{body}</div></section>'


def _paragraph(text: str, *facts) -> str:
    return (
        f'<p class="about-{text.replace("_", "-")}">{say(f"about_{text}", *(escape(str(fact)) for fact in facts))}</p>'
    )
