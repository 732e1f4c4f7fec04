"""What GPTQ brings beside the search for scales and beside llama.cpp's Q4_K_M: `python -m exporters.demo.gptq_study`.

Each row is a decoder as a file of its scheme holds it; torch computes in fp32 on the weights as stored, so nothing else
differs. Calibration, importance and GPTQ see the conversations of an export with `--calib`; asked are the questions of
the test split, with the right answers. Outliers are equalised first, as by an export; not so for Q4_K_M, which is then
what llama.cpp's own tools make with their importance matrix.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge import plugins
from edge.recipes import GPTQ, QUANTIZERS, SEARCH, Target
from edge.types import Segment
from exporters import calibration_sample, quantizer, reference, targets
from exporters.demo import imatrix_study as study
from exporters.demo.agreement import CHECKPOINT
from exporters.demo.heldout import QUESTIONS
from exporters.demo.imatrix_study import Conversation, predictions
from exporters.equalizer import equalised, look
from exporters.formats import Job, Written, silent
from exporters.models.decoders import LanguageModel
from exporters.models.encoder import Encoder
from exporters.pipeline import components
from exporters.quantization import importance
from exporters.sources.checkpoint import Checkpoint, open_checkpoint

log = logging.getLogger("demo")
PEER = f"gguf q4_k_m: {SEARCH}"


@dataclass(frozen=True)
class Way:
    """How a decoder comes to its weights."""

    target: Target
    quantizer: str  # of edge.recipes.QUANTIZERS
    guided: bool = True  # by an importance matrix
    types: tuple[str, ...] = ()  # PATTERN=KIND, in GGUF
    equalised: bool = True

    def __str__(self) -> str:
        kinds = " ".join(self.types)
        how = self.quantizer if self.guided else f"{self.quantizer}, no importance"
        return f"{self.target}{' ' + kinds if kinds else ''}: {how}"


@dataclass(frozen=True)
class Score:
    """Of each question: of all text after the picture, and of the answer."""

    bits: float  # a weight of the layers takes; 0: not read
    bytes: int  # of the decoder's files
    kl: NDArray[np.float64]  # [questions, 2], from fp32, sums over positions
    alike: NDArray[np.float64]  # [questions, 2], positions with fp32's likeliest token
    positions: NDArray[np.float64]  # [questions, 2]
    exact: NDArray[np.float64]  # [questions]: 1 where greedy decoding gives the right answer

    def mean_kl(self, column: int) -> float:
        return float(self.kl[:, column].sum() / self.positions[:, column].sum())


def ways(types: Sequence[str]) -> list[Way]:
    """`types`: PATTERN=KIND for one more row, of q4_0 with some tensors wider."""
    four = Target("gguf", "q4_0")
    found = [
        Way(Target("gguf", "q4_k_m"), SEARCH, guided=False, equalised=False),
        Way(Target("gguf", "q4_k_m"), SEARCH, equalised=False),
        Way(four, SEARCH, guided=False),
        Way(four, SEARCH),
        Way(four, GPTQ),
    ]
    if types:
        found += [Way(four, how, types=tuple(types)) for how in QUANTIZERS]
    for target in (Target("onnx", "w4"), Target("tflite", "w4"), Target("executorch", "8da4w"), Target("coreml", "w4")):
        found += [Way(target, how) for how in QUANTIZERS]
    return found


@dataclass(frozen=True)
class Calibration:
    """What an export with `--calib` knows of a decoder."""

    conversations: Sequence[Sequence[Segment]]
    importance: Mapping[str, Tensor]

    @classmethod
    def of(
        cls,
        checkpoint: Checkpoint,
        encoder: Encoder,
        decoder: LanguageModel,
        folder: Path,
        count: int,
    ) -> Calibration:
        conversations = study.conversations(checkpoint, encoder, folder, count)
        measured = importance.measure(decoder, [reference.merged(decoder, one) for one in conversations])
        return cls(conversations, measured)

    def equalised(self, module: LanguageModel, way: Way) -> dict[str, Tensor]:
        """The importance that guides, as it is then."""
        guides = dict(self.importance) if way.guided else {}
        if not way.equalised:
            return guides
        first = enumerate(self.conversations[: calibration_sample.MOST], 1)
        asked = {f"conversation {number}": reference.merged(module, one) for number, one in first}
        return equalised(module, look(module, asked), way.target, guides)


def stored(checkpoint: Checkpoint, way: Way, given: Calibration) -> tuple[LanguageModel, int, float]:
    """The decoder with the weights that a file holds, the bytes of its files, and the bits that a weight of its layers
    takes (0 where that is not read)."""
    component = components(checkpoint)[1]
    module = component.load(checkpoint.weights)
    assert isinstance(module, LanguageModel)
    format, guides = way.target.format, given.equalised(module, way)
    options = {"tensor_type": way.types} if way.types else {}
    with tempfile.TemporaryDirectory() as folder:
        job = Job(component, way.target.scheme, Path(folder), checkpoint, importance=guides, options=options)
        if way.quantizer == GPTQ:
            sequences = [reference.merged(module, conversation) for conversation in given.conversations]
            job = quantizer.rounded(job, format, module, sequences, silent)
        written: Written = plugins.load(targets.FORMATS, format).decoder(job, module)
        bits = _bits(written.files[0]) if format == "gguf" else 0.0
        return module, sum(file.stat().st_size for file in written.files), bits


def _bits(path: Path) -> float:
    found = [t for t in gguf.GGUFReader(path).tensors if t.name.startswith("blk.") and len(t.shape) == 2]
    return 8 * sum(int(t.n_bytes) for t in found) / sum(int(t.n_elements) for t in found)


def score(
    decoder: LanguageModel, asked: Sequence[Conversation], truth: Sequence[Tensor], size: int = 0, bits: float = 0.0
) -> Score:
    """`truth` holds fp32's predictions."""
    kl, alike, positions, exact = [], [], [], []
    for conversation, expected in zip(asked, truth, strict=True):
        found = predictions(decoder, conversation)
        n = conversation.answer
        apart = (expected.exp() * (expected - found)).double().sum(-1)
        same = found.argmax(-1) == expected.argmax(-1)
        kl.append([float(apart.sum()), float(apart[-n:].sum())])
        alike.append([float(same.sum()), float(same[-n:].sum())])
        positions.append([len(apart), n])
        exact.append(float(torch.equal(found[-n:].argmax(-1), conversation.targets[-n:])))
    return Score(bits, size, *(np.array(values, np.float64) for values in (kl, alike, positions, exact)))


