"""Two languages: every text is used and stands in both, and a visitor sees one of them alone, in every tab."""

import ast
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from demo import drawing, words
from demo.texts import TEXTS
from longtail.export import PHASES

SPEAKERS = {"say", "label", "choice", "t"}
SOURCES = [
    ast.parse(path.read_text(encoding="utf-8"))
    for path in Path(words.__file__).parent.glob("*.py")
    if path.name != "texts.py"
]
HEADS = {
    "en-US": {
        "tabs": ["Compare", "Sweep", "Results", "About"],
        "sweep": "What agreement costs",
        "plan": "3 runs: the unpruned model; one value of budget for LongTail, TopK.",
        "go": "Sweep",
        "done": "Done: 3 runs in",
        "rows": [
            "setting",
            "tokens",
            "true tokens",
            "agreement",
            "same answer",
            "KL, nats",
            "first token",
            "of unpruned",
        ],
        "up": "agreement with the unpruned answer, %",
        "results": "What accuracy costs",
        "mean": "all: mean over families",
        "shown": "results.json: 151 settings of 31 methods",
        "first": ["Full", "as it comes", "576"],
        "about": ["The model that answers", "What the numbers say", "Privacy", "Citations"],
        "step": "cut into patches, each one visual token",
        "copied": "Copied",
    },
    "zh-CN": {
        "tabs": ["对比", "扫描", "结果", "关于"],
        "sweep": "一致度的代价",
        "plan": "3 次运行：未剪枝的模型；一个 budget 取值，用于 LongTail, TopK。",
        "go": "扫描",
        "done": "完成：3 次运行，用时",
        "rows": ["设定", "token", "实际 token", "一致度", "回答相同", "KL（nats）", "首 token", "相对未剪枝"],
        "up": "与未剪枝回答的一致度，%",
        "results": "准确率的代价",
        "mean": "全部：各类问题的均值",
        "shown": "results.json：151 种设定，31 种方法",
        "first": ["Full", "默认", "576"],
        "about": ["正在回答的模型", "数字说明什么", "隐私", "引用"],
        "step": "切成图块，每块一个视觉 token",
        "copied": "已复制",
    },
}


# ---- the texts


def test_a_text_has_the_same_places_in_both_languages():
    for key, (english, chinese) in TEXTS.items():
        assert english.count("{}") == chinese.count("{}") and english.strip() and chinese.strip(), key
        assert not re.search('[<>&"\ue000-\ue002]', english + chinese), f"{key} goes into HTML as it is"


def spoken(source: ast.AST) -> list[ast.expr]:
    """The keys that a file speaks, as expressions."""
    calls = (node for node in ast.walk(source) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name))
    return [call.args[0] for call in calls if call.func.id in SPEAKERS and call.args]


def test_every_spoken_key_is_a_text():
    keys = {key.value for source in SOURCES for key in spoken(source) if isinstance(key, ast.Constant)}
    assert len(keys) > 80 and keys <= set(TEXTS)


def test_every_text_is_spoken():
    """By its key, a phase's too, or by a key that is put together with another word of the same file."""
    used = set(PHASES)
    for source in SOURCES:
        known = {str(node.value) for node in ast.walk(source) if isinstance(node, ast.Constant)}
        used |= known
        for key in (key for key in spoken(source) if isinstance(key, ast.JoinedStr)):
            pattern = "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in key.values)
            used |= {pattern.format(word) for word in known}
    assert set(TEXTS) - used == set()


def test_places_are_filled_in_order_and_marks_taken_away():
    text = words.say("sweep_late", "9 s", 3, 7)
    assert words.english(text) == "Ended after 9 s, the longest that a sweep here may take: 3 of 7 runs."
    assert words.say("results_shown", "a", 1, 2).endswith("methods" + words.END)
    assert "\ue000done_but.1\ue002 of \ue001" in words.say("done_but", 1, 2), "the same words, named by their text"
    assert "\ue000answering.1\ue002 is answering, \ue001" in words.say("answering", "TopK", 1, 2)


def test_a_piece_that_one_language_alone_has_is_marked():
    assert words.english(words.say("ran", 1, 2)) == "ran 1 of 2"
    assert words.CHINESE["ran.2"] == " 个" and words.say("ran", 1, 2).endswith("\ue000ran.2\ue002\ue001")


def test_no_choice_is_taken_for_a_label():
    """Gradio translates whatever is a key, a method's or a parameter's name too."""
    assert all(key.startswith("words/") for key in words.LABELS)


# ---- the browser


@pytest.mark.parametrize("locale", HEADS)
def test_every_tab_speaks_the_visitors_language(visit, locale):
    tab, said = visit(locale=locale), HEADS[locale]
    expect(tab.get_by_role("tab")).to_have_text(said["tabs"])
    sweeps(tab, said)
    shows_results(tab, said)
    tells_about(tab, said)
    whole = tab.locator("main").evaluate("node => node.outerHTML")
    assert not re.search("[\ue000-\ue002]|__i18n__|words/", whole)
    values = tab.evaluate("[...document.querySelectorAll('input, textarea')].map(field => field.value).join()")
    assert not re.search("[\ue000-\ue002]|__i18n__|words/", values)


def sweeps(tab, said):
    tab.get_by_role("tab", name=said["tabs"][1]).click()
    expect(tab.locator(".sweep-head h2")).to_have_text(said["sweep"])
    tab.locator(".sweep-ask input[type=text]").last.fill("2")
    expect(tab.locator(".sweep-plan p")).to_have_text(said["plan"])
    expect(tab.locator(".sweep-go")).to_have_text(said["go"])
    tab.locator(".sweep-go").click()
    expect(tab.locator(".sweep-message p")).to_contain_text(said["done"])
    heads = tab.locator(".sweep-table th[scope=col]")
    expect(heads.first).to_be_visible()
    assert heads.all_inner_texts()[:8] == said["rows"]
    expect(tab.locator(".by-tokens .annotation-text", has_text=said["up"])).to_be_visible()


def shows_results(tab, said):
    tab.get_by_role("tab", name=said["tabs"][2]).click()
    expect(tab.locator(".results-head h2")).to_have_text(said["results"])
    expect(tab.locator(".results-choose input").first).to_have_value(said["mean"])
    expect(tab.locator(".results-shown p")).to_have_text(said["shown"])
    row = tab.locator(".results-table tbody tr").first
    expect(row).to_be_visible()
    assert row.locator("th, td").all_inner_texts()[:3] == said["first"]


def tells_about(tab, said):
    tab.get_by_role("tab", name=said["tabs"][3]).click()
    expect(tab.locator(".about-section h2")).to_have_text(said["about"])
    expect(tab.locator(".about-wide foreignObject").first).to_have_text(said["step"])
    for width, kind in ((1440, "wide"), (390, "tall")):
        tab.set_viewport_size({"width": width, "height": 900})
        expect(tab.locator(f".about-{kind}")).to_be_visible()
        sizes = tab.locator(f".about-{kind} foreignObject p").evaluate_all(
            "all => all.map(p => [p.offsetHeight, p.scrollWidth - p.offsetWidth])"
        )
        assert len(sizes) == 6 and all(0 < tall <= drawing.LINES and wide == 0 for tall, wide in sizes)
    tab.locator(".about-cite button").click()
    expect(tab.locator(".about-cite button")).to_have_text(said["copied"])
