"""LLaVA-1.6 against loops: which patch stands where, what is kept of each tile, where the newlines go.

The references here pack, sort and count by themselves; of the engine they share the weights and nothing else.
"""

import copy
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from test_inside import best, fastv, reference

import longtail
from demo import draw, panel
from longtail import REDUCERS, LongTail, TopK, make, report
from longtail.export import measure
from longtail.models import miniatures

SIDE, PITCH, EACH = 6, 8, 36  # patches of a side, pixels of one, patches of a view
QUESTION = "What stands where?"
SIZES = {
    "1x1": (1, 1),
    "1:20": (4, 80),
    "20:1": (80, 4),
    "exactly one tile": (48, 48),
    "2x2": (96, 96),
    "1x3": (144, 48),
    "3x1": (48, 144),
    "rows unpadded": (150, 100),
    "odd rows": (96, 60),
    "odd columns": (60, 96),
    "few rows": (144, 8),
    "newlines alone": (7, 333),
    "nothing beside the whole": (333, 7),
}
SHAPES = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
SOME = pytest.mark.parametrize("size", [(96, 60), (60, 96), (144, 8)], ids=["odd rows", "odd columns", "few rows"])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("next")
    miniatures.write("llava-1.6-vicuna", folder)
    miniatures.write_clip(folder)
    return folder


@pytest.fixture(scope="module")
def llava(place):
    """A random LLaVA-1.6 with CLIP's text tower."""
    return longtail.load(str(place))


def drawn(size) -> Image.Image:
    """A picture of that width and height, no two patches of it alike."""
    pixels = np.random.default_rng(7).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def say(llava, size, reducer=None, **options):
    return longtail.answer(llava, drawn(size), QUESTION, reducer, **{"max_new_tokens": 3, **options})


# ---- the reference: what stands where