def ratio(found: Score, other: Score, column: int) -> str:
    """Of the mean distances from fp32, and where 95 % of it lie when the questions are drawn anew (bootstrap)."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(found.kl), size=(study.RESAMPLED, len(found.kl)))
    sums = [one.kl[:, column][drawn].sum(1) for one in (found, other)]  # the positions are the same
    low, high = np.quantile(sums[0] / sums[1], (0.025, 0.975))
    return f"{found.mean_kl(column) / other.mean_kl(column):.2f} ({low:.2f} – {high:.2f})"


def table(found: Mapping[str, Score], against: str) -> str:
    """In Markdown; KL also as a share of what `against` has."""
    head = [
        "decoder",
        "bytes",
        "bits of a layer's weight",
        "KL at question and answer",
        f"/ {against}",
        "KL at answers",
    ]
    head += [f"/ {against}", "tokens like fp32's", "% right"]
    rows = [head, ["---"] * len(head)]
    for name, one in found.items():
        cells = [name, str(one.bytes), f"{one.bits:.2f}" if one.bits else ""]
        for column in (0, 1):
            cells += [f"{one.mean_kl(column):.6f}", ratio(one, found[against], column)]
        share = one.alike[:, 0].sum() / one.positions[:, 0].sum()
        rows.append([*cells, f"{100 * share:.2f} %", f"{100 * one.exact.mean():.1f}"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def compare(checkpoint: Checkpoint, calib: Path, chosen: Iterable[Way], count: int) -> dict[str, Score]:
    encoder, decoder = (component.load(checkpoint.weights) for component in components(checkpoint))
    assert isinstance(encoder, Encoder) and isinstance(decoder, LanguageModel)
    asked = list(study.heldout(checkpoint, encoder, count))
    truth = [predictions(decoder, conversation) for conversation in asked]
    counts = {how: quantizer.conversations(how, components(checkpoint)[1]) for how in QUANTIZERS}
    given = {how: Calibration.of(checkpoint, encoder, decoder, calib, count) for how, count in counts.items()}
    found = {}
    for way in chosen:
        module, size, bits = stored(checkpoint, way, given[way.quantizer])
        found[str(way)] = score(module, asked, truth, size, bits)
        log.info("%s: KL %.6f", way, found[str(way)].mean_kl(0))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", default=str(CHECKPOINT))
    parser.add_argument("--calib", type=Path, default=Path("calib_data"), metavar="DIR")
    parser.add_argument("--tensor-type", nargs="+", default=(), metavar="PATTERN=KIND", help="for one more row of q4_0")
    parser.add_argument("--count", type=int, default=QUESTIONS, help="questions to ask")
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)
    found = compare(open_checkpoint(args.checkpoint), args.calib, ways(args.tensor_type), args.count)
    log.info(table(found, PEER))


if __name__ == "__main__":
    main()
