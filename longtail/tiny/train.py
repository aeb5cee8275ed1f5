"""Training by the clock: a look at pictures only, then questions on few patches, then questions on all of them.

On a CPU two processes of one thread train apart and average weights and moments every few seconds (local SGD):
two threads of one process would mostly wait for each other. On a GPU one process does it all.
"""

import json
import os
import random
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from .choose import choose
from .data import Encoder, Plan, Stream
from .losses import Passes, answer, answer_loss, contrast, look, teach, visible_bits
from .measure import measure
from .model import Miniature
from .optimizer import Optimizer
from .world import GRID, HELD_OUT_SEED

ALL, FEW = GRID * GRID, 128
WARM_UP, DECAY_FROM, LAST_RATE = 60, 0.3, 0.02
PATCH_WEIGHT, IMAGE_WEIGHT, LOOK_WEIGHT, CAPTION_WEIGHT, PHRASE_WEIGHT = 0.5, 0.3, 0.15, 0.1, 0.15
DEV_SCENES = 64  # steer the eye during training; final measurements use later seeds


@dataclass(frozen=True)
class Stage:
    """Until which share of the run, on what batches, with how many visual tokens for the language model (a choice)."""

    until: float
    plan: Plan
    kept: tuple[int, ...] = ()


STAGES = (
    Stage(0.07, Plan(32, FEW, 0, strings=3, strange=0.3)),
    Stage(0.74, Plan(16, FEW, 224, strange=0.25), (FEW,) * 5 + (72,) * 3 + (32,) * 2),
    Stage(1.00, Plan(8, ALL, 224, strange=0.15), (ALL,) * 5 + (256,) * 2 + (128,) * 2 + (32,)),
)


@dataclass(frozen=True)
class Run:
    """What a process needs to know."""

    out: str
    minutes: float
    seed: int = 1
    init: str = ""
    rank: int = 0
    world: int = 1
    every: float = 4.0  # minutes between evaluations
    average: float = 20.0  # seconds between averagings
    note: str = ""  # for the log: what is different from now on


