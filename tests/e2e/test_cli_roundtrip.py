"""From a checkpoint to answers through the commands, and the answers are torch's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import MAIN, Said, call
from conftest import REPOSITORY
from exported import Exports, golden_of, lying, manifest_of, vouch, weights
from PIL import Image, ImageDraw

import edge
from edge.bundle.manifest import Bundle
from edge.inputs import image
from edge.inputs.prompt import Turn, segments
from edge.inputs.tokenizer import Tokenizer
from edge.types import Embeddings, Tokens
from exporters import reference
from exporters.models.attention import GrowingCache
from exporters.pipeline import components
from exporters.sources.checkpoint import open_checkpoint

ANSWER = 32  # tokens


@pytest.fixture(scope="module")
def made(exports: Exports, tmp_path_factory: pytest.TempPathFactory) -> Said:
    where = tmp_path_factory.mktemp("roundtrip") / "a bundle"
    said = call("export", exports.checkpoint(), "-o", where, "--scheme", "fp32", "-t", 1, "--json")
    assert said.code == 0, said.err
    return said


@pytest.fixture(scope="module")
def bundle(made: Said) -> Path:
    return Path(made.json["path"])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """Wide, high, square; drawn, so that they differ in more than noise."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = []
    for number, size in enumerate([(500, 200), (90, 300), (336, 336)]):
        picture = Image.new("RGB", size, (250 - 90 * number, 60 * number, 40))
        ImageDraw.Draw(picture).ellipse((10, 10, 80, 60 + 20 * number), fill=(30, 200, 90 * number))
        paths.append(folder / f"{number}.png")
        picture.save(paths[-1])
    return tuple(paths)


class Torch:
    """The reference: the checkpoint's own weights in torch, greedy."""

    def __init__(self, checkpoint: Path, bundle: Path) -> None:
        source = open_checkpoint(str(checkpoint))
        self.spec = source.spec
        vision, decoder = components(source)
        self.encoder: Any = vision.load(source.weights)
        self.decoder: Any = decoder.load(source.weights)
        self.tokenizer = Tokenizer.open(bundle / "tokenizer.json")

    def see(self, picture: Path) -> Embeddings:
        return Embeddings(reference.encode(self.encoder, image.pixels(picture, self.spec.image))[0], str(picture))

    @torch.inference_mode()
    def answer(self, turns: Sequence[Turn], system: str | None = None) -> tuple[list[int], int]:
        """The tokens, and the positions of the prompt."""
        table, config = self.decoder.embed_tokens, self.decoder.config
        cut = segments(self.spec.prompt, self.tokenizer, turns, system)
        rows = [table(torch.tensor(s.ids)) if isinstance(s, Tokens) else torch.from_numpy(s.rows) for s in cut]
        x = torch.cat(rows)[None]
        cache, ids = GrowingCache(config.heads, config.kv_heads, config.rope), []
        logits = self.decoder(x, cache)
        while len(ids) < ANSWER and int(logits.argmax()) not in self.spec.prompt.stop_ids:
            ids.append(int(logits.argmax()))
            logits = self.decoder(table(torch.tensor([[ids[-1]]])), cache)
        return ids, x.shape[1]


@pytest.fixture(scope="module")
def truth(exports: Exports, bundle: Path) -> Torch:
    return Torch(exports.checkpoint(), bundle)


# export, inspect, verify


def test_export_says_what_it_proved(made: Said, bundle: Path) -> None:
    facts = made.json
    assert set(facts) == {"path", "bytes", "seconds", "fit", "prompt", "notes", "costs", "report", "next_command"}
    assert facts["fit"] is None  # no device was named
    assert facts["report"]["ok"] is True
    assert facts["bytes"] == sum(file.bytes for file in Bundle.open(bundle).manifest.files())
    assert facts["next_command"].startswith(f"edge run '{bundle}' PICTURE ")
    for stage in ("read", "vision: onnx fp32", "decoder: onnx fp32", "verify"):
        assert stage in made.err


def test_inspect(bundle: Path, exports: Exports) -> None:
    assert call("inspect", bundle, "--json").json == manifest_of(bundle)
    said = call("inspect", bundle)
    assert said.code == 0
    for word in (exports.checkpoint().name, "cc0-1.0", "decoder.onnx", "vision.onnx", "golden.safetensors"):
        assert word in said.out


