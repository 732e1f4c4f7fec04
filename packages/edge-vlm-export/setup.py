"""What pyproject.toml cannot say: the version, which stands in edge/__init__.py alone, and the run side of the same."""

import re
from pathlib import Path

from setuptools import setup

PACKAGE = Path(__file__).resolve().parents[2] / "edge" / "__init__.py"
VERSION = re.search(r'^__version__ = "(.+)"$', PACKAGE.read_text(encoding="utf-8"), re.MULTILINE)[1]

setup(
    version=VERSION,
    install_requires=[
        f"edge-vlm[onnxruntime,litert,executorch,hub]=={VERSION}",
        "torch>=2.9,<2.14",
        "onnx>=1.20",
        "onnxscript>=0.6",
        "onnx-ir>=0.1.15",
        "gguf>=0.17",
        "coremltools>=9,<10; sys_platform != 'win32'",
        "safetensors>=0.5",
        "sentencepiece>=0.2",
        "protobuf>=5",
        "jinja2>=3.1.6",  # renders what a checkpoint's author wrote; older sandboxes leak
    ],
)
