"""Mutated parts through native engines: `python tests/fuzz/native_parts.py COUNT [ENGINE ...]`, or make fuzz-parts.

A part that our reader takes is opened and run by an engine, in a process of its own, which may end: another follows it,
and goes on behind that part. COUNT: parts for each engine that reach it. What ended a process lies in
`fuzz-findings/`. The exit code is 0: what is counted is the libraries'; that nothing ends this process is the proof.
"""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "helpers"), str(HERE.parents[1])]

from edge.errors import EdgeError  # noqa: E402

FINDINGS = Path("fuzz-findings")
MEMORY = 6 << 30  # bytes of addresses
PATIENCE = 20.0  # seconds of the processor for one part
FIELDS = ("made", "reached", "refused", "answered")  # 8 bytes each in the file of counts


@dataclass(frozen=True)
class Engine:
    """`reader` of `READERS` mutates and reads; `beside` writes the other files of the part into a folder."""

    reader: str
    name: str
    use: Callable[[Path], None]
    beside: Callable[[Path], None] = lambda folder: None


def _tables(folder: Path, *, rotations: bool) -> None:
    random = np.random.default_rng(1)
    np.save(folder / "embed_tokens.npy", random.integers(-127, 127, (512, 64)).astype(np.int8))
    np.save(folder / "embed_scales.npy", np.full((512, 1), 0.01, np.float32))
    if rotations:
        np.save(folder / "rope.npy", np.ones((2, 1024, 16), np.float32))
    else:
        (folder / "decoder.onnx.data").write_bytes(random.integers(0, 256, 65536).astype(np.uint8).tobytes())


def _decoded(format: str, engine: str) -> Callable[[Path], None]:
    """The decoder of the corpus' bundle of that format: opened, and fed two prompts."""

    def use(file: Path) -> None:
        from readers import CORPUS

        from edge.bundle import manifest_file
        from edge.bundle.manifest import Manifest
        from edge.decoders.kv_graph import kv_decoder
        from edge.engines import open_part
        from edge.types import Decoder, OpenOptions, PartFiles, Tokens

        manifest = Manifest.from_json(manifest_file.read(CORPUS / f"{format}.manifest.json"))
        (part,) = (part for part in manifest.parts if "decoder" in part.covers)
        spec = manifest.spec.decoder
        others = tuple(file.with_name(entry.path) for entry in part.files[1:])
        files = PartFiles(format, part.scheme, part.covers, (file, *others), part.inputs, part.outputs, spec)
        opened = open_part(files, engine, OpenOptions(threads=1, context=64))
        decoder = opened if isinstance(opened, Decoder) else kv_decoder(opened, files, spec, 64)
        decoder.extend([Tokens((1, 5, 9, 40))])
        decoder.extend([Tokens((7,))])

    return use


def _llamacpp(file: Path) -> None:
    from gguf_fakes import SPEC

    from edge.engines import open_part
    from edge.types import Decoder, OpenOptions, PartFiles, Tokens

    part = PartFiles("gguf", "f32", ("decoder",), (file,), (), (), SPEC)
    decoder = open_part(part, "llamacpp", OpenOptions(threads=1, context=64))
    assert isinstance(decoder, Decoder)
    decoder.extend([Tokens((1, 5, 9, 40))])
    decoder.extend([Tokens((7,))])


def _executorch(file: Path) -> None:
    import edge_executorch

    from edge.formats import executorch
    from edge.types import TensorSpec

    program = executorch.read(file)
    try:
        opened = edge_executorch.Program(file, tuple(program.methods), 1)
        for name, method in program.methods.items():
            shapes = [tuple(min(int(axis), 4096) for axis in port.shape) for port in method.inputs]
            given = [np.zeros(shape, port.dtype) for shape, port in zip(shapes, method.inputs, strict=True)]
            opened.run(name, *given, results=sum(isinstance(port, TensorSpec) for port in method.outputs))
    except (edge_executorch.Failure, MemoryError) as error:
        raise EdgeError(str(error)) from error


