"""What the page says, English and Chinese side by side. The browser picks the language; what the library says of itself
(a method's docstring, a parameter's help, why something is refused) stays as it was written."""

import json

import gradio as gr

from .chart import script

TEXTS = {
    # the page
    "tab_compare": ("Compare", "对比"),
    "tab_sweep": ("Sweep", "扫描"),
    "tab_results": ("Results", "结果"),
    "tab_about": ("About", "关于"),
    "claim": (
        "See what a vision-language model still needs when you take its visual tokens away.",
        "看看拿走视觉 token 之后，视觉语言模型还需要什么。",
    ),
    "model_answers": ("The model that answers", "正在回答的模型"),
    "grid": ("{} x {} patches", "{} x {} 个图块"),
    "peak": ("peak {}", "峰值 {}"),
    "no_model": ("no model loaded: reports only", "未加载模型：只能回放报告"),
    "model": ("Model", "模型"),
    "loading_model": ("{} is being loaded …", "正在加载 {} …"),
    "loaded": ("{} is loaded. The one before it is gone.", "{} 已加载，之前的模型已卸载。"),
    # asking
    "image": ("Image", "图像"),
    "question": ("Question", "问题"),
    "question_hint": ("What do you want to know about the image?", "想知道图中的什么？"),
    "run": ("Run", "运行"),
    "stop": ("Stop", "停止"),
    "clear": ("Clear", "清空"),
    "measure": ("Measure", "测量"),
    "follow": ("Follow up", "追问"),
    "more": ("More", "更多"),
    "examples": ("Example scenes", "示例场景"),
    "invitation": ("Ready: press Run, or ask something else.", "就绪：点击“运行”，或换个问题。"),
    "empty": ("Drop an image in, paste one, or pick an example scene.", "拖入或粘贴一张图像，或选一个示例。"),
    "truth": ("True answer: {}", "正确答案：{}"),
    "new_tokens": ("max new tokens", "最多新 token 数"),
    "new_tokens_info": ("where an answer is cut off", "回答在此处截断"),
    "temperature": ("temperature", "温度"),
    "temperature_info": ("0: the likeliest token, always", "0：总取最可能的 token"),
    "seed": ("seed", "随机种子"),
    "seed_info": ("of the draws, above temperature 0", "温度大于 0 时用于抽样"),
    "repeats": ("repeats of Measure", "“测量”的重复次数"),
    "repeats_info": (
        "each method so often, in an order shuffled anew each round",
        "每种方法运行这么多次，每轮重新打乱顺序",
    ),
    "need_question": ("Type what you want to know about the image.", "请输入想了解的内容。"),
    "need_image": ("Drop an image in, paste one, or pick an example scene.", "请拖入或粘贴一张图像，或选一个示例。"),
    # the bar
    "add": ("Add a method", "添加方法"),
    "remove": ("Remove", "移除"),
    "unpruned": ("Add unpruned", "添加未剪枝"),
    "presets": ("Presets", "预设"),
    "preset_paper": ("Main paper", "主论文"),
    "preset_leaders": ("Main paper vs the leaders at equal budget", "主论文与领先方法（相同预算）"),
    "preset_random": ("What random does", "随机的效果"),
    "preset_stages": ("Stage 1 / stage 2 / both", "阶段一 / 阶段二 / 两者"),
    "equal": ("equal budget", "相同预算"),
    "equal_info": (
        "visual tokens for every method but Full; 0: each its own",
        "除 Full 外每种方法的视觉 token 数；0：各自设定",
    ),
    "veil": ("veil", "遮罩"),
    "log": ("log scale", "对数刻度"),
    "link": ("Copy link", "复制链接"),
    "copied": ("Link copied", "链接已复制"),
    "export": ("Export", "导出"),
    "replay": ("Replay a report", "回放报告"),
    "parameters": ("Parameters", "参数"),
    "method_n": ("Method {}", "方法 {}"),
    "paper": ("Paper", "论文"),
    "how": ("How it works", "工作原理"),
    "side_by_side": (
        "one to four methods, the same image, question and seed, one after another in shuffled order",
        "一至四种方法，相同的图像、问题与种子，按打乱的顺序依次运行",
    ),
    # what is going on
    "answering": ("{} is answering, {} of {} …", "{} 正在回答，第 {} 个，共 {} 个 …"),
    "measuring": ("Measuring, round {} of {}: {} …", "测量中，第 {} 轮，共 {} 轮：{} …"),
    "warming": ("Warming up: {} …", "预热中：{} …"),
    "done": ("Done. Change anything and run again.", "完成。可修改后再次运行。"),
    "done_but": ("Done, but {} of {} could not run: the column says why.", "完成，但 {} / {} 未能运行：原因见该列。"),
    "stopped_now": ("Stopped.", "已停止。"),
    "replayed": ("Replayed from {}: nothing was computed now.", "回放自 {}：此刻未做任何计算。"),
    "linked": ("Set as the link says: press Run.", "已按链接设定：点击“运行”。"),
    "linked_but": ("The link could not be followed wholly: {}", "链接无法完全还原：{}"),
    "not_run": ("{} · could not run", "{} · 未能运行"),
    "answer": ("answer", "回答"),
    "length": ("cut off at the limit of new tokens", "达到新 token 上限而截断"),
    "time": ("cut off at the time limit", "达到时间上限而截断"),
    "stopped": ("stopped", "已停止"),
    "reused": ("reused", "复用"),
    "followed": (
        "Followed up: the vision tower was reused where it may be, the language model read everything again.",
        "已追问：可复用时复用视觉塔，语言模型重新读取全部内容。",
    ),
    "followed_alone": (
        "Asked on its own, {} was trained on one question a prompt; the vision tower was reused where it may be.",
        "单独提问：{} 只按每个提示一个问题训练；可复用时复用视觉塔。",
    ),
    "ran": ("ran {} of {}", "第 {} 个运行，共 {} 个"),
    # the panel
    "patches": ("Patches of the image, column", "图像的图块，列"),
    "patch": ("patch", "图块"),
    "row": ("row", "行"),
    "column": ("column", "列"),
    "rank": ("rank", "排名"),
    "similarity": ("similarity", "相似度"),
    "kept": ("kept", "保留"),
    "recovered": ("recovered", "恢复"),
    "merged": ("merged", "合并"),
    "evicted": ("given up later", "之后放弃"),
    "dropped": ("dropped", "丢弃"),
    "toggle": ("hide or show in every column", "在每一列中隐藏或显示"),
    "after": ("after token", "第几个 token 之后"),
    "scrub": ("Generated token after which the patches are shown", "显示第几个生成 token 之后的图块"),
    "curve": ("Similarity curve: arrow keys walk along the ranks", "相似度曲线：方向键沿排名移动"),
    "no_curve": ("sorts no similarity curve.", "不使用相似度曲线。"),
    "curve_here": ("The similarity curve is drawn here.", "相似度曲线将显示在这里。"),
    "by_hand": ("By hand:", "手选："),
    "hand_ask": ("Ask these", "用这些提问"),
    "hand_kept": ("Add what is kept", "加入保留的"),
    "hand_clear": ("Clear", "清空"),
    # numbers
    "of_tokens": ("of {} visual tokens", "/ {} 个视觉 token"),
    "prompt": ("Prompt", "提示"),
    "entering": ("Entering a layer", "进入每层"),
    "generated": ("Generated", "生成"),
    "kv_entries": ("KV entries", "KV 条目"),
    "kv_cache": ("KV cache", "KV 缓存"),
    "given_up": ("Given up later", "之后放弃"),
    "ttft": ("Time to first token", "首 token 时间"),
    "tpot": ("Time per token", "每 token 时间"),
    "total": ("Total", "总时间"),
    "agreement": ("Agreement", "一致度"),
    "kl": ("First-token KL", "首 token KL"),
    "tokens": ("{} tokens", "{} 个 token"),
    "visual": ("{} visual", "{} 个视觉"),
    "a_layer": ("{} a layer", "每层 {}"),
    "gone": ("{}, {} visual", "{}，其中视觉 {}"),
    "nothing": ("none", "无"),
    "nats": ("{} nats", "{} nats"),
    "preprocess": ("preprocess", "预处理"),
    "vision": ("vision", "视觉"),
    "method": ("method", "方法"),
    "prefill": ("prefill", "预填充"),
    "decode": ("decode", "解码"),
    "where_time": ("Where the time went", "时间去向"),
    "n_is": ("n = {}", "n = {}"),
    "arithmetic": ("Arithmetic, not measured:", "仅为算术，并非实测："),
    "arithmetic_line": (
        "{} on {}, {}: prefill {} TFLOP, roofline {}, next token {}",
        "{}，{}，{}：预填充 {} TFLOP，屋顶线 {}，下一 token {}",
    ),
    "arithmetic_of": ("arithmetic for", "算术对象"),
    "arithmetic_gpu": ("on", "硬件"),
    "arithmetic_width": ("in", "位宽"),
    # compared
    "compared": ("Overlap of what is kept", "保留集合的重叠"),
    "compared_note": (
        "Intersection over union of the patches whose own token entered the language model.",
        "自身 token 进入语言模型的图块集合的交并比。",
    ),
    "conditions": ("{} on {}, {} · {}, at most {} new tokens · {}", "{}，{}，{} · {}，最多 {} 个新 token · {}"),
    "greedy": ("greedy", "贪心"),
    "drawn": ("temperature {}, seed {}", "温度 {}，种子 {}"),
    "once": ("n = 1: one run each, one after another, shuffled: {}", "n = 1：各运行一次，依次进行，已打乱：{}"),
    "often": (
        "median (least to most) of {} after one warm-up, order shuffled each round",
        "{} 次的中位数（最小至最大），预热一次，每轮打乱顺序",
    ),
    # how settings count on this image
    "readings": ("On this image", "在此图上"),
    "readings_run": (
        "Run once, and these settings are counted on this very image.",
        "运行一次后，会在这张图上给出这些设定的数量。",
    ),
    "readings_other": (
        "The curve shown is of other settings: run again to count.",
        "当前曲线属于其他设定：请重新运行。",
    ),
    # footer
    "foot_1": ("Reading a column", "如何看一列"),
    "foot_1_text": (
        "The picture is the square that the model itself sees. Patches it still reads are clear and outlined, in blue where a method took them back; merged ones are outlined in the colour of their group; dropped ones are veiled; a cross marks a patch that the language model gave up itself, between two layers or later from its KV cache. Point at the picture or the curve: the same patch lights up everywhere. Click or drag over patches to choose your own.",
        "图片是模型真正看到的方形区域。仍被读取的图块清晰并有轮廓，被方法取回的为蓝色；合并的图块用所在组的颜色勾勒；丢弃的被遮住；打叉的是语言模型自己放弃的图块，发生在层间或之后的 KV 缓存中。指向图片或曲线，同一图块会在各处亮起。点击或拖动即可手选图块。",
    ),
    "foot_2": ("How the numbers are taken", "数字如何得来"),
    "foot_2_text": (
        "Each method runs alone, the whole way from pixels to the last word, on the engine that the command line and the library use. Time to first token covers preprocessing, vision tower, method and prefill; time per token is the median of the later ones. Drawing this page is not in it. One run is one run: read its times as an impression, or press Measure. Counts are exact.",
        "每种方法单独运行，从像素到最后一个词，使用与命令行和库相同的引擎。首 token 时间包括预处理、视觉塔、方法与预填充；每 token 时间是其后各 token 的中位数，不含页面绘制。一次运行只是一次：时间仅供参考，或点击“测量”。数量是精确的。",
    ),
    "foot_3": ("What may be asked", "可以问什么"),
    "foot_3_text": (
        "The bundled miniature (tiny) knows drawn scenes like the examples, nothing else: photographs want a real LLaVA, python app.py --model llava-1.5-7b. Uploads are not kept: a file is deleted from this server within about an hour, never looked at, never logged. No analytics, no request to anybody else.",
        "内置的微型模型（tiny）只认识示例那样的绘制场景：照片需要真正的 LLaVA，python app.py --model llava-1.5-7b。上传的文件不会保留：约一小时内从服务器删除，不查看、不记录。没有统计分析，不向任何第三方发请求。",
    ),
}
PLACE, START, END = "{}", "\ue000", "\ue001"  # the marks stand around a text until the browser has read it
CHINESE = {  # a text is its own key: where nothing translates, it still reads
    piece: other
    for english, chinese in TEXTS.values()
    for piece, other in zip(english.split(PLACE), chinese.split(PLACE), strict=True)
}
LANGUAGE = "language"
I18N = gr.I18n(
    en={LANGUAGE: "en"} | {piece: piece for piece in CHINESE},
    **{tag: CHINESE | {LANGUAGE: "zh"} for tag in ("zh-CN", "zh-TW")},
)
SCRIPT = "const DICTIONARY = " + json.dumps(CHINESE) + script("words.js")


def say(key: str, *values) -> str:
    """A text with values in its places, marked for the browser, which puts the visitor's language there."""
    pieces = [f"{START}{piece}{END}" if piece.strip() else piece for piece in TEXTS[key][0].split(PLACE)]
    return "".join(part for pair in zip(pieces, (*map(str, values), ""), strict=True) for part in pair)


def label(key: str):
    """A text without places as a component's label, which Gradio translates itself."""
    return I18N(TEXTS[key][0])


def english(text: str) -> str:
    """What `say` made, in plain English."""
    return text.replace(START, "").replace(END, "")


def dictionary(keys: tuple[str, ...]) -> gr.HTML:
    """What translates: Gradio tells it the visitor's language. Scripts look `keys` up in it."""
    listed = "".join(f'<i data-word="{key}">{say(key)}</i>' for key in keys)
    return gr.HTML(I18N(LANGUAGE), html_template=listed, js_on_load=SCRIPT, elem_id="words")
