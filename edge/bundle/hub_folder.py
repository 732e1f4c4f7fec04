"""Hub folder: a bundle as one uploads it to a model hub, with a card that says what it is and how it was proven."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from edge.bundle import staging
from edge.bundle.manifest import MANIFEST, Bundle, Manifest, Part
from edge.bundle.signature import SIGNATURE
from edge.units import format_size

CARD = "README.md"
ATTRIBUTES = ".gitattributes"
_SMALL = 10 << 20  # bytes: a hub wants larger files in its store for large ones (LFS)
# Of https://huggingface.co/docs/hub/repositories-licenses, the usual ones; a hub shows others by their name.
_LICENSES = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc0-1.0", "openrail")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>()#+!|~&:@$-])")
_STAGES = {"vision": "image embeddings", "prefill": "logits of the prompt", "tokens": "greedy answer"}
_REFERENCES = {"stored": "the weights as stored", "fp32": "the checkpoint in fp32"}


def package(bundle: Bundle, destination: Path) -> int:
    """Hash all files, and write the folder aside; the size of its files in bytes.

    Raises BundleError when the bundle is damaged, and UsageError when something else is at the destination.
    """
    bundle.check()
    manifest = bundle.manifest
    with staging.create(destination) as folder:
        for path in (MANIFEST, *dict.fromkeys(file.path for file in manifest.files())):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.path / path, folder / path)
        if (bundle.path / SIGNATURE).is_file():
            shutil.copyfile(bundle.path / SIGNATURE, folder / SIGNATURE)
        (folder / CARD).write_text(card(manifest), encoding="utf-8")
        large = [file.path for file in manifest.files() if file.bytes > _SMALL]
        (folder / ATTRIBUTES).write_text("".join(map(_attribute, sorted(set(large)))), encoding="utf-8")
    return sum(file.stat().st_size for file in destination.rglob("*") if file.is_file())


def _attribute(path: str) -> str:
    quoted = '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return f"{quoted} filter=lfs diff=lfs merge=lfs -text\n"


def card(manifest: Manifest) -> str:
    """The model card, Markdown below a head of YAML. A manifest's words are shown as they are, and mark nothing up."""
    return "\n".join([*_head(manifest), *_body(manifest)])


def _head(manifest: Manifest) -> Iterator[str]:
    known = manifest.license.strip().lower()
    yield "---"
    yield "library_name: edge-vlm"
    yield f"pipeline_tag: {'image-text-to-text' if manifest.sees else 'text-generation'}"
    if known in _LICENSES:
        yield f"license: {known}"
    else:
        yield "license: other"
        yield f"license_name: {_yaml(manifest.license)}"
    yield "tags:"
    for tag in ("edge-vlm", *dict.fromkeys(part.format for part in manifest.parts)):
        yield f"- {_yaml(tag)}"
    yield "---"
    yield ""


def _yaml(text: str) -> str:
    """A double-quoted scalar of YAML 1.2, which JSON's strings are."""
    return json.dumps(text)


def _body(manifest: Manifest) -> Iterator[str]:
    own = manifest.own()
    size = sum(file.bytes for file in dict.fromkeys(own))
    yield f"# {_plain(manifest.name)}"
    yield ""
    yield (
        f"A bundle of [edge-vlm](https://pypi.org/project/edge-vlm/): {format_size(size)}, recipe "
        f"{_plain(manifest.recipe)}, made of {_plain(manifest.source.get('name', 'a checkpoint'))}, whose content "
        f"has the sha256 {_plain(manifest.source.get('sha256', 'unknown'))}."
    )
    yield ""
    yield "```"
    yield f"pip install 'edge-vlm[{','.join(_extras(manifest))},hub]'"
    yield f'edge run OWNER/NAME {"photo.jpg " if manifest.sees else ""}"What is this?"'
    yield "```"
    yield ""
    yield "## Proof"
    yield ""
    yield (
        "When it was exported, each part computed one image and one question in its own engine, and was compared with "
        "PyTorch: on the weights as they are stored, which shows that the file is what was meant, and on those of the "
        "checkpoint, which shows what rounding costs. `edge verify` repeats the first on your machine."
    )
    yield ""
    yield "| part | format | scheme | size | of | against | largest error | cosine | tokens alike | bound |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for part in manifest.parts:
        yield from _rows(part)
    yield ""
    versions = ", ".join(f"{_plain(name)} {_plain(version)}" for name, version in manifest.versions.items())
    yield f"Made with {versions}."
    yield ""


def _extras(manifest: Manifest) -> list[str]:
    """The extra of an engine for each format, as far as one name tells."""
    known = {
        "onnx": "onnxruntime",
        "gguf": "llamacpp",
        "tflite": "litert",
        "coreml": "coreml",
        "executorch": "executorch",
    }
    return list(dict.fromkeys(known[part.format] for part in manifest.parts if part.format in known))


def _rows(part: Part) -> Iterator[str]:
    """A line for each stage and reference that an export measured: `vision.stored.cosine` is one of its errors."""
    measured: dict[tuple[str, str], dict[str, float]] = {}
    for name, value in part.error.items():
        stage, _, rest = name.partition(".")
        reference, _, measure = rest.partition(".")
        if measure in ("max_abs", "cosine", "tokens"):
            measured.setdefault((stage, reference), {})[measure] = value
    what = " | ".join((_plain("+".join(part.covers)), _plain(part.format), _plain(part.scheme), format_size(part.size)))
    for (stage, reference), values in measured.items():
        cells = (f"{values[name]:.6g}" if name in values else "" for name in ("max_abs", "cosine", "tokens"))
        bound = ", ".join(
            f"{name} {'≤' if name == 'max_abs' else '≥'} {value:g}"
            for name, value in part.tolerance.items()
            if reference == "stored" and name in values
        )
        named = (_STAGES.get(stage, _plain(stage)), _REFERENCES.get(reference, _plain(reference)))
        yield "| " + " | ".join((what, *named, *cells, bound)) + " |"


def _plain(text: str) -> str:
    """The text in one line, with nothing in it that Markdown or HTML would take for more."""
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split())).replace("\\<", "&lt;").replace("\\&", "&amp;")
