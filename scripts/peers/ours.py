"""Our own bundles: `edge bench` for the stages, `edge run` for the whole process, a session for several pictures."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from common import ANSWER, HERE, PICTURE, PROMPT, QUESTION, REPOSITORY, Call, Figures, Unavailable, process_figures, run

LONG = {"1k": 1000, "2k": 1900}
_TIMES = {"picture": "vision encode", "load": "load", "first": "first token", "second": "second question"}
ENV = {"PYTHONPATH": str(REPOSITORY)}
EDGE = (sys.executable, "-c", "import sys; from edge.cli import main; sys.exit(main())")


@dataclass(frozen=True)
class Bundle:
    """One recipe on one engine. `folder` may be a link to a bundle that is there already."""

    name: str
    key: str
    recipe: str
    engine: str = ""
    options: tuple[str, ...] = field(default=())

    def prepare(self, call: Call) -> None:
        target = call.folder / f"ours-{self.recipe}"
        if not target.exists():
            options = ("--recipe", self.recipe, "--calib", REPOSITORY / "calib_data", *self.options)
            run([*EDGE, "export", call.checkpoint, "-o", target, *options], env=ENV)

    def measure(self, call: Call) -> Figures:
        bundle = call.folder / f"ours-{self.recipe}"
        if not bundle.exists():
            raise Unavailable("not prepared")
        found = self._stages(bundle, call.threads)
        asked = [*EDGE, "run", bundle, PICTURE, QUESTION, "-n", "1", "-t", str(call.threads)]
        return found | process_figures(asked, ENV)

    def long(self, call: Call) -> Figures:
        """At contexts of 1,000 and 1,900, and three pictures in a chat: what the bundle's own context holds of that."""
        bundle, found = call.folder / f"ours-{self.recipe}", Figures()
        for names in (LONG, ["1k"]):  # both in one process, or the shorter
            each = ",".join(str(LONG[name]) for name in names)
            try:
                rows = self._rows(bundle, call.threads, "-p", each, "-n", "0")
                found |= {f"prefill_{name}": rows[f"pp{LONG[name]}"]["avg_ts"] for name in names}
                rows = self._rows(bundle, call.threads, "-p", "0", "-n", str(ANSWER), "-d", each)
                found |= {f"decode_{name}": rows[f"tg{ANSWER} @ d{LONG[name]}"]["avg_ts"] for name in names}
            except Unavailable:
                continue
            break
        asked = [sys.executable, HERE / "chat.py", bundle, str(call.threads), *filter(None, [self.engine])]
        with suppress(Unavailable):
            found["three"] = float(run(asked, env=ENV).stdout)
        return found

    def _stages(self, bundle: Path, threads: int) -> Figures:
        rows = self._rows(bundle, threads, "-p", str(PROMPT), "-n", str(ANSWER), "-d", f"0,{PROMPT}")
        found = {key: rows[test]["avg_ns"] / 1e9 for key, test in _TIMES.items()}
        found["prefill"] = rows[f"pp{PROMPT}"]["avg_ts"]
        found["decode"] = rows[f"tg{ANSWER} @ d{PROMPT}"]["avg_ts"]
        return found

    def _rows(self, bundle: Path, threads: int, *which: str) -> Mapping[str, dict[str, float]]:
        engine = ("--engine", self.engine) if self.engine else ()
        ended = run([*EDGE, "bench", bundle, "-r", "1", "-o", "json", "-t", str(threads), *which, *engine], env=ENV)
        return {row["test"]: row for row in json.loads(ended.stdout)}


CONTESTANTS = (
    Bundle("ExecuTorch native, w8a8 + 8da4w", "executorch", "executorch-w8a8-8da4w", "executorch_native"),
    Bundle("LiteRT, w8a8 + w4", "litert", "tflite-w8a8-w4", "litert"),
    Bundle("ONNX Runtime, w8a8 + w4", "onnx", "onnx-w8a8-w4", "onnxruntime"),
    Bundle("ONNX Runtime w8a8 + llama.cpp Q4_0", "mixed", "onnx-w8a8-gguf-q4_0"),
)