def test_verify(bundle: Path) -> None:
    said = call("verify", bundle)
    assert (said.code, said.err) == (0, f"{bundle} computes the same model\n")
    report = call("verify", bundle, "--json").json
    assert report["ok"] is True
    assert [row["stage"] for row in report["rows"] if row["against"] in ("golden", "stored")] == [
        "picture",
        "prompt",
        "vision",
        "prefill",
        "tokens",
    ]


def test_verify_against_the_checkpoint(bundle: Path, exports: Exports) -> None:
    assert call("verify", bundle, "--against", exports.checkpoint(), "--json").json["ok"] is True
    said = call("verify", bundle, "--against", exports.checkpoint(seed=1))
    assert said.code == 1
    assert "is not the checkpoint that this bundle was made from" in said.err
    assert said.out == ""


def test_a_bundle_verifies_wherever_it_lies(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: tuple[Path, ...]
) -> None:
    place = tmp_path / "другое место" / "b"
    shutil.copytree(bundle, place)
    monkeypatch.chdir(place.parent)
    assert call("verify", "b").code == 0
    monkeypatch.chdir(place)
    assert call("verify", ".").code == 0
    here, there = (call("run", b, pictures[0], "What?", "-n", 8, "--json").json for b in (bundle, place))
    assert here["token_ids"] == there["token_ids"]


FILES = [
    "vision.onnx",
    "vision.onnx.data",
    "decoder.onnx",
    "decoder.onnx.data",
    "embed_tokens.npy",
    "tokenizer.json",
    "golden.safetensors",
]