def tiling(width: int, height: int) -> tuple[int, int]:
    """Rows and columns of tiles: the most of the image's own pixels, then the least waste, the first of equals."""
    choices = []
    for tall, wide in miniatures.tilings(miniatures.SIDE):
        scale = min(wide / width, tall / height)
        used = min(int(width * scale) * int(height * scale), width * height)
        choices.append((-used, tall * wide - used, len(choices), (tall // 48, wide // 48)))
    return min(choices)[3]


def packed(size) -> list:
    """What stands behind what: (tile, patch), None for a newline. Padding is cut alike on both sides, rounded down."""
    width, height = size
    rows, columns = tiling(*size)
    tall, wide, top, left = SIDE * rows, SIDE * columns, 0, 0
    if width / height > wide / tall:
        top = (tall - int(round(height * (wide / width), 7))) // 2
    else:
        left = (wide - int(round(width * (tall / height), 7))) // 2
    run = [(0, patch) for patch in range(EACH)]
    for y in range(top, tall - top):
        for x in range(left, wide - left):
            run.append((1 + y // SIDE * columns + x // SIDE, y % SIDE * SIDE + x % SIDE))
        run.append(None)
    return run


def standing(size) -> list[tuple[int, list[int]]]:
    """Each tile with the patches of it that stand, ascending; the whole view first, no empty ones."""
    of = {}
    for entry in packed(size):
        if entry:
            of.setdefault(entry[0], []).append(entry[1])
    return [(tile, sorted(of[tile])) for tile in sorted(of)]


def run_of(size, keeps: list[list[int]]) -> list:
    """The survivors of each view as they stand: (view, its token), None for a newline.

    `keep` counts the patches that stand, in raster order. A token on no patch goes with the first patch of its tile
    where it comes before all others, else with the last; a row left without a token loses its newline, except one that
    never had a patch.
    """
    run, found = packed(size), [(0, token) for token in range(len(keeps[0]))]
    at = {}
    for view, (tile, patches) in enumerate(standing(size)):
        for token, patch in enumerate(keeps[view] if view else []):
            lead = all(other < 0 for other in keeps[view][: token + 1])
            on = patches[patch] if patch >= 0 else patches[0] if lead else patches[-1]
            before = 0 if patch < 0 and lead else 1 if patch >= 0 else 2
            at.setdefault((tile, on), []).append((before, token, view))
    row, had = [], False
    for entry in run[EACH:]:
        if entry:
            had = True
            row += [(view, token) for _, token, view in sorted(at.get(entry, []))]
        else:
            found += [*row, None] if row or not had else []
            row, had = [], False
    return found


# ---- the layout


@SHAPES
def test_every_patch_stands_where_the_model_packs_it(llava, size):
    layout, run = llava.layout(size), packed(size)
    assert len(layout) == len(run)
    assert layout.newlines.tolist() == [i for i, entry in enumerate(run) if entry is None]
    assert layout.tiles == math.prod(tiling(*size)) <= llava.most_tiles == 4
    assert [(view.tile, view.patches.tolist()) for view in layout.views] == standing(size)
    for view in layout.views:
        for patch, position in zip(view.patches.tolist(), view.positions.tolist(), strict=True):
            assert run[position] == (view.tile, patch)
        assert len(view.patches) == view.grid[0] * view.grid[1]
        down = {patch // SIDE for patch in view.patches.tolist()}
        assert len(down) == view.grid[0]


@SHAPES
def test_full_is_stock(llava, size):
    """Features, first logits and tokens; features bit for bit where no tile is left out of the batch."""
    text = llava.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}],
        add_generation_prompt=True,
    )
    inputs = llava.processor(images=drawn(size), text=text, return_tensors="pt")
    answer = say(llava, size, max_new_tokens=12)
    with torch.inference_mode():
        stock = llava.model.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output[0]
        logits = llava.model(**inputs, logits_to_keep=1).logits[0, -1]
        tokens = llava.model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        spliced = llava.splice(llava.prompt(drawn(size), QUESTION), list(answer.reduced))
    first, after = spliced.span
    if len(standing(size)) == 1 + math.prod(tiling(*size)):
        assert torch.equal(spliced.embeddings[first:after], stock)
    torch.testing.assert_close(spliced.embeddings[first:after], stock, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(answer.first_logits, logits, rtol=1e-5, atol=1e-5)
    assert list(answer.token_ids) == tokens.tolist()
    assert answer.tokens.prompt == inputs["input_ids"].shape[1]
    assert answer.tokens.newlines == packed(size).count(None)


def test_bfloat16_is_stock_within_its_precision(place):
    """Two roundings of 2^-8 of the largest feature or logit: batches differ where a tile is left out."""
    half = longtail.load(str(place), dtype="bfloat16")
    for size in ((96, 60), (7, 333)):
        text = half.processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}],
            add_generation_prompt=True,
        )
        inputs = half.processor(images=drawn(size), text=text, return_tensors="pt").to(torch.bfloat16)
        with torch.inference_mode():
            logits = half.model(**inputs, logits_to_keep=1).logits[0, -1].float()
        full = say(half, size)
        assert float((full.first_logits - logits).abs().max() / logits.abs().max()) <= 2**-6
        cut = say(half, size, LongTail())
        assert cut.dtype == "bfloat16" and cut.tokens.visual < full.tokens.visual
        assert [len(view.source) for view in cut.reduced] == [len(patches) for _, patches in standing(size)]


# ---- rows and newlines


NEWLINE_CASES = [
    make("Random", budget=1),
    make("Random", budget=4, seed=3),
    make("Sequential", budget=7),
    make("Manual", patches="0-35"),
    make("PruMerge", budget=4),
    make("PruMerge", variant="paper", budget=4),
    make("VisionZip", dominant=4, contextual=2),
    make("EViT", budget=3),
    make("TRIM", budget=3),
]


@pytest.mark.parametrize("size", [(96, 60), (60, 96), (48, 144), (7, 333)], ids=str)
@pytest.mark.parametrize("reducer", NEWLINE_CASES, ids=longtail.reducer.spec)
@torch.inference_mode()
def test_what_is_left_stands_in_the_models_order(llava, size, reducer):
    """Every embedding of the image's run, its position, its raster, bit for bit; newlines by their rows."""
    answer = say(llava, size, reducer, max_new_tokens=1)
    spliced = llava.splice(llava.prompt(drawn(size), QUESTION), list(answer.reduced))
    keeps = [view.keep.tolist() for view in answer.reduced]
    run, features = run_of(size, keeps), [llava.projector(view.features) for view in answer.reduced]
    (first, after), newline = spliced.span, llava.model.model.image_newline
    expected = torch.stack([newline if entry is None else features[entry[0]][entry[1]] for entry in run])
    assert (after - first, spliced.visual.sum()) == (len(run), sum(map(len, keeps)))
    assert torch.equal(spliced.embeddings[first:after], expected)
    assert spliced.visual.nonzero().flatten().tolist() == [first + i for i, entry in enumerate(run) if entry]
    order = [(view, token) for view, keep in enumerate(keeps) for token in range(len(keep))]
    assert spliced.positions.tolist() == [first + run.index(entry) for entry in order]
    assert answer.positions == tuple(spliced.positions.tolist()) and answer.visual_span == spliced.span
    assert answer.tokens.newlines == run.count(None)
    grids = [view.grid for view in answer.visual]
    for place, entry in enumerate(run, first):
        patch = -1 if entry is None else keeps[entry[0]][entry[1]]
        wide = 1 if entry is None else grids[entry[0]][1]
        assert spliced.raster[place].tolist() == ([patch // wide, patch % wide] if patch >= 0 else [-1, -1])


def test_a_row_that_keeps_nothing_loses_its_newline(llava):
    """Said once without the reference: of 8 rows in two rows of tiles, one patch leaves one newline."""
    assert say(llava, (96, 60), make("Manual", patches="0-35")).tokens.newlines == 0
    assert say(llava, (96, 60), make("Manual", patches="0-35,36")).tokens.newlines == 1
    assert say(llava, (96, 60), make("Manual", patches="0-35,36,60")).tokens.newlines == 1  # two tiles, one row
    assert say(llava, (96, 60), make("Manual", patches="0-35,36,42")).tokens.newlines == 2
    assert say(llava, (7, 333), make("Manual", patches="0")).tokens.newlines == 18  # never had a patch


# ---- the tower, tile by tile


@torch.inference_mode()
def states(llava, size) -> list[list[torch.Tensor]]:
    """transformers' own tower: of each view that stands, the states [1+36, D] entering each layer."""
    pixels = llava.processor.image_processor(drawn(size), return_tensors="pt")["pixel_values"][0]
    tower = llava.model.model.vision_tower
    return [
        [layer[0] for layer in tower(pixels[tile][None], output_hidden_states=True).hidden_states]
        for tile, _ in standing(size)
    ]


def attention(llava, layer: int, hidden: torch.Tensor, patches: list[int], heads: int = 1) -> np.ndarray:
    """What CLS gives to each of the patches alone, CLS itself among the keys, its heads averaged; in float64."""
    block = llava.model.model.vision_tower.encoder.layers[layer]
    with torch.inference_mode():
        x = block.layer_norm1(hidden)[[0, *(1 + patch for patch in patches)]]
        query, key = block.self_attn.q_proj(x[:1])[0], block.self_attn.k_proj(x)
    query, key, mean = query.double().numpy(), key.double().numpy(), 0
    for q, k in zip(np.split(query, heads), np.split(key, heads, axis=1), strict=True):
        score = k @ q / math.sqrt(len(q))
        share = np.exp(score - score.max())
        mean = mean + share / share.sum() / heads
    return mean[1:]


def knee_and_kept(score: np.ndarray, alpha: float) -> tuple[int, list[int]]:
    """Equations 2 and 3 by a loop, then the tail's share; the patches kept, ascending."""
    order = sorted(range(len(score)), key=lambda p: -score[p])
    d, n = [score[p] for p in order], len(score)
    f = [(n - i) * (d[0] - d[i - 1]) / (d[0] - d[-1]) for i in range(1, n)]
    i = 1 + f.index(max(f))
    return i, sorted(order[: max(math.floor(alpha * (n - i)), 1)])


@SOME
@pytest.mark.parametrize("alpha", [0.24, 0.6])
def test_each_tile_has_a_knee_over_what_stands_of_it(llava, size, alpha):
    answer = say(llava, size, LongTail(alpha=alpha), max_new_tokens=1)
    tiles = list(zip(answer.reduced, states(llava, size), standing(size), strict=True))
    for reduced, hidden, (_, patches) in tiles:
        score = attention(llava, 2, hidden[2], patches)  # layer 16 of 24 is layer 2 of 5
        i, keep = knee_and_kept(score, alpha)
        assert (reduced.curve.knee, reduced.keep.tolist()) == (i, keep)
        np.testing.assert_allclose(reduced.curve.similarity, -np.sort(-score), rtol=1e-4)
        expected = hidden[4][[1 + patches[p] for p in keep]]  # LLaVA reads what enters the last layer
        torch.testing.assert_close(reduced.features, expected, rtol=1e-4, atol=1e-4)
    knees = [reduced.curve.knee for reduced, _, _ in tiles]
    assert len(set(knees)) > 1, "tiles differ, or the test sees nothing"


@SOME
def test_pruning_inside_the_tower_is_running_its_later_layers_by_hand(llava, size):
    """The survivors, CLS and the padding that goes along, which is seen by the others and kept by nobody."""
    gathered = say(llava, size, LongTail(alpha=0.6), max_new_tokens=1)
    inside = say(llava, size, LongTail(alpha=0.6, cut="in_tower"), max_new_tokens=1)
    layers = llava.model.model.vision_tower.encoder.layers
    for mine, plain, hidden, (_, patches) in zip(
        inside.reduced, gathered.reduced, states(llava, size), standing(size), strict=True
    ):
        assert torch.equal(mine.keep, plain.keep)
        padding = [patch for patch in range(EACH) if patch not in patches]
        stay = [patches[p] for p in mine.keep.tolist()] + padding
        with torch.inference_mode():
            x = hidden[2][[0, *(1 + patch for patch in stay)]][None]
            for layer in layers[2:4]:
                x = layer(x, attention_mask=None)
        torch.testing.assert_close(mine.features, x[0, 1 : 1 + len(mine.keep)], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(mine.features, plain.features, atol=1e-3)


# ---- inside the language model


def plain_run(llava, answer, size):
    """The prompt an answer read: embeddings, the image's span, and which entries are visual, by the reference."""
    with torch.inference_mode():
        spliced = llava.splice(llava.prompt(drawn(size), QUESTION), list(answer.reduced))
    first = spliced.span[0]
    visual = [False] * len(spliced.embeddings)
    for place, entry in enumerate(run_of(size, [view.keep.tolist() for view in answer.reduced]), first):
        visual[place] = entry is not None
    return spliced.embeddings, spliced.span, visual


def same_run(answer, want, steps: int):
    """Tokens, first logits, visual tokens by layer, and what the last layer gave up."""
    torch.testing.assert_close(answer.first_logits, want.logits[0], rtol=1e-3, atol=1e-3)
    assert list(answer.token_ids) == [*want.tokens, int(want.logits[-1].argmax())][:steps]
    assert list(answer.tokens.layers) == want.entering


@SOME
@pytest.mark.parametrize("budget", [5, 20])
def test_fastv_drops_patches_of_all_views_and_never_a_newline(llava, size, budget):
    answer = say(llava, size, make("FastV", budget=budget), max_new_tokens=4)
    embeddings, span, visual = plain_run(llava, answer, size)
    count = sum(min(budget, len(patches)) for _, patches in standing(size))
    want = reference(llava, embeddings, span, 3, shorten=fastv(2, count), visual=visual)
    same_run(answer, want, 4)
    left = set(range(len(embeddings))) - set(want.kept[-1][0])
    assert set(answer.lost) == left and len(left) == sum(visual) - count
    assert all(visual[position] for position in answer.lost)


@SOME
def test_feathers_grid_is_each_views_own(llava, size):
    answer = say(llava, size, make("Feather", ratio=0.8, stride=2), max_new_tokens=4)
    embeddings, span, visual = plain_run(llava, answer, size)
    run, grids = packed(size), {tile: patches for tile, patches in standing(size)}

    def on_the_grid(position) -> bool:
        tile, patch = run[position - span[0]]
        rows = sorted({p // SIDE for p in grids[tile]})
        columns = sorted({p % SIDE for p in grids[tile]})
        return rows.index(patch // SIDE) % 2 == 0 and columns.index(patch % SIDE) % 2 == 0

    def shorten(s):
        if s.i == 0:
            return None
        score = torch.zeros(len(s.hidden))
        for head in range(s.plain.heads):
            key = s.last.made.plain_k[head * s.plain.groups // s.plain.heads][s.images]
            score[s.images] += (key @ s.last.made.plain_q[head][-1] / math.sqrt(s.plain.width)).softmax(0)
        chosen = best(score, s.images, int(len(s.images) * (1 - 0.8) ** s.i))
        if s.i == 1:
            chosen += [j for j in s.images if on_the_grid(s.true[j])]
        return [j for j, is_visual in enumerate(s.visual) if not is_visual or j in chosen]

    want = reference(llava, embeddings, span, 3, shorten=shorten, visual=visual)
    same_run(answer, want, 4)
    assert set(answer.lost) == set(range(len(embeddings))) - set(want.kept[-1][0])


@pytest.mark.parametrize("name", ["FastV", "PyramidDrop", "SparseVLM", "DART", "Feather", "H2O", "SnapKV"])
def test_newlines_are_text_to_methods_inside_the_language_model(name, llava):
    """What stays and what goes together are the prompt; merged tokens are visual ones, spoken for by visual ones."""
    size = (96, 60)
    answer = say(llava, size, REDUCERS[name].at(6), max_new_tokens=2)
    counts, visual = answer.tokens, set(answer.positions)
    merged = {position for position, _ in answer.recycled}
    assert counts.visual == 132 and counts.newlines == 8
    assert visual == {answer.visual_span[0] + i for i, entry in enumerate(packed(size)) if entry}
    assert merged <= visual and {speaker for _, speaker in answer.recycled} <= visual - set(answer.lost) - merged
    assert not merged & set(answer.lost)
    if name in ("H2O", "SnapKV"):
        kept = 30 + counts.prompt - 132
        assert counts.kv_entries == kept + (1 if name == "SnapKV" else 0)
        return
    assert set(answer.lost) <= visual
    assert counts.layers[-1] == 30 == 132 - len(answer.lost) - len(merged)
    assert bool(merged) == (name == "SparseVLM")


# ---- HiRED


def hired(llava, size, rate, alpha, assign) -> list[list[int]]:
    """What HiRED keeps of each view, by loops; the image's first share, then the tiles'."""
    tiles, hidden = math.prod(tiling(*size)), states(llava, size)
    shared = int((1 + tiles) * EACH * rate)
    first = min(int(shared * alpha), EACH)
    early = attention(llava, 0, hidden[0][0], list(range(EACH)), heads=4)
    seen = sorted(range(EACH), key=lambda p: -early[p])[: max(int(EACH * (1 - alpha)), 1)]
    columns, everywhere = tiling(*size)[1], {}
    for tile, patches in standing(size)[1:]:
        for patch in patches:
            y, x = (tile - 1) // columns * SIDE + patch // SIDE, (tile - 1) % columns * SIDE + patch % SIDE
            everywhere[y, x] = tile
    counts = [first]
    for tile, _ in standing(size)[1:]:
        mine = 0
        for patch in seen:
            if assign == "released":
                mine += tile == 1 + patch // (EACH // tiles)
            else:  # the centre of the patch, in what stands of all tiles
                ys, xs = sorted({y for y, _ in everywhere}), sorted({x for _, x in everywhere})
                down, across = (patch // SIDE + 0.5) / SIDE * len(ys), (patch % SIDE + 0.5) / SIDE * len(xs)
                mine += everywhere[ys[int(down)], xs[int(across)]] == tile
        counts.append((shared - first) * mine // len(seen))
    kept = []
    for count, layer, (_, patches) in zip(counts, hidden, standing(size), strict=True):
        late = attention(llava, 3, layer[3], patches, heads=4)  # layer 22 of 24 is layer 3 of 5
        kept.append(sorted(sorted(range(len(patches)), key=lambda p: -late[p])[: max(count, 1)]))
    return kept


@SOME
@pytest.mark.parametrize("assign", ["place", "released"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_hired_shares_between_views(llava, size, assign, alpha):
    reducer = make("HiRED", rate=0.3, alpha=alpha, assign=assign)
    answer = say(llava, size, reducer, max_new_tokens=1)
    assert [view.keep.tolist() for view in answer.reduced] == hired(llava, size, 0.3, alpha, assign)


# ---- budgets


@pytest.mark.parametrize("name", list(REDUCERS))
@pytest.mark.parametrize("size, budget", [((96, 60), 7), ((144, 8), 20)], ids=["less than a tile", "more than a tile"])
def test_a_budget_counts_for_each_view(name, llava, size, budget):
    """What all views hand over, and every view for itself. Full keeps all, Manual takes the first patches of all views
    together, HiRED shares what they have between them and rounds down; CLS and cross tokens count as one patch more."""
    sizes = [len(patches) for _, patches in standing(size)]
    answer = say(llava, size, REDUCERS[name].at(budget), max_new_tokens=1)
    every, extra = sum(sizes), name in ("VisionZip", "CrossGET")
    each, acts = [min(budget, n + extra) for n in sizes], set(answer.reducer.acts())
    handed, read = answer.tokens.visual, answer.tokens.layers[-1]
    if name in ("Full", "Manual"):
        assert handed == {"Full": every, "Manual": budget}[name]
    elif name == "HiRED":
        assert sum(each) - 2 * math.prod(tiling(*size)) <= handed <= sum(each)
    elif acts & {"trim", "reduce"}:
        assert [len(view.keep) for view in answer.reduced] == each and handed == sum(each)
    elif "drop" in acts:
        assert (handed, read) == (every, sum(each))
    else:
        assert (handed, answer.tokens.kv_entries) == (every, sum(each) + answer.tokens.prompt - every)


# ---- by hand, and what is recorded


def test_a_selection_by_hand_counts_through_all_views(llava):
    sizes = [len(patches) for _, patches in standing((96, 60))]
    answer = say(llava, (96, 60), make("Manual", patches="3, 34-37, 59, 60, 131"))
    assert sizes == [36, 24, 24, 24, 24]
    assert [view.keep.tolist() for view in answer.reduced] == [[3, 34, 35], [0, 1, 23], [0], [], [23]]
    assert answer.record()["keep"] == [3, 34, 35, 36, 37, 59, 60, 131]
    with pytest.raises(ValueError, match=r"names patch 132, but this image has 132: 0 to 131"):
        say(llava, (96, 60), make("Manual", patches="132"))
    mask = "".join("1" if i in (0, 40) else "0" for i in range(132))
    assert say(llava, (96, 60), make("Manual", patches=mask)).record()["keep"] == [0, 40]


@SHAPES
def test_views_stand_in_the_crop_with_their_own_pixels(llava, size):
    """No two overlap, none leaves the crop, and under each box lie the pixels the tower read of those patches."""
    crop, views = llava.crop(drawn(size)), llava.views(size)
    read = llava.processor.image_processor(drawn(size), do_rescale=False, do_normalize=False, return_tensors="np")
    tiles, covered = read["pixel_values"][0].transpose(0, 2, 3, 1), np.zeros((crop.height, crop.width), int)
    picture = np.asarray(crop)
    for view, (tile, patches) in zip(views, standing(size), strict=True):
        (rows, columns), (left, top, wide, high) = view["grid"], view["box"]
        x, y, width, height = (
            round(share * side) for share, side in zip((left, top, wide, high), crop.size * 2, strict=True)
        )
        assert (width, height) == (PITCH * columns, PITCH * rows) and x + width <= crop.width
        covered[y : y + height, x : x + width] += 1
        for n, patch in enumerate(patches):
            down, across = PITCH * (patch // SIDE), PITCH * (patch % SIDE)
            drawn_at = y + PITCH * (n // columns), x + PITCH * (n % columns)
            expected = tiles[tile, down : down + PITCH, across : across + PITCH].round().clip(0, 255)
            found = picture[drawn_at[0] : drawn_at[0] + PITCH, drawn_at[1] : drawn_at[1] + PITCH]
            assert np.array_equal(found, expected)
    assert covered.max() == 1 and covered.sum() == PITCH**2 * sum(len(patches) for _, patches in standing(size))


def test_a_record_tells_every_view_and_comes_back(llava):
    reducers = [longtail.Full(), LongTail(alpha=0.4), make("PruMerge"), make("SparseVLM", budget=9)]
    comparison = measure(llava, drawn((96, 60)), QUESTION, reducers, max_new_tokens=4, preface="Look.")
    text = json.dumps(comparison.file())
    back = report.read(report.page(comparison))
    assert json.dumps(back.records[1]["tile_curves"]) == json.dumps(comparison.records[1]["tile_curves"])
    for record, mine in zip(back.records, comparison.records, strict=True):
        assert record["positions"] == mine["positions"] and record["preface"] == "Look."
        assert record["tokens"]["newlines"] == mine["tokens"]["newlines"]
        states_ = draw.fates(record).states()
        assert len(states_) == 132 and draw.masked(back.crop, record["views"], states_).size[0] > 0
        shown = json.loads(panel.view(record))
        assert len(shown["curves"]) in (1, 5) and len(shown["role"]) == 132
    long = back.records[1]
    assert [len(curve["similarity"]) for curve in long["tile_curves"]] == [24] * 4
    shown = json.loads(panel.view(long))["curves"]
    assert [sorted(curve["order"]) for curve in shown[1:]] == [
        list(range(36 + 24 * tile, 60 + 24 * tile)) for tile in range(4)
    ]
    assert report.read(text).records[1]["positions"] == comparison.records[1]["positions"]


HOSTILE = {
    "tile_curves": {
        "too few": lambda curves: curves[:2],
        "twice the same patch": lambda curves: [curves[0] | {"order": [0] * 24}, *curves[1:]],
        "a patch beyond": lambda curves: [curves[0] | {"order": [*range(23), 24]}, *curves[1:]],
        "a knee beyond": lambda curves: [curves[0] | {"knee": 25}, *curves[1:]],
        "of another tile": lambda curves: [
            {"knee": 1, "kept": 1, "similarity": [0.5] * 25, "order": list(range(25))},
            *curves[1:],
        ],
    },
    "order": {
        "of all views": lambda order: list(range(132)),
        "missing": lambda order: None,
    },
    "positions": {
        "before the image": lambda positions: [0, *positions[1:]],
        "behind it": lambda positions: [*positions[:-1], 10_000],
        "too few": lambda positions: positions[:-1],
        "negative": lambda positions: [-1, *positions[1:]],
        "twice the same": lambda positions: [positions[1], *positions[1:]],
    },
}


@pytest.mark.parametrize("key, what", [(key, what) for key, cases in HOSTILE.items() for what in cases])
def test_a_record_that_contradicts_itself_is_refused(llava, key, what):
    answer = say(llava, (96, 60), LongTail(alpha=0.4))
    crop = {"crop": longtail.export.picture(llava.crop(drawn((96, 60))))}
    file = {"conditions": "x", "grid": [6, 6], "answers": [answer.record()], **crop}
    report.read(json.dumps(file))
    spoilt = copy.deepcopy(file)
    spoilt["answers"][0][key] = HOSTILE[key][what](spoilt["answers"][0][key])
    with pytest.raises(ValueError, match="no report of a comparison"):
        report.read(json.dumps(spoilt))


# ---- the next question


def test_the_tower_is_not_run_again_for_the_next_question(llava):
    first = say(llava, (96, 60), TopK(budget=5))
    again = say(llava, (96, 60), TopK(budget=5), history=first.turns, seen=first.seen)
    anew = say(llava, (96, 60), TopK(budget=5), history=first.turns)
    assert (again.reused, anew.reused) == (("vision",), ())
    assert torch.equal(again.first_logits, anew.first_logits) and again.tokens == anew.tokens


def test_equal_pixels_of_another_size_are_looked_at_anew(llava):
    """Black padding on a black image: the tower reads the same, and other patches of it stand."""
    wide, tall = Image.new("RGB", (96, 60)), Image.new("RGB", (60, 96))
    first = longtail.answer(llava, wide, QUESTION, TopK(budget=9), max_new_tokens=1)
    assert torch.equal(first.seen.prompt.pixels, llava.prompt(tall, QUESTION).pixels)
    other = longtail.answer(llava, tall, QUESTION, TopK(budget=9), max_new_tokens=1, seen=first.seen)
    assert other.reused == () and [view.grid for view in other.visual][1:] == [(6, 4)] * 4
    same = longtail.answer(llava, wide, QUESTION, TopK(budget=9), max_new_tokens=1, seen=first.seen)
    assert same.reused == ("vision",)
