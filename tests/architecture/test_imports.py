"""The import rules of the design, read from the source: what a module imports, prints, and does on import."""

from __future__ import annotations

import ast
import io
import json
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_origin, get_type_hints

import pytest
from conftest import REPOSITORY
from gguf_fakes import gguf_bytes, pair_decoder, pair_mmproj
from guests import ABSENT

from edge import plugins
from edge.types import EngineFacts

HEAVY = {"torch", "torchvision", "transformers", "timm", "safetensors", "sentencepiece", "huggingface_hub"}
CONVERTERS = {
    "onnx",
    "onnxscript",
    "onnx_ir",
    "gguf",
    "executorch",
    "coremltools",
    "litert_torch",
    "flatbuffers",
    "tensorflow",
}
LIGHT = {"numpy", "PIL", "tokenizers", "typer", "rich"}
# A room or a file -> what its extra brings, for it alone.
EXTRAS = {
    "edge/server": {"starlette", "uvicorn", "h11"},
    "edge/inference/grammar.py": {"llguidance"},
    "edge/fetching/hub.py": {"huggingface_hub"},
    "edge/bundle/ed25519.py": {"cryptography"},
}
OWN = {"edge", "runtimes", "exporters"}
MODEL_NAMES = re.compile(
    r"mobile_?vlm|mobile_?llama|llava|vicuna|siglip|\bldp|(?<![a-z])clip(?![a-z])|llama(?!\.?_?-?cpp)|openai/|qwen|gemma",
    re.IGNORECASE,
)


