"""What an importance matrix brings, and whether pictures belong into it: `python -m exporters.demo.imatrix_study`.

At the same scheme, so at equal bytes, the decoder is rounded by no statistics, by those of calibration conversations
without their pictures' rows, and by those of whole ones. Torch computes on the rounded weights: nothing else differs.
Asked are the questions of the test split, with the right answers.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edge import plugins
from edge.inputs import calibration, image
from edge.inputs.prompt import Turn, segments
from edge.types import Embeddings, Segment, Tokens
from exporters import reference, targets
from exporters.demo.agreement import CHECKPOINT
from exporters.demo.heldout import QUESTIONS, items
from exporters.formats import Job, Written
from exporters.models.attention import GrowingCache
from exporters.models.decoders import LanguageModel
from exporters.models.encoder import Encoder
from exporters.pipeline import components, cut, own_tokenizer
from exporters.quantization import importance
from exporters.quantizer import CONVERSATIONS
from exporters.sources.checkpoint import Checkpoint, open_checkpoint

log = logging.getLogger("demo")
SCHEMES = ("q4_0", "q4_k_m", "iq4_xs", "q3_k_m")
FP32 = "fp32"
NONE, TEXT, WHOLE = "none", "text", "image + text"
RESAMPLED = 2000


@dataclass(frozen=True)
class Conversation:
    """A question about a picture, and its right answer. What stands before the picture is the same in all: it would be
    one sample counted many times."""

    segments: tuple[Segment, ...]  # text, the picture, question and answer
    targets: Tensor  # int64 [T]: the ids after the picture
    answer: int  # how many of them, at the end, are the answer with the id that ends it


@dataclass(frozen=True)
class Score:
    """A set of weights; each array is `[questions, 2]`: of all text after the picture, and of the answers."""

    bytes: int
    nll: NDArray[np.float64]  # sums over positions
    kl: NDArray[np.float64]  # from fp32, sums over positions
    positions: NDArray[np.float64]
    exact: NDArray[np.float64]  # [questions]: 1 where greedy decoding gives the right answer

    def mean_kl(self, column: int) -> float:
        return float(self.kl[:, column].sum() / self.positions[:, column].sum())

    @property
    def perplexity(self) -> float:
        """Of the right answers."""
        return float(np.exp(self.nll[:, 1].sum() / self.positions[:, 1].sum()))


def heldout(checkpoint: Checkpoint, encoder: Encoder, count: int) -> Iterator[Conversation]:
    tokenizer, prompt = own_tokenizer(checkpoint), checkpoint.spec.prompt
    for number, item in enumerate(items(count)):
        rows = reference.encode(encoder, image.pixels(item.picture, checkpoint.spec.image))
        answer = [*tokenizer.encode(item.answer), *prompt.end_ids]
        before, _, asking = cut(checkpoint, tokenizer, item.question)
        assert before is not None and asking is not None
        after = [*asking, *answer]
        whole = (Tokens(tuple(before)), Embeddings(rows[0], f"{number}"), Tokens(tuple(after)))
        yield Conversation(whole, torch.tensor(after), len(answer))


@torch.inference_mode()
def predictions(decoder: LanguageModel, conversation: Conversation) -> Tensor:
    """Logarithms of the probabilities that `targets` are held against, `[T, vocab]` float32."""
    config = decoder.config
    cache = GrowingCache(config.heads, config.kv_heads, config.rope)
    logits: Tensor = decoder(reference.merged(decoder, conversation.segments), cache, everywhere=True)[0]
    return logits[-1 - len(conversation.targets) : -1].log_softmax(-1)


def score(decoder: LanguageModel, asked: Sequence[Conversation], truth: Sequence[Tensor], size: int) -> Score:
    """`truth` holds fp32's predictions."""
    nll, kl, positions, exact = [], [], [], []
    for conversation, expected in zip(asked, truth, strict=True):
        found = predictions(decoder, conversation)
        n = conversation.answer
        lost = -found.gather(1, conversation.targets[:, None])[:, 0].double()
        apart = (expected.exp() * (expected - found)).double().sum(-1)
        nll.append([float(lost.sum()), float(lost[-n:].sum())])
        kl.append([float(apart.sum()), float(apart[-n:].sum())])
        positions.append([len(lost), n])
        exact.append(float(torch.equal(found[-n:].argmax(-1), conversation.targets[-n:])))
    return Score(size, *(np.array(values, np.float64) for values in (nll, kl, positions, exact)))


