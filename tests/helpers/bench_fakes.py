"""Results of benchmarks as `edge bench` writes them, without a benchmark: every figure is invented."""

from __future__ import annotations

import math
from typing import Any

from edge.bench import schema
from edge.bench.schema import Row


def facts(**changes: Any) -> Row:
    return {
        "schema": 1,
        "build_commit": "edge-vlm 0.1.0",
        "cpu_info": "Raspberry Pi 5 Model B Rev 1.0",
        "device": "Raspberry Pi 5 Model B Rev 1.0",
        "backends": "onnxruntime,llamacpp",
        "model_filename": "some/where/OUT",
        "model_type": "tiny w8a8+q4_0",
        "model_size": 1_110_000_000,
        "n_threads": 4,
        "recipe": "onnx-w8a8-gguf-q4_0",
        "context": 2048,
        "prompt_tokens": 188,
        "image_tokens": 144,
        "test_time": "2026-11-22T15:00:00Z",
        "memory_limit_bytes": 4_000_000_000,
        "bytes_per_token": 750_000_000,
        "agreement_tokens": 0.9375,
        "agreement_cosine": 0.99881,
        **changes,
    }


def samples(test: str, *milliseconds: float, **more: Any) -> list[dict[str, Any]]:
    return [{"test": test, "start": 0, "ns": round(1e6 * ms), **more} for ms in milliseconds]


def run(pace: float = 1.0, seconds: int = 0, **changes: Any) -> list[Row]:
    """What one bundle gives; `pace` 2 is twice as slow; `seconds` of sustained speed, the clock falling."""
    about = facts(**changes)

    def timed(test: str, milliseconds: float, **more: Any) -> Row:
        return schema.timed(samples(test, *(pace * milliseconds * x for x in (0.98, 1.0, 1.03)), **more), about)

    stages = {"picture": pace * 12e6, "vision": pace * 2.1e9, "prefill": pace * 4.4e9}
    found = [
        schema.memory(1_370_000_000, about),
        timed("picture decode", 4.1),
        timed("preprocess", 8.2),
        {**timed("vision encode", 2100), "energy_j": 13.2, "temp_c": 61.0, "clock_mhz": 2400.0},
        timed("pp190", 4400, n_prompt=190),
        timed("tg64", 7100, n_gen=64),
        timed("tg64 @ d188", 7400, n_gen=64, n_depth=188),
        timed("first token", 6600, stages_ns=stages),
        timed("second question", 900),
        timed("own code per token", 0.21),
        timed("load", 3100),
    ]
    if seconds:
        windows = [_window(t, pace) for t in range(8, seconds, 8)]
        slow = "throttled: the clock fell from 2400 to 1500 MHz at 85 °C"
        found.append({**schema.sustained("sustained tg64", windows, about), "warnings": [slow]})
    return found


def _window(t: int, pace: float) -> dict[str, float]:
    heat = 1 - math.exp(-t / 60)
    clock = 2400.0 if t < 120 else 1500.0
    return {"t_s": float(t), "ts": 9.0 / pace * clock / 2400, "temp_c": 50 + 36 * heat, "clock_mhz": clock}