ENGINES = {
    "onnxruntime": Engine(
        "onnx", "decoder.onnx", _decoded("onnx", "onnxruntime"), lambda f: _tables(f, rotations=False)
    ),
    "litert": Engine("tflite", "decoder.tflite", _decoded("tflite", "litert"), lambda f: _tables(f, rotations=True)),
    "llamacpp": Engine("decoder", "decoder.gguf", _llamacpp),
    "executorch_native": Engine("executorch", "program.pte", _executorch),
}


def main(count: int, names: list[str]) -> None:
    for name in names or list(ENGINES):
        found, ends = _campaign(name, count)
        told = ", ".join(f"{number} by {how}" for how, number in ends.most_common()) or "none"
        facts = ", ".join(f"{found[field]:,} {field}" for field in FIELDS)
        print(f"{name}: {facts}; processes that ended: {told}", flush=True)


def _campaign(name: str, count: int) -> tuple[Counter[str], Counter[str]]:
    total, ends = Counter[str](), Counter[str]()
    seed = 0
    while total["reached"] < count:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            (folder / "counts").write_bytes(bytes(8 * len(FIELDS)))
            command = [sys.executable, __file__, "--child", name, str(seed), str(count - total["reached"]), place]
            with (folder / "said").open("wb") as said:
                done = subprocess.run(command, check=False, stdout=said, stderr=said)
            numbers = np.frombuffer((folder / "counts").read_bytes(), np.int64)
            total.update(dict(zip(FIELDS, numbers.tolist(), strict=True)))
            if done.returncode:
                how = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit {done.returncode}"
                _keep(name, folder, how, ends.total())
                ends[how] += 1
            if not numbers[0]:
                raise RuntimeError(f"{name} does not start: {(folder / 'said').read_text(errors='replace')[-2000:]}")
        seed += 1
    return total, ends


def _keep(name: str, folder: Path, how: str, number: int) -> None:
    FINDINGS.mkdir(exist_ok=True)
    made = folder / "work" / ENGINES[name].name
    if made.exists():
        (FINDINGS / f"{name}-{number}.bin").write_bytes(made.read_bytes())
    said = (folder / "said").read_text(encoding="utf-8", errors="replace")
    (FINDINGS / f"{name}-{number}.txt").write_text(f"{how}\n{said[-4000:]}", encoding="utf-8")


def child(name: str, seed: int, count: int, folder: Path) -> None:
    """Parts until so many reached the engine, or it ends the process."""
    from readers import READERS

    engine = ENGINES[name]
    reader, random = READERS[engine.reader], Random(f"{name} {seed}")
    seeds = reader.seeds()
    (work := folder / "work").mkdir()
    engine.beside(work)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    file = work / engine.name
    file.write_bytes(seeds[0])
    engine.use(file)  # what is sound runs, and the library is loaded before memory is bounded
    _limit()
    with (folder / "counts").open("r+b") as handle, mmap.mmap(handle.fileno(), 8 * len(FIELDS)) as view:
        counts = np.frombuffer(view, np.int64)  # the file's own memory: what a process that ends has written stays
        while counts[1] < count:
            counts[0] += 1
            file.unlink()  # what the library may have mapped stays what it was
            file.write_bytes(reader.mutated(random.choice(seeds), seeds, random))
            signal.setitimer(signal.ITIMER_PROF, PATIENCE)
            try:
                reader.feed(file)
            except EdgeError:
                continue
            counts[1] += 1
            try:
                engine.use(file)
                counts[3] += 1
            except EdgeError:
                counts[2] += 1
        os._exit(0)


def _limit() -> None:
    """The signal of the timer ends the process, also where native code does not return."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    if sys.argv[1] == "--child":
        child(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
    else:
        main(int(sys.argv[1]), sys.argv[2:])
