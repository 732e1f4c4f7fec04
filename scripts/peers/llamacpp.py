"""llama.cpp from the sources that llama-cpp-python brings: its benchmark and its multimodal program, on our GGUF pair.

The pair is exported in f16 and made smaller by llama.cpp's own `llama-quantize`, without an importance matrix.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from common import ANSWER, PICTURE, PROMPT, QUESTION, Call, Figures, Unavailable, run
from ours import EDGE, ENV

VERSION = "0.3.36"  # of llama-cpp-python
PROGRAMS = ("llama-bench", "llama-mtmd-cli", "llama-quantize")
_CMAKE = ("-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF", "-DGGML_NATIVE=ON", "-DLLAMA_CURL=OFF")
_CMAKE += tuple(f"-DLLAMA_BUILD_{name}=OFF" for name in ("TESTS", "EXAMPLES", "SERVER"))


@dataclass(frozen=True)
class LlamaCpp:
    """One kind of decoder, one of encoder."""

    name: str
    key: str
    decoder: str
    encoder: str

    def prepare(self, call: Call) -> None:
        programs = _built(call.folder / "llama.cpp")
        pair = call.folder / "gguf"
        if not (pair / "f16").exists():
            run([*EDGE, "export", call.checkpoint, "-o", pair / "f16", "--recipe", "gguf-f16", "--gguf-only"], env=ENV)
        decoder, encoder = _pair(pair / "f16")
        for source, kind in ((decoder, self.decoder), (encoder, self.encoder)):
            made = pair / f"{source.stem}.{kind}.gguf"
            if kind != "f16" and not made.exists():
                beside = made.with_suffix(".part")
                run([programs / "llama-quantize", source, beside, kind])
                beside.rename(made)

    def measure(self, call: Call) -> Figures:
        programs, pair = call.folder / "llama.cpp" / "bin", call.folder / "gguf"
        if not (pair / "f16").exists():
            raise Unavailable("not prepared")
        decoder, encoder = (
            source if kind == "f16" else pair / f"{source.stem}.{kind}.gguf"
            for source, kind in zip(_pair(pair / "f16"), (self.decoder, self.encoder), strict=True)
        )
        threads = ("-t", str(call.threads))
        bench = [programs / "llama-bench", "-m", decoder, *threads, "-r", "1", "-o", "json"]
        ended = run([*bench, "-p", str(PROMPT), "-n", "0"])
        found = {"prefill": float(json.loads(ended.stdout)[0]["avg_ts"])}
        ended = run([*bench, "-p", "0", "-n", str(ANSWER), "-d", str(PROMPT)])
        found["decode"] = float(json.loads(ended.stdout)[0]["avg_ts"])
        asked = [programs / "llama-mtmd-cli", "-m", decoder, "--mmproj", encoder, *threads, "--image", PICTURE]
        asked += ["--chat-template", "vicuna", "-p", QUESTION, "-n", "1", "--temp", "0"]
        ended = run(asked)
        told = re.search(r"encod\w* (?:done )?in (\d+) ms", ended.stderr + ended.stdout)
        if told is None:
            raise Unavailable("llama-mtmd-cli did not say how long the picture took")
        return {**found, "picture": int(told[1]) / 1e3, "process": ended.seconds, "peak": ended.peak_bytes / 1e9}


def _pair(folder: Path) -> tuple[Path, Path]:
    """The decoder's file, and the encoder's."""
    files = sorted(folder.glob("*.gguf"))
    encoders = [file for file in files if file.name.startswith("mmproj")]
    decoders = [file for file in files if file not in encoders]
    if not encoders or not decoders:
        raise Unavailable(f"{folder} has no GGUF pair")
    return decoders[0], encoders[0]


def _built(folder: Path) -> Path:
    """The folder of its programs: some 7 minutes on two cores. Raises Unavailable."""
    programs = folder / "bin"
    if all((programs / name).is_file() for name in PROGRAMS):
        return programs
    if not shutil.which("cmake"):
        raise Unavailable("no cmake: pip install cmake")
    print(f"building llama.cpp of llama-cpp-python {VERSION}: some 7 minutes on two cores", file=sys.stderr)
    sources = folder / "sources"
    shutil.rmtree(sources, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    run([*pip, "--no-binary", "llama-cpp-python", "--dest", sources, f"llama-cpp-python=={VERSION}"])
    with tarfile.open(next(sources.glob("llama_cpp_python-*.tar.gz"))) as archive:
        archive.extractall(sources, filter="data")
    (unpacked,) = sources.glob("llama_cpp_python-*/vendor/llama.cpp")
    run(["cmake", "-S", unpacked, "-B", folder / "made", *_CMAKE])
    wanted = ("--target", *PROGRAMS, "--parallel", str(os.cpu_count() or 1))
    run(["cmake", "--build", folder / "made", *wanted])
    programs.mkdir(exist_ok=True)
    for name in PROGRAMS:
        shutil.copy2(folder / "made" / "bin" / name, programs / name)
    shutil.rmtree(folder / "made")
    return programs


CONTESTANTS = (
    LlamaCpp("llama.cpp Q4_0, encoder q8_0", "llamacpp-q4_0", "q4_0", "q8_0"),
    LlamaCpp("llama.cpp Q4_K_M, encoder f16", "llamacpp-q4_k_m", "q4_k_m", "f16"),
)
