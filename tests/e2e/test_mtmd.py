"""The pairs that are exported, in llama.cpp's own multimodal CLI: `make test-llamacpp` builds it and runs this file."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from exported import Exports
from torch import Tensor

import edge
from edge.inference.session import Session
from edge.inputs import image
from edge.types import Embeddings, Tokens
from exporters import reference
from exporters.models.encoder import Encoder
from exporters.pipeline import components, cut
from exporters.sources.checkpoint import Checkpoint, open_checkpoint

pytestmark = pytest.mark.mtmd
DEMO = REPOSITORY / "exporters" / "demo"
QUESTIONS = (
    "What does the sign say?",
    "How many stars are there?",
    "Describe the picture.",
    "What colour is the star?",
)
LENGTH = 40  # tokens of an answer, at most
MARK = "@@@"
PAIRS = {
    "the demo's, f16": ("demo", ("f16",)),
    "the demo's, q8_0": ("demo", ("q8_0",)),
    "V1, f16": ("ldpnet", ("f16",)),
}


@pytest.fixture(scope="module")
def program() -> Path:
    path = Path(os.environ.get("LLAMA_MTMD_CLI", ""))
    if not path.is_file():
        pytest.fail(
            f"LLAMA_MTMD_CLI names no file: {str(path)!r}; `make test-llamacpp` builds llama-mtmd-cli and sets it"
        )
    return path


@pytest.fixture(scope="module", params=PAIRS.values(), ids=PAIRS.keys())
def pair(request: pytest.FixtureRequest, exports: Exports) -> tuple[Path, Path]:
    """A checkpoint, and its bundle with both files. The tower's grid is the one that llama.cpp takes."""
    name, schemes = request.param
    checkpoint = DEMO / "checkpoint" if name == "demo" else exports.checkpoint(name)
    return checkpoint, exports.bundle(checkpoint=checkpoint, format="gguf", schemes=schemes)


def answers(program: Path, bundle: Path, log: Path, *arguments: str | Path, typed: str = "") -> list[str]:
    """What it tells, from its log: on its output the echo of what is typed falls in between."""
    told = run(program, bundle, log, arguments, typed)
    # It ends without waiting for what its log still holds (common/log.cpp), which now and then loses the last words.
    for _ in range(50):
        if told.endswith("\n\n"):
            break
        told = run(program, bundle, log, arguments, typed)
    else:
        pytest.fail(f"llama-mtmd-cli never ended its log: {told[-200:]!r}")
    return [words(part.partition("\n> ")[0]) for part in told.split(MARK)[1:]]


def run(program: Path, bundle: Path, log: Path, arguments: Sequence[str | Path], typed: str) -> str:
    (mmproj,) = bundle.glob("mmproj-*.gguf")
    (decoder,) = set(bundle.glob("*.gguf")) - {mmproj}
    how = ("--jinja", "--temp", "0", "-n", str(LENGTH), "-t", "1", "--log-file", log, "-lv", "0")
    done = subprocess.run(
        [program, "-m", decoder, "--mmproj", mmproj, *how, *arguments],
        input=typed.encode(),
        capture_output=True,
        timeout=300,
        check=False,
        env=os.environ | {"MTMD_TEST_RESPONSE_MARKER": MARK},
    )
    told = log.read_text(encoding="utf-8", errors="replace")
    assert done.returncode == 0, told
    return told


def words(answer: str) -> str:
    """Random weights write bytes that are no text: how many of them stand for one mark is left to who decodes."""
    return re.sub("\ufffd+", "\ufffd", answer).strip()


def test_it_answers_without_a_picture_as_we_do(program: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    """Same vocabulary, same prompt, same weights, same arithmetic."""
    typed = "".join(f"{question}\n/clear\n" for question in QUESTIONS)
    told = answers(program, pair[1], tmp_path / "log", typed=typed)
    with edge.load(pair[1], threads=1) as session:
        expected = [words(session.ask(None, question, max_tokens=LENGTH)) for question in QUESTIONS]
    assert told == expected
    assert all(expected) and len(set(expected)) > 1


def test_it_answers_about_a_picture_what_its_own_computation_makes_of_it(
    program: Path, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """This version puts the class token last (llama.cpp #25844), so its answers are not the model's. They must be those
    that follow from that: then every tensor of the mmproj is where it belongs."""
    picture = DEMO / "pictures" / "sign.png"
    told = []
    for question in QUESTIONS:
        told += answers(program, pair[1], tmp_path / "log", "--image", picture, "-p", question)
    checkpoint = open_checkpoint(str(pair[0]))
    with edge.load(pair[1], threads=1) as session:
        rows = class_token_last(checkpoint, picture)
        expected = [greedy(session, checkpoint, question, rows) for question in QUESTIONS]
    assert told == expected
    assert all(expected) and len(set(expected)) > 1


def class_token_last(checkpoint: Checkpoint, picture: Path) -> Embeddings:
    """As this version of llama.cpp computes them; the rows that the projector gets are still all but the first."""
    encoder = components(checkpoint)[0].load(checkpoint.weights)
    assert isinstance(encoder, Encoder)
    found = encoder.tower.embeddings

    def forward(pixels: Tensor) -> Tensor:
        patches = found.patch_embedding(pixels).flatten(2).transpose(1, 2)
        return torch.cat([patches, found.class_embedding[None, None]], dim=1) + found.position_embedding.weight

    found.forward = forward
    return Embeddings(reference.encode(encoder, image.pixels(picture, checkpoint.spec.image))[0], "class token last")


def greedy(session: Session, checkpoint: Checkpoint, question: str, rows: Embeddings) -> str:
    prompt = cut(checkpoint, session.tokenizer, question)
    decoder = session.decoder
    decoder.rewind(0)
    logits = decoder.extend([rows if ids is None else Tokens(tuple(ids)) for ids in prompt])
    ids: list[int] = []
    while len(ids) < LENGTH and (token := int(logits.argmax())) not in checkpoint.spec.prompt.stop_ids:
        ids.append(token)
        logits = decoder.extend([Tokens((token,))])
    return words(session.tokenizer.decode(ids))
