"""`python -m longtail tiny scenes | train | export`: make labelled pictures, train the miniature, export it."""

import argparse
import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

MOST_SCENES = 100_000
MOST_MEASURED = 4_000
MOST_MINUTES = 24 * 60
# glibc gives large blocks back to the kernel after every step otherwise, and the page faults cost a third of the time
CPU_SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "20000000000",
    "MALLOC_TOP_PAD_": "268435456",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


def add_to(commands) -> None:
    """Add the command `tiny` to argparse's subcommands."""
    tiny = commands.add_parser("tiny", help="make the bundled model: its scenes, its training, its export")
    steps = tiny.add_subparsers(dest="step", required=True)

    scenes = steps.add_parser("scenes", help="draw labelled scenes: PNG files and scenes.jsonl")
    scenes.add_argument("--count", type=int, default=16, help=f"how many, 1 to {MOST_SCENES} (%(default)s)")
    scenes.add_argument("--seed", type=int, default=1_000_000, help="seed of the first; from 1000000 on held out")
    scenes.add_argument("--out", type=Path, required=True, help="folder to write")
    scenes.set_defaults(run=draw_scenes)

    train = steps.add_parser("train", help="train from scratch, or go on from the checkpoint in --out")
    train.add_argument("--out", type=Path, required=True, help="folder for checkpoint.pt and training.jsonl")
    train.add_argument("--minutes", type=float, default=100, help="wall-clock length of the whole run (%(default)s)")
    train.add_argument("--seed", type=int, default=1, help="seed of weights and data (%(default)s)")
    train.add_argument("--init", type=Path, help="start from an exported folder's weights")
    train.add_argument("--note", default="", help="a sentence for the log and the card: what is different from now on")
    train.set_defaults(run=train_model)

    export = steps.add_parser("export", help="write a checkpoint as a folder that transformers loads")
    export.add_argument("checkpoint", type=Path, help="checkpoint.pt of a training folder")
    export.add_argument("folder", type=Path, help="folder to write; an earlier export there is replaced")
    export.add_argument(
        "--scenes",
        type=int,
        default=300,
        help="held-out scenes to measure for the card, a second each; 0: no card (%(default)s)",
    )
    export.set_defaults(run=export_model)


def draw_scenes(args: argparse.Namespace) -> None:
    """PNG files and one line of labels each."""
    from .scenes import questions, scene

    if not 1 <= args.count <= MOST_SCENES:
        raise ValueError(f"--count must be between 1 and {MOST_SCENES}, got {args.count}")
    if not 0 <= args.seed < 2**31 - args.count:
        raise ValueError(f"--seed must be between 0 and {2**31 - 1 - args.count} for that many scenes, got {args.seed}")
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "scenes.jsonl").open("w") as labels:
        for seed in range(args.seed, args.seed + args.count):
            one = scene(seed)
            name = f"scene-{seed:010d}.png"
            one.image.save(args.out / name)
            things = {
                "items": [asdict(i) | {"place": i.place} for i in one.items],
                "texts": [asdict(t) | {"place": t.place, "kind": t.kind} for t in one.texts],
            }
            asked = [{"family": q.family, "question": q.text, "answer": q.answer} for q in questions(one)]
            line = {"image": name, "seed": seed, "background": one.background, **things, "questions": asked}
            labels.write(json.dumps(line) + "\n")
    print(f"{args.count} scenes in {args.out}")


def train_model(args: argparse.Namespace) -> None:
    """One process on a GPU, two of one thread each on a CPU."""
    import torch

    from .train import Run

    if not 0 < args.minutes <= MOST_MINUTES:
        raise ValueError(f"--minutes must be above 0 and at most {MOST_MINUTES}, got {args.minutes:g}")
    if args.init and not (args.init / "config.json").is_file():
        raise ValueError(f"--init {args.init} is not an exported model: it has no config.json")
    args.out.mkdir(parents=True, exist_ok=True)
    world = 1 if torch.cuda.is_available() else 2
    run = Run(str(args.out), args.minutes, args.seed, str(args.init or ""), world=world, note=args.note)
    settings = {} if torch.cuda.is_available() else CPU_SETTINGS
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    workers = [_start(replace(run, rank=rank), os.environ | settings | meeting) for rank in range(world)]
    try:
        codes = [worker.wait() for worker in workers]
    finally:
        for worker in workers:
            worker.terminate()
    if any(codes):
        raise RuntimeError(f"training stopped early (exit codes {codes}); the same command goes on from {args.out}")


def _start(run, environment: dict[str, str]) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "longtail.tiny.train", json.dumps(asdict(run))], env=environment)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def export_model(args: argparse.Namespace) -> None:
    from .export import export

    if not 0 <= args.scenes <= MOST_MEASURED:
        raise ValueError(f"--scenes must be between 0 and {MOST_MEASURED}, got {args.scenes}")
    progress = export(args.checkpoint, args.folder, args.scenes)
    size = sum(f.stat().st_size for f in args.folder.rglob("*") if f.is_file()) / 1e6
    print(f"{args.folder}: {size:.1f} MB, trained {progress['minutes']:.0f} min on {progress['images']} pictures")