def test_these_are_all_files(bundle: Path) -> None:
    assert {path.name for path in bundle.iterdir()} == {*FILES, "manifest.json"}


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_is_found(bundle: Path, tmp_path: Path, name: str) -> None:
    damaged = shutil.copytree(bundle, tmp_path / "damaged")
    content = bytearray((damaged / name).read_bytes())
    content[len(content) // 2] ^= 1
    (damaged / name).write_bytes(content)
    for command in (("verify", damaged), ("run", damaged, "What?", "-n", 1)):
        said = call(*command)
        assert (said.code, said.out.strip()) == (1, "")
        assert said.err.startswith(f"error: {name} ")
        assert "hint: " in said.err and "export" in said.err
        assert "Traceback" not in said.err


def test_a_golden_of_other_logits_fails(bundle: Path, tmp_path: Path) -> None:
    """The manifest vouches for it; the parts do not."""
    other = shutil.copytree(bundle, tmp_path / "other")
    golden = golden_of(other)
    replace(golden, stored=replace(golden.stored, logits=golden.stored.logits + np.float32(0.01))).save(
        other / "golden.safetensors"
    )
    vouch(other)
    said = call("verify", other)
    assert said.code == 1
    assert "FAILED" in said.out
    assert "does not compute the same model: prefill" in said.err
    said = call("verify", other, "--json")
    assert said.code == 1
    assert [row["stage"] for row in said.json["rows"] if not row["ok"]] == ["prefill"]


def test_a_graph_of_other_numbers_fails(bundle: Path, tmp_path: Path) -> None:
    name = "decoder.lm_head.weight.T"
    numbers = {name: weights(bundle, "decoder")[name] * np.float32(1.01)}
    said = call("verify", lying(bundle, tmp_path / "other", "decoder", numbers))
    assert said.code == 1
    assert "does not compute the same model: prefill" in said.err


# answers


QUESTIONS = {
    "a picture": ((0,), "What is in this picture?"),
    "a high one": ((1,), "Where is the cat?"),
    "a square one": ((2,), "2 dogs?\nOr 3? é 猫 🙂"),
    "no picture": ((), "How many dogs are there?"),
    "two pictures": ((0, 1), "Which is red?"),
    "the same one twice": ((2, 2), "Which?"),
    "the mark in the question": ((0,), "What does <image> mean? </s> And <s>?"),
}


@pytest.mark.parametrize(("shown", "question"), QUESTIONS.values(), ids=QUESTIONS.keys())
def test_an_answer_is_torch_s(
    bundle: Path, truth: Torch, pictures: tuple[Path, ...], shown: tuple[int, ...], question: str
) -> None:
    paths = [pictures[number] for number in shown]
    expected, positions = truth.answer([Turn.about(question, tuple(map(truth.see, paths)))])
    answer = call("run", bundle, *paths, question, "-n", ANSWER, "--json").json
    assert len(expected) == ANSWER  # random weights do not end by themselves: the comparison is whole
    assert answer["token_ids"] == expected
    assert answer["text"] == truth.tokenizer.decode(expected)
    assert (answer["prompt_tokens"], answer["image_tokens"]) == (positions, 144 * len(paths))
    assert (answer["stop_reason"], answer["generated_tokens"]) == ("length", ANSWER)


def test_another_picture_gives_another_answer(truth: Torch, pictures: tuple[Path, ...]) -> None:
    """What the test above rests on: the model sees."""
    answers = {tuple(truth.answer([Turn.about("What?", (truth.see(path),))])[0]) for path in pictures}
    assert len(answers) == len(pictures)


def test_the_system_prompt_is_replaced(bundle: Path, truth: Torch) -> None:
    expected, _ = truth.answer([Turn.about("Why?")], system="Be short.")
    assert call("run", bundle, "Why?", "--system", "Be short.", "-n", ANSWER, "--json").json["token_ids"] == expected


def test_a_process_of_its_own_says_the_same(bundle: Path, pictures: tuple[Path, ...], tmp_path: Path) -> None:
    ways = ("--isolated", "--no-isolated")
    apart, here = (call("run", bundle, pictures[0], "What?", "-n", 9, "-t", 1, "--json", way).json for way in ways)
    assert min(said.pop("peak_rss_mb") for said in (apart, here)) > 10
    for said in (apart, here):
        assert min(said.pop("timings").values()) > 0
        del said["plan"]["image_bytes"]  # what the machine has free
    assert apart == here
    shown = [call("run", bundle, pictures[0], "What?", "-n", 9, way) for way in ways]
    assert shown[0].out == shown[1].out == here["text"] + "\n"
    talks = [call("run", bundle, pictures[0], "--session", tmp_path / way, way, typed="What?\nWhy?") for way in ways]
    assert talks[0].out == talks[1].out
    assert talks[0].err == talks[1].err
    again = [call("run", bundle, "And?", "--session", tmp_path / way, "-n", 9, way).out for way in reversed(ways)]
    assert again[0] == again[1]


def test_json_tells_what_was_done(bundle: Path, pictures: tuple[Path, ...]) -> None:
    answer = call("run", bundle, pictures[0], "What?", "-n", 4, "-t", 1, "--json").json
    assert set(answer) == {
        "text",
        "token_ids",
        "stop_reason",
        "prompt_tokens",
        "image_tokens",
        "cached_tokens",
        "generated_tokens",
        "timings",
        "peak_rss_mb",
        "plan",
    }
    assert set(answer["timings"]) == {
        "load_ms",
        "image_ms",
        "vision_ms",
        "prefill_ms",
        "ttft_ms",
        "decode_ms",
        "decode_tok_s",
    }
    assert all(value > 0 for value in answer["timings"].values())
    assert {part["engine"] for part in answer["plan"]["parts"]} == {"onnxruntime"}
    assert answer["plan"]["threads"] == 1


def test_text_streams_to_stdout_and_nothing_else_does(bundle: Path, truth: Torch) -> None:
    said = call("run", bundle, "Why?", "-n", ANSWER)
    assert said.out == truth.tokenizer.decode(truth.answer([Turn.about("Why?")])[0]) + "\n"
    assert f"{ANSWER} tokens out" in said.err


def test_a_seed_gives_the_same_answer(bundle: Path) -> None:
    options = ("--temp", 1.5, "--top-k", 50, "-n", 12, "--json")
    first, again, other = (
        call("run", bundle, "Why?", *options, "--seed", seed).json["token_ids"] for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_a_prompt_that_is_too_long(bundle: Path) -> None:
    said = call("run", bundle, "why " * 2000, "-n", 4)
    assert (said.code, said.out.strip()) == (1, "")
    assert "the context holds 1024" in said.err


# what was computed is kept


def test_cached_is_uncached(bundle: Path, truth: Torch, pictures: tuple[Path, ...]) -> None:
    """One session is asked what fresh ones are asked; each prefix that it holds is used."""
    picture = truth.see(pictures[0])
    asked = ["What is this?", "What is this?", "What else?", "What is this?"]
    with edge.load(bundle, threads=1) as session:
        session.forget()  # nor what other sessions have kept
        cached = []
        for question in asked:
            session.ask(pictures[0], question, max_tokens=ANSWER)
            assert list(session.last.token_ids) == truth.answer([Turn.about(question, (picture,))])[0]
            cached.append(session.last.cached_tokens)
        whole = session.last.prompt_tokens
    assert cached[0] == 0
    assert cached[1] == whole - 1  # the last position is computed again: its logits are wanted
    assert 144 < cached[2] < whole - 1
    assert cached[3] == cached[2]


def test_a_chat_remembers_and_is_torch_s(bundle: Path, truth: Torch, pictures: tuple[Path, ...]) -> None:
    turns: list[Turn] = []
    with edge.load(bundle, threads=1) as session:
        session.forget()  # nor what other sessions have kept
        chat = session.chat(pictures[1])
        held = 0
        for question in ("What is this?", "Why?", "And then?"):
            turns.append(Turn.about(question, () if turns else (truth.see(pictures[1]),)))
            text = chat.ask(question, max_tokens=ANSWER)
            expected, positions = truth.answer(turns)
            assert list(session.last.token_ids) == expected
            assert session.last.prompt_tokens == positions
            assert session.last.cached_tokens == held
            held = positions + ANSWER - 1  # the last token went not through the decoder yet
            turns[-1] = replace(turns[-1], answer=text, answer_ids=tuple(expected))


def test_a_chat_in_the_terminal(bundle: Path, pictures: tuple[Path, ...]) -> None:
    said = call("run", bundle, pictures[0], "-n", 6, typed="What is this?\n\nWhy?\n")
    assert said.code == 0
    with edge.load(bundle) as session:
        chat = session.chat(pictures[0])
        expected = [chat.ask(question, max_tokens=6) for question in ("What is this?", "Why?")]
    assert said.out == "".join(f"{text}\n" for text in expected)


def test_bench(bundle: Path) -> None:
    rows = {row["test"]: row for row in call("bench", bundle, "-n", 4, "-r", 1, "-t", 1, "-o", "json").json}
    assert list(rows) == [
        *("peak memory", "picture decode", "preprocess", "vision encode", "pp190", "tg4"),
        *("first token", "second question", "own code per token", "load"),
    ]
    assert all(row["avg_ns"] > 0 and row["stddev_ns"] is None for test, row in rows.items() if test != "peak memory")
    speed = rows["tg4"]
    assert (speed["backends"], speed["n_threads"], speed["n_gen"]) == ("onnxruntime", 1, 4)
    assert speed["kernels"]["onnxruntime"].split()[0] in ("avx2", "neon")
    assert speed["image_tokens"] == 144 < speed["prompt_tokens"]
    assert speed["agreement_tokens"] == 1.0 and speed["agreement_cosine"] > 0.9999  # it is an fp32 bundle


# on a machine without the export side


BLOCKED = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "safetensors", "sentencepiece", "huggingface_hub")


@pytest.fixture(scope="module")
def without_torch() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`edge ...` as a process in which the libraries of the export side cannot be imported."""
    code = f"import sys; sys.modules |= dict.fromkeys({BLOCKED}); {MAIN}"

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, check=False)

    return run


def test_a_bundle_verifies_without_torch(bundle: Path, exports: Exports, without_torch: Any) -> None:
    for path in (bundle, exports.bundle()):
        done = without_torch("verify", path, "--json")
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["ok"] is True
        assert len(report["rows"]) == 8


def test_a_bundle_answers_without_torch(
    bundle: Path, truth: Torch, pictures: tuple[Path, ...], without_torch: Any
) -> None:
    done = without_torch("run", bundle, pictures[2], "What is this?", "-n", ANSWER, "--json")
    assert done.returncode == 0, done.stderr
    assert (
        json.loads(done.stdout)["token_ids"]
        == truth.answer([Turn.about("What is this?", (truth.see(pictures[2]),))])[0]
    )


def test_comparing_anew_without_torch_says_what_to_install(bundle: Path, exports: Exports, without_torch: Any) -> None:
    done = without_torch("verify", bundle, "--against", exports.checkpoint())
    assert done.returncode == 1
    assert "pip install 'edge-vlm[export]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_python_and_commands_agree(bundle: Path, pictures: tuple[Path, ...]) -> None:
    with edge.load(bundle, threads=1) as session:
        text = session.ask(pictures[0].read_bytes(), "What?", max_tokens=8)
        with Image.open(pictures[0]) as opened:
            assert session.ask(opened, "What?", max_tokens=8) == text
            assert "".join(session.stream(np.asarray(opened.convert("RGB")), "What?", max_tokens=8)) == text
        found = asdict(session.last)
    said = call("run", bundle, pictures[0], "What?", "-n", 8, "-t", 1, "--json").json
    assert (said["text"], said["token_ids"]) == (text, list(found["token_ids"]))