def sources(*packages: str) -> list[Path]:
    return sorted(p for package in packages for p in (REPOSITORY / package).rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def each(*packages: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", sources(*packages), ids=name)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> tuple[tuple[ast.stmt, str], ...]:
    """Every import, wherever it stands, with the full name of what it names."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[tuple[ast.stmt, str]]:
    package = list(path.relative_to(REPOSITORY).parts[:-1])
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield from ((node, ".".join([*base, *filter(None, [node.module]), alias.name])) for alias in node.names)


def roots(path: Path) -> set[str]:
    return {module.split(".")[0] for _, module in imports(path)}


def outside(path: Path) -> set[str]:
    """What is neither the standard library nor ours."""
    return roots(path) - sys.stdlib_module_names - OWN


def others(path: Path, folder: str) -> list[str]:
    """What a module imports of the folder's other alternatives; an alternative is a module or a package there."""
    room = tuple(folder.split("/"))
    own = "".join(path.relative_to(REPOSITORY).with_suffix("").parts[len(room) : len(room) + 1])
    names = {p.stem for p in (REPOSITORY / folder).iterdir()} - {own, "__init__", "__pycache__"}
    parts = [tuple(module.split(".")) for _, module in imports(path)]
    return [".".join(p) for p in parts if p[: len(room)] == room and len(p) > len(room) and p[len(room)] in names]


def test_there_is_something_to_look_at() -> None:
    assert {"edge/bundle/manifest.py", "runtimes/null.py"} <= {name(p) for p in sources("edge", "runtimes")}


@each("edge")
def test_1_edge_imports_the_light_libraries_only(path: Path) -> None:
    extra = {library for where, brought in EXTRAS.items() if name(path).startswith(where) for library in brought}
    assert outside(path) <= LIGHT | extra
    assert not roots(path) & {"runtimes", "exporters"}


@each("edge")
def test_1_what_needs_an_extra_is_imported_late(path: Path) -> None:
    """A file among others: of a room with an extra, whose files all need it, that is the command's business."""
    modules = {file.removesuffix(".py").replace("/", ".") for file in EXTRAS if file.endswith(".py")}
    early = [node for node in tree(path).body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not [module for node, module in imports(path) if node in early and module.rpartition(".")[0] in modules]


@each("runtimes")
def test_2_an_engine_imports_contracts_numpy_and_its_own_library_at_the_top(path: Path) -> None:
    assert "exporters" not in roots(path)
    own = outside(path) - {"numpy"} - ({"torch"} if name(path) == "runtimes/executorch.py" else set())
    assert len(own) <= 1, "an engine has one library"
    assert [module for node, module in imports(path) if node.col_offset > 0] == []


@each("native")
def test_2_what_is_compiled_for_an_engine_needs_numpy_only(path: Path) -> None:
    build = {"scikit_build_core"} if path.name == "build_backend.py" else set()  # runs where it is compiled
    assert roots(path) - sys.stdlib_module_names <= {"numpy"} | build


@each("exporters")
def test_3_exporters_never_import_engines(path: Path) -> None:
    assert "runtimes" not in roots(path)


@each("runtimes")
def test_4_engines_never_import_each_other(path: Path) -> None:
    assert others(path, "runtimes") == []


@each("exporters/formats")
def test_4_formats_never_import_each_other(path: Path) -> None:
    assert others(path, "exporters/formats") == []


@each("exporters")
def test_4_a_decoder_family_is_given_and_never_named(path: Path) -> None:
    """A new one needs no edit elsewhere: families are found by what a checkpoint says."""
    assert others(path, "exporters/models/decoders") == []


def test_an_import_of_another_alternative_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "REPOSITORY", tmp_path)
    (tmp_path / "zoo" / "bat").mkdir(parents=True)
    (tmp_path / "zoo" / "owl.py").write_text("from zoo.bat.wing import Wing\nfrom zoo import Animal")
    (tmp_path / "zoo" / "bat" / "__init__.py").write_text("from zoo.bat.wing import Wing\nfrom zoo.owl import hoo")
    assert others(tmp_path / "zoo" / "owl.py", "zoo") == ["zoo.bat.wing.Wing"]
    assert others(tmp_path / "zoo" / "bat" / "__init__.py", "zoo") == ["zoo.owl.hoo"]


@each("edge", "runtimes")
def test_5_the_heavy_libraries_stay_with_the_exporters(path: Path) -> None:
    exempt = {"torch", "executorch"} if name(path) == "runtimes/executorch.py" else set()
    exempt |= {"coremltools"} if name(path) == "runtimes/coreml.py" else set()
    exempt |= {"huggingface_hub"} if name(path) == "edge/fetching/hub.py" else set()
    assert not roots(path) & (HEAVY | CONVERTERS) - exempt


def prints(path: Path) -> list[str]:
    found = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "Console"):
            found.append(f"{node.lineno}: {node.func.id}(…)")
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sys":
            found += [f"{node.lineno}: sys.{node.attr}"] if node.attr in ("stdout", "stderr") else []
    return found


@each("edge", "runtimes", "exporters", "native")
def test_6_only_the_command_line_prints(path: Path) -> None:
    assert name(path).startswith("edge/cli/") or prints(path) == []


QUIET = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
GUARDS = ("TYPE_CHECKING", "__name__ == '__main__'")


def acts(node: ast.stmt) -> bool:
    """Whether a statement at the top of a module does more than to define."""
    if isinstance(node, ast.If):
        return ast.unparse(node.test) not in GUARDS
    return not (isinstance(node, QUIET) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)))


@each("edge", "runtimes", "exporters", "native")
def test_7_no_import_has_side_effects(path: Path) -> None:
    assert [f"{node.lineno}: {ast.unparse(node)}" for node in tree(path).body if acts(node)] == []


def test_7_importing_edge_loads_nothing_heavy() -> None:
    script = "import sys; before = set(sys.modules); import edge; print(*sorted(set(sys.modules) - before), sep='\\n')"
    loaded = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "edge" in loaded
    assert [m for m in loaded if m.split(".")[0] not in sys.stdlib_module_names | {"edge"}] == []