def conversations(
    checkpoint: Checkpoint, encoder: Encoder, folder: Path, count: int = CONVERSATIONS
) -> list[list[Segment]]:
    """The first ones, as many as an export with `--calib` takes."""
    tokenizer, found = own_tokenizer(checkpoint), []
    for record in calibration.read(folder)[:count]:
        rows = reference.encode(encoder, image.pixels(record.picture, checkpoint.spec.image))
        turn = Turn.about(record.question, (Embeddings(rows[0], "calibration"),), record.answer)
        found.append(segments(checkpoint.spec.prompt, tokenizer, [turn]))
    return found


def statistics(
    checkpoint: Checkpoint, encoder: Encoder, decoder: LanguageModel, folder: Path
) -> dict[str, Mapping[str, Tensor]]:
    """By kind; of the conversations that an export with `--calib` takes."""
    whole = conversations(checkpoint, encoder, folder)
    text = [[segment for segment in conversation if isinstance(segment, Tokens)] for conversation in whole]
    return {
        NONE: {},
        TEXT: importance.measure(decoder, (reference.merged(decoder, conversation) for conversation in text)),
        WHOLE: importance.measure(decoder, (reference.merged(decoder, conversation) for conversation in whole)),
    }


def rounded(checkpoint: Checkpoint, scheme: str, matters: Mapping[str, Tensor]) -> tuple[LanguageModel, int]:
    """The decoder with the weights that a GGUF file of the scheme holds, and the file's bytes."""
    component = components(checkpoint)[1]
    module = component.load(checkpoint.weights)
    assert isinstance(module, LanguageModel)
    with tempfile.TemporaryDirectory() as folder:
        job = Job(component, scheme, Path(folder), checkpoint, importance=matters)
        written: Written = plugins.load(targets.FORMATS, "gguf").decoder(job, module)
        return module, sum(file.stat().st_size for file in written.files)


def ratio(found: Score, other: Score, column: int) -> str:
    """Of the mean distances from fp32, and where 95 % of it lie when the questions are drawn anew (bootstrap)."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(found.kl), size=(RESAMPLED, len(found.kl)))
    sums = [one.kl[:, column][drawn].sum(1) for one in (found, other)]  # the positions are the same
    low, high = np.quantile(sums[0] / sums[1], (0.025, 0.975))
    return f"{found.mean_kl(column) / other.mean_kl(column):.2f} ({low:.2f} – {high:.2f})"


def nearer(found: Score, other: Score) -> str:
    """How often the first is nearer to fp32 in the whole answer; half is chance, whatever a few large distances say."""
    return f"{100 * float((found.kl[:, 1] < other.kl[:, 1]).mean()):.0f} %"


def tables(found: Mapping[str, Mapping[str, Score]]) -> str:
    """What was measured, and the comparisons, in Markdown."""
    rows = [
        [
            "scheme",
            "statistics",
            "bytes",
            "perplexity of the right answers",
            "KL at answers",
            "KL at question and answer",
            "% right",
        ]
    ]
    pairs = [["scheme", "KL of image + text", "at answers", "nearer in", "at question and answer"]]
    for scheme, scores in found.items():
        for kind, one in scores.items():
            kl = [f"{one.mean_kl(column):.6f}" for column in (1, 0)]
            rows.append([scheme, kind, str(one.bytes), f"{one.perplexity:.5f}", *kl, f"{100 * one.exact.mean():.1f}"])
        for kind in (NONE, TEXT) if WHOLE in scores else ():
            one, other = scores[WHOLE], scores[kind]
            pairs.append([scheme, f"/ {kind}", ratio(one, other, 1), nearer(one, other), ratio(one, other, 0)])
    return "\n\n".join(map(_markdown, (rows, pairs)))


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:]))


def study(checkpoint: Checkpoint, calib: Path, schemes: Sequence[str], count: int) -> dict[str, dict[str, Score]]:
    """Scheme -> statistics -> score; first fp32's own."""
    encoder, decoder = (component.load(checkpoint.weights) for component in components(checkpoint))
    assert isinstance(encoder, Encoder) and isinstance(decoder, LanguageModel)
    asked = list(heldout(checkpoint, encoder, count))
    truth = [predictions(decoder, conversation) for conversation in asked]
    matters = statistics(checkpoint, encoder, decoder, calib)
    found = {FP32: {NONE: score(decoder, asked, truth, checkpoint.weights_bytes)}}
    for scheme in schemes:
        found[scheme] = {}
        for kind, measured in matters.items():
            module, size = rounded(checkpoint, scheme, measured)
            found[scheme][kind] = score(module, asked, truth, size)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calib", type=Path, default=Path("calib_data"), metavar="DIR")
    parser.add_argument("--schemes", nargs="+", default=SCHEMES)
    parser.add_argument("--count", type=int, default=QUESTIONS, help="questions to ask")
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO)
    log.info(tables(study(open_checkpoint(str(CHECKPOINT)), args.calib, args.schemes, args.count)))


if __name__ == "__main__":
    main()
