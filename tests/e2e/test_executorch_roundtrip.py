"""ExecuTorch bundles by the commands: proven, opened by ExecuTorch's own runner, and refused where they lie."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import call
from exported import Exports, failed, golden_of, manifest_of, vouch

from edge.bundle.manifest import Bundle
from edge.formats import executorch
from edge.inference.session import load
from edge.verify import compare, verify
from exporters.sources.checkpoint import open_checkpoint

CONTEXT = 256
METHODS = {"vision_encoder", "token_embedding", "text_decoder", "get_max_seq_len", "get_max_context_len"}
METHODS |= {"get_vocab_size", "get_bos_id", "get_eos_ids", "get_n_layers", "use_kv_cache", "use_sdpa_with_kv_cache"}
METHODS |= {"enable_dynamic_shape"}


@pytest.fixture(scope="module")
def exact(exports: Exports) -> Path:
    return exports.bundle(recipe="executorch-fp32", context=CONTEXT)


def test_an_export_is_one_file(exact: Path) -> None:
    bundle = Bundle.open(exact)
    bundle.check()
    vision, decoder = (bundle.manifest.part(role) for role in ("vision", "decoder"))
    assert [file.path for file in (*vision.files, *decoder.files)] == ["model.pte"] * 2
    assert 0 < vision.bytes < decoder.files[0].bytes and 0 < decoder.bytes < decoder.files[0].bytes
    assert sum(file.path == "model.pte" for file in bundle.manifest.files()) == 1
    program = executorch.read(exact / "model.pte")
    assert set(program.methods) == METHODS
    assert {m: program.constant(m) for m in ("get_max_context_len", "get_vocab_size", "get_bos_id", "get_eos_ids")} == {
        "get_max_context_len": CONTEXT,
        "get_vocab_size": 512,
        "get_bos_id": 1,
        "get_eos_ids": 2,
    }
    assert "executorch" in manifest_of(exact)["versions"]


@pytest.mark.parametrize("engine", ["executorch", "executorch_native"])
def test_the_exact_one_says_what_torch_says(engine: str, exact: Path) -> None:
    with load(exact, engine=engine) as session:
        assert session.plan.engines == (engine,)
        report = compare(session, golden_of(exact))
    assert report.ok
    assert report.error("tokens", "fp32") == {"tokens": 1.0}


def test_it_is_run_without_torch(exact: Path) -> None:
    said = call("run", exact, "Who?", "--max-tokens", "4", "--json")
    assert said.code == 0 and len(said.json["token_ids"]) == 4
    assert [part["engine"] for part in said.json["plan"]["parts"]] == ["executorch_native"] * 2
    code = (
        "import sys, edge\n"
        f"with edge.load({str(exact)!r}) as session: answer = session.ask(None, 'Who?', max_tokens=4)\n"
        "print(answer, *sorted({'torch', 'executorch'} & set(sys.modules)))"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == (said.json["text"].strip(), "")


def test_a_quantised_one_is_proven_and_split_is_a_file_for_each_half(exports: Exports) -> None:
    done = exports.export(recipe="executorch-w8a8-8da4w", context=CONTEXT, options={"executorch": {"split": True}})
    assert done.report.ok
    bundle = Bundle.open(done.path)
    bundle.check()
    assert [part.scheme for part in bundle.manifest.parts] == ["w8a8", "8da4w"]
    assert {path.name for path in done.path.glob("*.pte")} == {"vision.pte", "decoder.pte"}
    halves = [set(executorch.read(done.path / name).methods) for name in ("vision.pte", "decoder.pte")]
    assert halves == [{"vision_encoder"}, METHODS - {"vision_encoder"}]
    assert "bytes" not in manifest_of(done.path)["parts"][0]
    said = call("export", exports.checkpoint(), "-o", exports.folder / "no", "--split")
    assert said.code == 2 and "--split is for ExecuTorch programs" in said.err


RUNNER = """
import json, sys
import torch
from safetensors.numpy import load_file
from executorch.extension.llm.runner import GenerationConfig, MultimodalRunner, make_image_input, make_token_input
from runtimes import executorch as engine
engine._load_kernels()
bundle, segments, count = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
pixels = torch.from_numpy(load_file(f"{bundle}/golden.safetensors")["pixel_values"])
runner = MultimodalRunner(f"{bundle}/model.pte", f"{bundle}/tokenizer.json")
for _ in range(2):
    inputs = [make_image_input(pixels) if ids is None else make_token_input(ids) for ids in segments]
    said = []
    runner.generate(inputs, GenerationConfig(temperature=0, max_new_tokens=count, echo=False), said.append)
    print("said:", json.dumps(said))
    runner.reset()
"""


def test_executorch_s_own_runner_says_the_same_words(exact: Path) -> None:
    """In a process of its own: it ends with the process when it does not like a file."""
    segments = manifest_of(exact)["prompt"]["golden"]["segments"]
    tokens = golden_of(exact).stored.tokens.tolist()
    arguments = [sys.executable, "-c", RUNNER, str(exact), json.dumps(segments), str(len(tokens))]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(arguments, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = [json.loads(line.removeprefix("said: ")) for line in done.stdout.splitlines() if line.startswith("said: ")]
    ids = {i: piece for piece, i in json.loads((exact / "tokenizer.json").read_bytes())["model"]["vocab"].items()}
    assert said[0] == said[1]
    assert [piece.strip() for piece in said[0]] == [ids[i].replace("▁", " ").strip() for i in tokens]


def test_a_wrong_weight_is_found(exports: Exports, exact: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(exact, tmp_path / "bundle")
    file = bundle / "model.pte"
    content = bytearray(file.read_bytes())
    weight = open_checkpoint(str(exports.checkpoint())).weights["model.layers.1.mlp.down_proj.weight"].float()
    at = bytes(content).index(weight.numpy().tobytes())
    content[at : at + 4 * weight.numel()] = (2 * weight).numpy().tobytes()
    file.write_bytes(content)
    said = call("verify", bundle)
    assert said.code == 1 and "model.pte is not the file that was exported" in said.err
    vouch(bundle)
    found = failed(verify(Bundle.open(bundle)))
    assert ("prefill", "stored") in found and ("vision", "stored") not in found


def test_a_manifest_of_another_context_is_refused(exact: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(exact, tmp_path / "bundle")
    manifest = manifest_of(bundle)
    manifest["decoder"]["context"] = 512
    (bundle / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    said = call("run", bundle, "Who?")
    assert said.code == 1
    assert "model.pte was built for a context of 256, and the manifest says 512" in said.err
    assert "--context 512" in said.err