def loads(path: Path) -> Iterator[tuple[str, str]]:
    """What `plugins.load` is given as literals: no import that a move would find."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "plugins.load":
            words = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
            if len(words) == 2:
                yield str(words[0]), str(words[1])


@each("edge", "exporters")
def test_what_is_loaded_by_its_name_is_there(path: Path) -> None:
    assert [f"{package}.{name}" for package, name in loads(path) if name not in plugins.names(package)] == []


def test_the_command_line_loads_the_export_side_by_name() -> None:
    loaded = set(loads(REPOSITORY / "edge" / "cli" / "export.py"))
    assert loaded == {("exporters", "export"), ("exporters", "adopt")}


# The rooms of edge/ from the top down. A room imports rooms of lower floors, and none beside it.
FLOORS = (
    {"cli"},
    {"bench", "evaluation", "isolation", "remote", "server"},
    {"verify", "doctor", "fetching"},
    {"inference"},
    {"planning"},
    {"decoders"},
    {"formats", "bundle", "inputs"},
    {"engines"},
    {"devices", "types"},
    {"spec", "plugins", "recipes", "units"},
    {"errors", "privacy"},
)
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}


def rooms() -> set[str]:
    return {p.stem for p in (REPOSITORY / "edge").iterdir()} - {"__init__", "__pycache__"}


def arrows(path: Path) -> set[tuple[str, str]]:
    """Imports from room to room, wherever they stand; `edge` itself is the door, through which nobody looks down."""

    own = path.relative_to(REPOSITORY / "edge").with_suffix("").parts[0]
    found = {module.split(".")[1] for _, module in imports(path) if module.startswith("edge.")}
    return {(own, other) for other in found & LEVEL.keys() if own in LEVEL and other != own}


def test_every_room_has_its_floor() -> None:
    assert rooms() <= LEVEL.keys()
    assert len(rooms()) <= 24
    assert len(FLOORS) <= 11


@each("edge")
def test_8_arrows_go_down(path: Path) -> None:
    assert [f"{own} -> {other}" for own, other in arrows(path) if LEVEL[own] >= LEVEL[other]] == []


def test_an_arrow_between_rooms_is_seen_wherever_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "REPOSITORY", tmp_path)
    for room in ("bundle", "inputs"):
        (tmp_path / "edge" / room).mkdir(parents=True)
    for file, text, found in (
        ("units.py", "from edge.errors import EdgeError\nimport edge", {("units", "errors")}),
        ("inputs/a.py", "from edge.inputs import image\nfrom edge.inference import stop", {("inputs", "inference")}),
        ("bundle/a.py", "def f():\n    import edge.cli.render\nfrom .b import g", {("bundle", "cli")}),
        ("__init__.py", "from edge.inference import session", set()),
    ):
        (tmp_path / "edge" / file).write_text(text)
        assert arrows(tmp_path / "edge" / file) == found


@each("edge", "runtimes", "native")
def test_no_model_is_named_on_the_run_side(path: Path) -> None:
    found = []
    tokens = list(tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline))
    for before, token in zip([tokens[0], *tokens], tokens, strict=False):
        method = token.type == tokenize.NAME and before.string == "."  # numpy.clip
        if not method and (match := MODEL_NAMES.search(token.string)):
            found.append(f"{token.start[0]}: {match[0]}")
    assert found == []


OFFERED = {
    "kernels": "kernels",
    "matmuls": "matmuls",
    "build": "features",
    "providers": "providers",
}  # a fact -> the function that goes with it


def assert_declares(facts: dict[str, object]) -> None:
    """Keys and values are those of the TypedDict, as far as Python can tell; a system that is left out is told why."""
    kinds = {key: get_origin(kind) or kind for key, kind in get_type_hints(EngineFacts).items()}
    assert EngineFacts.__required_keys__ <= facts.keys() <= kinds.keys()
    for key, value in facts.items():
        assert isinstance(value, kinds[key]), f"{key} is {value!r}"  # type: ignore[arg-type]
    assert ("systems" in facts) == ("elsewhere" in facts)


@pytest.mark.parametrize("engine", plugins.names("runtimes"))
def test_an_engine_is_what_the_contract_says(engine: str) -> None:
    assert_declares(plugins.facts("runtimes", engine)["ENGINE"])
    home = REPOSITORY / "runtimes" / engine
    body = tree(home / "__init__.py" if home.is_dir() else home.with_suffix(".py")).body
    functions = {node.name: [a.arg for a in node.args.args] for node in body if isinstance(node, ast.FunctionDef)}
    assert functions["version"] == []
    assert functions["open"] == ["part", "options"]
    offered = {fact: name for fact, name in OFFERED.items() if name in functions}
    assert offered.keys() == OFFERED.keys() & plugins.facts("runtimes", engine)["ENGINE"].keys()


@pytest.mark.parametrize("evaluator", plugins.names("exporters.evaluators"))
def test_an_evaluator_declares_what_an_engine_does(evaluator: str) -> None:
    assert_declares(plugins.facts("exporters.evaluators", evaluator)["ENGINE"])


def test_only_the_catalogue_reads_what_engines_declare() -> None:
    readers = {name(path) for path in sources("edge", "exporters") if '"ENGINE"' in path.read_text(encoding="utf-8")}
    assert readers == {"edge/engines.py"}


BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r} (blocked)", name=name)

sys.meta_path.insert(0, Blocker())
"""