class Trainer:
    """One process of a run; rank 0 writes the log and the checkpoint."""

    def __init__(self, run: Run):
        self.run, self.folder = run, Path(run.out)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = Miniature(run.seed)
        self.progress = {"minutes": 0.0, "steps": 0, "images": 0, "starts": 0}
        saved = self.folder / "checkpoint.pt"
        state = torch.load(saved, weights_only=True) if saved.exists() else None
        if state:
            self.model.load_state_dict(state["model"])
        elif run.init:
            load_export(self.model, run.init)
        self.model.to(self.device)
        masters = {n: p.detach().float().clone() for n, p in self.model.named_parameters()}
        self.model.to(torch.bfloat16)
        self.named = list(self.model.named_parameters())
        self.optimizer = Optimizer(self.named)
        self.restore(masters, state)
        self.passes, self.user = Passes(compiled=True), Encoder().user
        self.random = random.Random(f"{run.seed} {run.rank} {self.progress['starts']}")
        self.losses = torch.zeros(7)

    def restore(self, masters: dict, state: dict | None) -> None:
        """Full-precision weights, and after a stop also the optimizer's moments and the clock."""
        by_copy = {id(p): name for name, p in self.named}
        for p, master in self.optimizer.masters():
            master.copy_(masters[by_copy[id(p)]])
        if state:
            for buffer, value in zip(self.optimizer.buffers(), state["buffers"], strict=True):
                buffer.copy_(value)
            self.optimizer.steps.fill_(state["progress"]["steps"])
            self.progress = state["progress"] | {"starts": state["progress"]["starts"] + 1}
        self.optimizer.publish()

    def save(self) -> None:
        names = {id(p): name for name, p in self.named}
        weights = {names[id(p)]: master.cpu().clone() for p, master in self.optimizer.masters()}
        state = {"model": weights, "buffers": list(self.optimizer.buffers()), "progress": self.progress}
        torch.save(state, self.folder / "checkpoint.new")
        os.replace(self.folder / "checkpoint.new", self.folder / "checkpoint.pt")

    def train(self) -> None:
        if self.run.note and self.run.rank == 0:
            self.log({"minutes": round(self.progress["minutes"], 2), "note": self.run.note})
        begin, before = self.agree(time.time()), self.progress["minutes"]
        due, stage, batches = before + self.run.every, None, None
        while (share := self.progress["minutes"] / self.run.minutes) < 1:
            current = next(s for s in STAGES if share < s.until)
            if current is not stage:
                stage, batches = current, self.batches(current)
            steps, until = 0, time.time() + self.run.average
            while steps == 0 or time.time() < until:
                now = before + (time.time() - begin) / 60
                self.step(stage, next(batches), self.rate(min(1, now / self.run.minutes)))
                steps += 1
            self.average(steps, stage.plan.batch)
            self.progress["minutes"] = before + (self.agree(time.time()) - begin) / 60
            if self.progress["minutes"] >= min(due, self.run.minutes):
                self.report(stage)
                due = self.progress["minutes"] + self.run.every

    def batches(self, stage: Stage):
        seed = f"{self.run.seed} {self.run.rank} {STAGES.index(stage)} {self.progress['starts']}"
        loader = DataLoader(Stream(seed, stage.plan), batch_size=None, num_workers=1, prefetch_factor=4)
        return iter(loader)

    def rate(self, share: float) -> float:
        """Learning rate: a short warm-up, flat, then straight down."""
        falling = (1 - share) / (1 - DECAY_FROM) * (1 - LAST_RATE) + LAST_RATE
        return min(1, (self.progress["steps"] + 1) / WARM_UP, falling)

    def step(self, stage: Stage, columns: dict, rate: float) -> None:
        columns = {n: c.to(self.device, non_blocking=True) for n, c in columns.items()} | {"user": self.user}
        features, cls, looking, seen = look(self.model, columns, self.passes)
        patch, image, _ = teach(self.model, features, cls, columns)
        captions, phrases = contrast(self.model, features, cls, columns)
        said = self.answers(stage, columns, features, seen) if stage.kept else torch.zeros(())
        loss = said + (PATCH_WEIGHT if stage.kept else 1) * patch + IMAGE_WEIGHT * image
        loss = loss + LOOK_WEIGHT * looking + CAPTION_WEIGHT * captions + PHRASE_WEIGHT * phrases
        loss.backward()
        self.optimizer.step(rate)
        self.progress["steps"] += 1
        parts = (said, patch, image, looking, captions, phrases)
        self.losses += torch.tensor([*(x.detach().item() for x in parts), 1])

    def answers(self, stage: Stage, columns: dict, features, seen):
        """The loss of the answers, on a random share of the patches, as after pruning."""
        count = self.random.choice(stage.kept)
        chosen = choose(columns["owner"], seen, count)
        positions = torch.arange(count, device=chosen.device).expand(len(chosen), -1)
        if stage.plan.patches < ALL and self.random.random() < 0.4:  # true places, to learn far distances early
            positions = columns["keep"].gather(1, chosen)
        logits, learnt = answer(self.model, features, columns, chosen, positions + 2, self.passes)
        return answer_loss(logits, learnt, columns, visible_bits(columns, chosen))

    def agree(self, value: float) -> float:
        """Rank 0's number, everywhere."""
        if self.run.world == 1:
            return value
        told = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(told, 0)
        return told.item()

    def average(self, steps: int, size: int) -> None:
        """Weights and moments become the ranks' mean, weighted by the steps each has done."""
        total = steps
        if self.run.world > 1:
            told = torch.tensor([float(steps)])
            dist.all_reduce(told)
            total = int(told.item())
            buffers = list(self.optimizer.buffers())
            flat = torch.cat([b.reshape(-1) for b in buffers]) * (steps / total)
            dist.all_reduce(flat)
            for buffer, part in zip(buffers, flat.split([b.numel() for b in buffers]), strict=True):
                buffer.copy_(part.view_as(buffer))
            self.optimizer.publish()
        self.progress["images"] += total * size

    def report(self, stage: Stage) -> None:
        """Measure on the development scenes, half on each rank, write a line of log and a checkpoint."""
        seeds = range(HELD_OUT_SEED + self.run.rank, HELD_OUT_SEED + DEV_SCENES, self.run.world)
        patches = stage.plan.patches
        kept = [("cls", patches), ("cls", patches // 4), ("random", patches // 4)] if stage.kept else []
        marks = measure(self.model, seeds, kept, patches)
        for one in marks.values():
            both = torch.stack([one.right, one.asked])
            if self.run.world > 1:
                dist.all_reduce(both)
            one.right, one.asked = both
        if self.run.rank == 0:
            self.write(stage, {name: one.table() for name, one in marks.items()})
        self.losses.zero_()

    def log(self, line: dict) -> None:
        with (self.folder / "training.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")

    def write(self, stage: Stage, tables: dict) -> None:
        names = ("answer", "patch", "image", "look", "caption", "phrase")
        means = (self.losses / self.losses[-1].clamp(min=1)).tolist()
        losses = {n: round(x, 3) for n, x in zip(names, means, strict=False)}
        left = max(0.0, self.run.minutes - self.progress["minutes"])
        progress = {n: round(v, 2) for n, v in self.progress.items()}
        line = progress | {"stage": STAGES.index(stage), "patches": stage.plan.patches, "loss": losses, "marks": tables}
        self.log(line)
        best = tables.get(f"cls-{stage.plan.patches}", tables["heads"])
        print(
            f"{progress['minutes']:.1f} min, {left:.0f} left, {progress['images']} images, {losses}, {best}", flush=True
        )
        self.save()


def read_log(path: Path) -> tuple[list[dict], list[dict]]:
    """The measurements and the notes of a training log."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if "marks" in line], [line for line in lines if "note" in line]


def load_export(model: Miniature, folder: str) -> None:
    """Start from an exported folder's weights; the teachers start anew."""
    from transformers import CLIPTextModelWithProjection, LlavaForConditionalGeneration

    from .export import visual_projection

    llava = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    text = CLIPTextModelWithProjection.from_pretrained(Path(folder) / "clip", dtype=torch.float32)
    model.llava.load_state_dict(llava.state_dict())
    model.text.load_state_dict(text.state_dict())
    model.visual_projection.load_state_dict({"weight": visual_projection(folder).float()})


def work(run: Run) -> None:
    """What each process does."""
    torch.set_num_threads(1 if run.world > 1 else torch.get_num_threads())
    if run.world > 1:
        dist.init_process_group("gloo", rank=run.rank, world_size=run.world)
    Path(run.out).mkdir(parents=True, exist_ok=True)
    Trainer(run).train()
    if run.world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    work(Run(**json.loads(sys.argv[1])))
