"""The command line of `python -m exporters.standin`."""

from __future__ import annotations

import argparse
import logging
import math
import re
import tempfile
from pathlib import Path

import torch

from edge.errors import EdgeError, UsageError
from exporters.pipeline import components
from exporters.sources.checkpoint import open_checkpoint
from exporters.standin import massive_decoder, massive_encoder, outliers, planting
from exporters.standin.checkpoint import SHAPES, require_new, write

log = logging.getLogger(__name__)
CHANNELS = 4
DESCRIPTION = """A checkpoint of random numbers in the upstream layout (--shape), or a copy of a checkpoint (--from).
--outliers and --massive plant outliers in its activations; it is float32 then."""


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(prog="python -m exporters.standin", description=DESCRIPTION)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--shape", choices=SHAPES, help="random numbers")
    source.add_argument("--from", dest="checkpoint", metavar="DIR", help="a checkpoint's folder, to plant outliers in")
    parser.add_argument("--projector", help="an mm_projector_type (the shape's own)")
    parser.add_argument("--format", choices=("safetensors", "bin"), default="safetensors")
    parser.add_argument("--shards", type=int, default=0, help="how many files (as many as keep each under 1 GB)")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")
    what = f"channels of what norms and linear layers give, FACTOR times as large ({CHANNELS} of each); same function"
    parser.add_argument("--outliers", metavar="FACTOR[:CHANNELS]", help=what)
    what = "activations of the residual stream at a few positions, FACTOR times the usual (1 channel); nearly so"
    parser.add_argument("--massive", metavar="FACTOR[:CHANNELS]", help=what)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    try:
        _run(parser.parse_args())
    except EdgeError as error:
        log.error("%s", error)
        return error.exit_code
    return 0


def _run(call: argparse.Namespace) -> None:
    wanted = {name: _wanted(f"--{name}", getattr(call, name), usual) for name, usual in USUAL.items()}
    if not any(wanted.values()):
        if call.checkpoint:
            raise UsageError("--from, and nothing is to be planted", hint="add --outliers 30, or --massive 100")
        _random(call, call.output)
    elif call.checkpoint:
        plant(Path(call.checkpoint), call.output, wanted["outliers"], wanted["massive"], call.seed)
    else:
        require_new(call.output)
        call.output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=call.output.parent) as folder:
            _random(call, Path(folder))
            plant(Path(folder), call.output, wanted["outliers"], wanted["massive"], call.seed)


USUAL = {"outliers": CHANNELS, "massive": 1}  # channels


def _random(call: argparse.Namespace, folder: Path) -> None:
    write(
        folder,
        SHAPES[call.shape],
        projector=call.projector,
        format=call.format,
        shards=call.shards,
        dtype=getattr(torch, call.dtype),
        seed=call.seed,
    )


def plant(
    source: Path,
    folder: Path,
    outlying: tuple[float, int] | None = None,
    massively: tuple[float, int] | None = None,
    seed: int = 0,
) -> None:
    """Write the checkpoint `source` into an empty or new folder, with outliers.

    outlying: factor and channels, of `exporters.standin.outliers`.
    massively: factor and channels, of `exporters.standin.massive_encoder` and `massive_decoder`.
    Raises EdgeError where the source cannot be read, or has not so many channels.
    """
    checkpoint = open_checkpoint(str(source))
    generator = torch.Generator().manual_seed(seed)
    vision, decoder = components(checkpoint)
    encoding: list[planting.Edits] = []
    answering: list[planting.Edits] = []
    if massively:
        encoding.append(massive_encoder.edits(checkpoint, vision, *massively, generator))
        answering.append(massive_decoder.edits(checkpoint, decoder, *massively))
    if outlying:
        encoding.append(outliers.edits(vision, *outlying, generator))
        answering.append(outliers.edits(decoder, *outlying, generator))
    edits = [(vision, planting.joined(encoding)), (decoder, planting.joined(answering))]
    planting.write(checkpoint, edits, folder)


def _wanted(option: str, text: str | None, channels: int) -> tuple[float, int] | None:
    """FACTOR[:CHANNELS]. Raises UsageError."""
    if text is None:
        return None
    if not (match := re.fullmatch(r"([^:]+)(?::(\d+))?", text)):
        raise UsageError(f"{option} {text!r}", hint=f"{option} 30, or {option} 30:8 for eight channels")
    try:
        factor, count = float(match[1]), int(match[2] or channels)
    except ValueError:
        factor, count = math.nan, 0
    if not 0 < factor < math.inf or count < 1:
        raise UsageError(
            f"{option} {text!r}: the factor must be a number above zero, and one channel the least",
            hint=f"{option} 30, or {option} 30:8 for eight channels",
        )
    return factor, count
