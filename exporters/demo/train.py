"""Train the demo checkpoint: `python -m exporters.demo.train --stage eye|language|joint --out DIR`.

The eye and the language stage do not need each other and run side by side, one core each; the joint stage starts
from both. Each stage can be stopped and started again at any time; its state lies in DIR.
"""

import argparse
import logging
from pathlib import Path

import torch

from exporters.demo.eye import EyeStage
from exporters.demo.joint import JointStage
from exporters.demo.language import LanguageStage
from exporters.demo.model import VARIANTS, Shape
from exporters.demo.prompts import Prompter
from exporters.demo.saving import keep_tower, trained
from exporters.demo.training import Schedule, Stage, train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=("eye", "language", "joint"), required=True)
    parser.add_argument("--variant", choices=VARIANTS, default="demo", help="no-qat: no 4-bit steps, the demo's tower")
    parser.add_argument("--out", type=Path, required=True, help="working directory, kept between runs")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True, help="learning rate of the plateau")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--windowed", type=int, default=600, help="stage eye: first steps, of attention within cells")
    parser.add_argument("--sparse", type=int, default=300, help="stage language: first steps, without whole pictures")
    parser.add_argument("--rounded", type=float, default=0.6, help="stage joint: share of the steps before four bits")
    parser.add_argument("--every", type=int, default=200, help="steps between saved states and reports")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(message)s",
        datefmt="%H:%M:%S",
        handlers=[logging.StreamHandler(), logging.FileHandler(args.out / f"{args.stage}.log")],
    )
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    prompter = Prompter(Path(__file__).parent / "checkpoint" / "tokenizer.model")
    shape = Shape(prompter.pieces.get_piece_size(), **VARIANTS[args.variant])
    plain = args.variant == "no-qat"
    stage: Stage
    if args.stage == "eye":
        stage = EyeStage(shape, args.batch, windowed_until=0 if plain else args.windowed, device=device)
        if plain:
            keep_tower(stage.module)
    elif args.stage == "joint":
        rounded_from = args.steps if plain else int(args.steps * args.rounded)
        stage = JointStage(shape, prompter, args.batch, rounded_from, device=device)
        stage.module.load_state_dict(trained(args.out, shape).state_dict())
        stage.module.eye.tower.requires_grad_(not plain)
    else:
        stage = LanguageStage(shape, prompter, args.batch, sparse=args.sparse, device=device)
    train(stage, Schedule(args.steps, args.rate), args.out / f"{args.stage}.pt", args.every, device)


if __name__ == "__main__":
    main()