def without(blocked: set[str], code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process that cannot import the libraries."""
    script = f"BLOCKED = {json.dumps(sorted(blocked))}\n{BLOCKER}\n{code}"
    return subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True)


def test_the_blocker_blocks() -> None:
    assert "blocked" in without({"numpy"}, "import numpy").stderr


def test_every_module_of_the_run_side_imports_without_the_heavy_libraries() -> None:
    modules = [".".join(p.relative_to(REPOSITORY).with_suffix("").parts) for p in sources("edge")]
    modules = [m.removesuffix(".__init__") for m in modules] + ["runtimes.null"]
    code = f"import importlib\nfor m in {modules!r}: importlib.import_module(m)\nprint('fine')"
    done = without(HEAVY | CONVERTERS | {"exporters", "onnxruntime"}, code)
    assert (done.stdout, done.stderr) == ("fine\n", "")


EDGE = """
from edge.cli import main
try: code = main(ARGUMENTS)
except SystemExit as leaving: code = leaving.code
print(code or 0)
"""


def test_the_doctor_of_files_needs_neither_torch_nor_converters(tmp_path: Path) -> None:
    arguments = ["doctor"]
    for name, (settings, tensors) in (("a.gguf", pair_decoder()), ("mmproj.gguf", pair_mmproj())):
        (tmp_path / name).write_bytes(gguf_bytes(settings, tensors))
        arguments.append(str(tmp_path / name))
    done = without(HEAVY | CONVERTERS | {"jinja2", "llama_cpp", "onnxruntime"}, f"ARGUMENTS = {arguments!r}\n{EDGE}")
    assert done.stdout.endswith("\n1\n") and "wrong: template" in done.stderr
    arguments += ["--repair", str(tmp_path / "out")]
    done = without(HEAVY | CONVERTERS | {"llama_cpp", "onnxruntime"}, f"ARGUMENTS = {arguments!r}\n{EDGE}")
    assert done.stdout.endswith("\n0\n") and (tmp_path / "out" / "a.gguf").is_file()


def test_the_report_needs_neither_torch_nor_converters() -> None:
    done = without(HEAVY | CONVERTERS | {"llama_cpp", "onnxruntime"}, "import exporters.report; print('fine')")
    assert (done.stdout, done.stderr) == ("fine\n", "")


def test_what_is_tested_on_a_device_is_collected_without_torch() -> None:
    """Emulated processors run these tests where neither torch nor its exporters are installed."""
    arguments = ["--collect-only", "-qq", "tests/unit", "tests/engine", *(f"--ignore={path}" for path in ABSENT)]
    blocked = (HEAVY | {"executorch", "coremltools", "gguf"}) - {"safetensors"}
    done = without(blocked, f"import pytest, sys; sys.exit(pytest.main({arguments!r}))")
    assert done.returncode == 0, done.stdout[-3000:]


def test_no_two_files_of_tests_share_a_name() -> None:
    """pytest imports them by it: one run of all could not collect both."""
    names = [path.name for path in (REPOSITORY / "tests").rglob("test_*.py")]
    assert sorted({name for name in names if names.count(name) > 1}) == []
