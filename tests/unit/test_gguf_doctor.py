"""Pairs of GGUF files with faults: what is said of each, and what is left after the repair."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_templates import CHATML, IDEFICS, LLAMA_2, LLAMA_3
from commands import Said, call
from gguf_fakes import F16, Q8_0, SPEC, Tensors, gguf_bytes, pair_decoder, pair_mmproj
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from edge.bundle.manifest import sha256
from edge.cli import render
from edge.errors import BundleError, UsageError
from edge.formats import gguf
from edge.formats.gguf import GGUFArray
from edge.formats.gguf_report import Finding, Findings
from exporters.gguf import doctor, rendering, template
from exporters.gguf.doctor import LISTS
from exporters.gguf.names import FEATURE_LAYER, TEMPLATE, WORKAROUND
from exporters.sources.published import SYSTEM, prompt

SPECIFIED = prompt(144, 1, (2,))
OURS = template.jinja(SPECIFIED, lambda i: "</s>")
# As somebody else would write it; the break after a picture is in the question.
THEIRS = (
    "{{ bos_token }}{% for m in messages %}{% if loop.first %}" + SYSTEM + " {% endif %}"
    "{% if m['role'] == 'user' %}{{ 'USER: ' + (m['content'] | replace('<__media__>', '<__media__>\n')) + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
Change = Callable[[dict[str, Any], Tensors], None]


def write(folder: Path, decoder: Change | None = None, mmproj: Change | None = None) -> tuple[Path, Path]:
    """A pair; each file is changed before."""
    folder.mkdir(exist_ok=True)
    paths = folder / "Tiny-Q4_0.gguf", folder / "mmproj-Tiny-Q8_0.gguf"
    made = pair_decoder(), pair_mmproj()
    made[0][0][TEMPLATE] = OURS
    for path, (head, tensors), change in zip(paths, made, (decoder, mmproj), strict=True):
        if change:
            change(head, tensors)
        path.write_bytes(gguf_bytes(head, tensors))
    return paths


def status(found: Findings) -> dict[str, str]:
    """Of the rows that are not ok."""
    return {f"{row.about} {row.check}": row.status for row in found.rows if row.status != "ok"}


ALWAYS = {"mmproj class token": "warning"}


def test_a_sound_pair(tmp_path: Path) -> None:
    decoder, mmproj = write(tmp_path)
    for paths in ([decoder, mmproj], [mmproj, decoder]):
        found = doctor.diagnose(paths)
        assert found.ok and status(found) == ALWAYS
        assert list(found.files) == ["decoder", "mmproj"]
        assert found.files["mmproj"] == "mmproj-Tiny-Q8_0.gguf, MobileVLM V2"
    (row,) = (row for row in found.rows if row.status == "warning")
    assert "#25844" in row.found and "edge export MODEL.gguf --mmproj MMPROJ.gguf -o OUT" in row.cost
    assert status(doctor.diagnose([decoder])) == {}
    assert status(doctor.diagnose([mmproj])) == ALWAYS


def sets(key: str, value: Any) -> Change:
    def change(head: dict[str, Any], tensors: Tensors) -> None:
        head.pop(key, None)
        if value is not None:
            head[key] = value

    return change


def drops(name: str) -> Change:
    return lambda head, tensors: tensors.pop(name) and None


def swaps(head: dict[str, Any], tensors: Tensors) -> None:
    for n in range(2):
        for end in ("weight", "bias"):
            up, down = f"v.blk.{n}.ffn_up.{end}", f"v.blk.{n}.ffn_down.{end}"
            tensors[up], tensors[down] = tensors[down], tensors[up]


def widens(head: dict[str, Any], tensors: Tensors) -> None:
    for name, (shape, kind, _) in list(tensors.items()):
        if kind == Q8_0:
            tensors[name] = shape, F16, bytes(shape[0] * shape[1] * 2)


def all_of(*changes: Change) -> Change:
    def change(head: dict[str, Any], tensors: Tensors) -> None:
        for one in changes:
            one(head, tensors)

    return change


def unordered(head: dict[str, Any], tensors: Tensors) -> None:
    """Two of three layers, whose feed-forward is stored in no known way."""
    _, kind, content = tensors["v.blk.1.ffn_up.weight"]
    tensors["v.blk.1.ffn_up.weight"] = (32, 64), kind, content[: 32 * 2 * 34]


MMPROJ: dict[str, tuple[Change, str, str, bool, str]] = {
    "no feature layer": (
        sets(FEATURE_LAYER, None),
        "layers",
        "wrong",
        True,
        "1 of 2 run: no clip.vision.feature_layer",
    ),
    "too few layers": (sets(FEATURE_LAYER, [1]), "layers", "wrong", True, "1 of 2 run"),
    "counted from behind": (sets(FEATURE_LAYER, [-2]), "layers", "wrong", True, "1 of 2 run"),
    "too many layers": (sets(FEATURE_LAYER, [3]), "layers", "wrong", True, "[3]"),
    "several layers": (sets(FEATURE_LAYER, [1, 2]), "layers", "wrong", True, "[1, 2]"),
    "a layer of another type": (sets(FEATURE_LAYER, [2.0]), "layers", "wrong", True, "no list of int32"),
    "a layer that is no list": (sets(FEATURE_LAYER, 2), "layers", "wrong", True, "no list of int32"),
    "no type": (sets("clip.projector_type", None), "projector", "wrong", True, "None"),
    "another type": (sets("clip.projector_type", "mlp"), "projector", "wrong", True, "'mlp'"),
    "no encoder": (sets("clip.has_vision_encoder", None), "projector", "wrong", True, "None"),
    "swapped": (swaps, "feed-forward", "warning", True, "swapped"),
    "no known feed-forward": (unordered, "feed-forward", "wrong", False, "v.blk.1.ffn_up [64, 32]"),
    "gelu": (sets("clip.use_gelu", True), "activation", "wrong", True, "clip.use_gelu"),
    "silu": (sets("clip.use_silu", True), "activation", "wrong", True, "clip.use_silu"),
    "no mean": (sets("clip.vision.image_mean", None), "colours", "wrong", True, "missing"),
    "a short deviation": (sets("clip.vision.image_std", [0.5, 0.5]), "colours", "wrong", True, "missing"),
    "another mean": (sets("clip.vision.image_mean", [0.5] * 3), "colours", "warning", False, "not CLIP's"),
    "wide": (widens, "storage", "warning", False, "F16"),
    "another patch": (sets("clip.vision.patch_size", 16), "counts", "wrong", False, "a grid of 21, 24 needed"),
    "another width": (sets("clip.vision.embedding_length", 63), "counts", "wrong", False, "width 63 set, 64 stored"),
    "an absurd count": (sets("clip.vision.block_count", 1 << 31), "counts", "wrong", False, "blocks 0 set, 2 stored"),
    "no count": (sets("clip.vision.block_count", None), "counts", "wrong", False, "blocks 0 set, 2 stored"),
    "no positions": (drops("v.position_embd.weight"), "counts", "wrong", False, "positions [64, 577] set, [] stored"),
    "a tensor less": (drops("v.blk.1.ln2.bias"), "counts", "wrong", False, "no v.blk.1.ln2.bias"),
    "no class token": (drops("v.class_embd"), "counts", "wrong", False, "0 stored"),
}
T = "tokenizer.ggml."
DECODER: dict[str, tuple[Change, str, str, bool, str]] = {
    "no template": (sets(TEMPLATE, None), "template", "wrong", True, "missing"),
    "an empty template": (sets(TEMPLATE, " "), "template", "wrong", True, "missing"),
    "another template": (
        sets(TEMPLATE, "{{ messages[0]['content'] }}"),
        "template",
        "wrong",
        True,
        "says '<__media__>W",
    ),
    "no break": (sets(TEMPLATE, THEIRS.replace("\n", "")), "template", "wrong", True, "<__media__>What is this' for"),
    "no template at all": (sets(TEMPLATE, "{% if %}"), "template", "wrong", True, "TemplateSyntaxError"),
    "another's words": (sets(TEMPLATE, THEIRS), "template", "warning", True, "without --jinja"),
    "no tokens": (sets(f"{T}tokens", None), "vocabulary", "wrong", False, "0 tokens"),
    "tokens of numbers": (sets(f"{T}tokens", [1.0] * SPEC.vocab), "vocabulary", "wrong", False, "tokenizer 'llama'"),
    "no scores": (sets(f"{T}scores", None), "vocabulary", "wrong", False, "no scores"),
    "scores alike": (sets(f"{T}scores", [0.0] * SPEC.vocab), "vocabulary", "wrong", False, "all scores are alike"),
    "no tokenizer": (sets(f"{T}model", None), "vocabulary", "wrong", False, "tokenizer None"),
    "few scores": (sets(f"{T}scores", [0.0, 1.0]), "vocabulary", "wrong", False, "scores too short"),
    "no types": (sets(f"{T}token_type", None), "vocabulary", "wrong", False, "no token_type"),
    "another tokenizer": (sets(f"{T}model", "gpt2"), "vocabulary", "wrong", False, "'gpt2'"),
    "no bos": (sets(f"{T}add_bos_token", False), "special tokens", "wrong", True, "add_bos_token false"),
    "an eos": (sets(f"{T}add_eos_token", True), "special tokens", "wrong", True, "add_eos_token true"),
    "no space": (sets(f"{T}add_space_prefix", False), "special tokens", "wrong", True, "add_space_prefix false"),
    "eos outside": (sets(f"{T}eos_token_id", 96), "special tokens", "wrong", False, "eos is 96"),
    "eos as text": (sets(f"{T}token_type", [2, 3, 1] + [1] * 93), "special tokens", "warning", False, "eos marked"),
    "few layers": (sets("llama.block_count", 3), "counts", "wrong", False, "3 layers set, 2 stored"),
    "another width": (sets("llama.embedding_length", 32), "counts", "wrong", False, "width 32 set, 64 stored"),
}


@pytest.mark.parametrize(("change", "check", "verdict", "repairable", "said"), MMPROJ.values(), ids=MMPROJ.keys())
def test_a_fault_of_the_mmproj(
    tmp_path: Path, change: Change, check: str, verdict: str, repairable: bool, said: str
) -> None:
    diagnosed(write(tmp_path, mmproj=change), f"mmproj {check}", verdict, repairable, said, tmp_path / "out")


@pytest.mark.parametrize(("change", "check", "verdict", "repairable", "said"), DECODER.values(), ids=DECODER.keys())
def test_a_fault_of_the_decoder(
    tmp_path: Path, change: Change, check: str, verdict: str, repairable: bool, said: str
) -> None:
    diagnosed(write(tmp_path, decoder=change), f"decoder {check}", verdict, repairable, said, tmp_path / "out")


def diagnosed(paths: tuple[Path, Path], row: str, verdict: str, repairable: bool, said: str, out: Path) -> None:
    found = doctor.diagnose(paths)
    (own,) = (r for r in found.rows if f"{r.about} {r.check}" == row)
    assert (own.status, own.repairable) == (verdict, repairable)
    assert said in own.found + own.cost and own.cost
    assert found.ok == (verdict != "wrong")
    before = [sha256(path) for path in paths]
    if verdict == "wrong" and not repairable:
        with pytest.raises(BundleError, match="cannot be repaired"):
            doctor.repair(paths, out, False)
        assert not out.exists()
    else:
        left = doctor.repair(paths, out, False)
        assert left.written == tuple(str(out / path.name) for path in paths)
        assert status(left) == {k: v for k, v in status(found).items() if k != row or not repairable}
    assert [sha256(path) for path in paths] == before


def test_all_faults_that_can_be_repaired_at_once(tmp_path: Path) -> None:
    broken = [change for change, *_, repairable, _ in MMPROJ.values() if repairable]
    spoilt = [change for change, *_, repairable, _ in DECODER.values() if repairable]
    paths = write(tmp_path, all_of(*spoilt), all_of(*broken, widens))
    found = doctor.diagnose(paths)
    assert status(found) == ALWAYS | {
        "decoder special tokens": "wrong",
        "decoder template": "warning",
        "mmproj projector": "wrong",
        "mmproj layers": "wrong",
        "mmproj feed-forward": "warning",
        "mmproj activation": "wrong",
        "mmproj colours": "wrong",
        "mmproj storage": "warning",
    }
    assert status(doctor.repair(paths, tmp_path / "out", False)) == ALWAYS | {"mmproj storage": "warning"}
    sound = write(tmp_path / "sound", mmproj=widens)
    for path, right in zip(paths, sound, strict=True):
        repaired, expected = gguf.read(tmp_path / "out" / path.name, LISTS), gguf.read(right, LISTS)
        added = {"clip.use_silu": False, f"{T}add_eos_token": False, f"{T}add_space_prefix": True}
        assert repaired.settings == expected.settings | {k: v for k, v in added.items() if k in repaired.settings}
        assert contents(repaired) == contents(expected)


def contents(file: gguf.GGUF) -> dict[str, tuple[Any, ...]]:
    data = file.path.read_bytes()
    return {name: (t.shape, t.kind, data[t.offset : t.offset + t.bytes]) for name, t in file.tensors.items()}


def test_what_is_not_wrong_stays_as_it_is(tmp_path: Path) -> None:
    """Also where the file is aligned to something else, and names what nobody knows."""
    extra = {"general.alignment": 64, "some.words": ["a", "b"], "some.number": 0.5}
    paths = write(tmp_path, sets(TEMPLATE, None), lambda head, tensors: head.update(extra))
    doctor.repair(paths, tmp_path / "out", False)
    assert (tmp_path / "out" / paths[1].name).read_bytes() == paths[1].read_bytes()
    for path in paths:
        before, after = (gguf.read(p, (*LISTS, "some.words")) for p in (path, tmp_path / "out" / path.name))
        assert contents(after) == contents(before)
        assert after.settings == {**before.settings, **({TEMPLATE: OURS} if path == paths[0] else {})}
    assert after.settings["some.words"] == GGUFArray(8, 2, ("a", "b"))


def test_a_pair_of_two_models(tmp_path: Path) -> None:
    def other(head: dict[str, Any], tensors: Tensors) -> None:
        tensors["mm.model.peg.0.bias"] = (32,), 0, bytes(128)

    paths = write(tmp_path, mmproj=other)
    assert doctor.diagnose(paths[1:]).ok and doctor.diagnose(paths[:1]).ok
    found = doctor.diagnose(paths)
    assert status(found) == ALWAYS | {"pair width": "wrong"}
    with pytest.raises(BundleError, match="cannot be repaired: pair: width: rows 32 wide for a decoder 64 wide"):
        doctor.repair(paths, tmp_path / "out", False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("width", "stored", "layers", "ok"),
    [
        (1024, 23, None, False),
        (1024, 24, None, True),
        (1024, 23, 23, True),
        (1024, 24, 24, False),
        (64, 9, None, False),
    ],
)
def test_how_many_layers_a_tower_should_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int, stored: int, layers: int | None, ok: bool
) -> None:
    """The published ViT-L has 24, of which 23 run; converters leave the last one out, or do not."""
    head, tensors = pair_mmproj(layers=stored)
    head["clip.vision.embedding_length"] = width
    sets(FEATURE_LAYER, None if layers is None else [layers])(head, tensors)
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes(head, tensors))
    (row,) = (row for row in doctor.diagnose([path]).rows if row.check == "layers")
    assert (row.status == "ok") == ok
    path.write_bytes(gguf_bytes(head | {"edge_vlm.version": "1", FEATURE_LAYER: [stored]}, tensors))
    assert [own.status for own in doctor.diagnose([path]).rows if own.check == "layers"] == ["ok"]
    assert row.found.endswith("23 run") or f"of {stored if width == 64 else 23} run" in row.found


@pytest.mark.parametrize(("kind", "verdict"), [("mlp", "warning"), ("ldpv2", "wrong")])
def test_what_is_not_known_of_others_is_a_warning(tmp_path: Path, kind: str, verdict: str) -> None:
    def gelu(head: dict[str, Any], tensors: Tensors) -> None:
        head |= {"clip.use_gelu": True, "clip.projector_type": kind}
        for name in [name for name in tensors if kind == "mlp" and name.startswith("mm.model.")]:
            if "mlp" in name:
                tensors[name.replace("model.mlp.", "")] = tensors[name]
            del tensors[name]

    decoder, mmproj = write(tmp_path, sets(TEMPLATE, "{{ 1 }}"), gelu)
    assert status(doctor.diagnose([mmproj])) == ALWAYS | {"mmproj activation": verdict}
    assert status(doctor.diagnose([decoder])) == {"decoder template": "warning"}
    # Our own exports say what they are.
    mine = sets("edge_vlm.version", "1")
    assert status(doctor.diagnose(write(tmp_path, None, all_of(gelu, mine))[1:])) == ALWAYS


# the template


def test_a_template_is_judged_by_what_it_renders() -> None:
    assert rendering.difference(OURS, SPECIFIED, "<s>", "</s>") is None
    assert rendering.difference(THEIRS, SPECIFIED, "<s>", "</s>") is None
    late = THEIRS.replace("eos_token", "' '")
    assert "A pilot. USE" in str(rendering.difference(late, SPECIFIED, "<s>", "</s>"))
    assert rendering.difference(OURS + "!", SPECIFIED, "<s>", "</s>") == "says '? ASSISTANT:!' for '? ASSISTANT:'"


@pytest.mark.parametrize(
    ("hostile", "said"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "it "),
        ("{{ 'a' * 10**11 }}", "MemoryError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ cycler.__init__.__globals__.os.system('true') }}", "SecurityError"),
        ("{{ nothing.at_all }}", "UndefinedError"),
        ("{% include 'a' %}", "TypeError"),
    ],
)
def test_a_hostile_template_costs_little(monkeypatch: pytest.MonkeyPatch, hostile: str, said: str) -> None:
    monkeypatch.setattr(rendering, "_SECONDS", 4)  # an emulated processor takes more than one to start
    assert f"cannot be rendered: {said}" in str(rendering.difference(hostile, SPECIFIED, "<s>", "</s>"))


def test_a_template_of_a_book_is_not_rendered(tmp_path: Path) -> None:
    assert rendering.difference(" " * 70000, SPECIFIED, "<s>", "</s>") == "70000 characters long"
    row = template_row(doctor.diagnose(write(tmp_path, sets(TEMPLATE, "x" * 70000))))
    assert (row.status, row.repairable, row.found) == ("warning", False, "70000 characters long, and not rendered")


def template_row(found: Findings) -> Finding:
    (row,) = (row for row in found.rows if row.check == "template")
    return row


# What another family's author would write is no fault; of a MobileVLM it is unexpected.
OWN = {
    "[INST] <__media__>What": LLAMA_2,
    "<|start_header_id|>user": LLAMA_3,
    "<|im_start|>user": CHATML,
    "User:<__media__>What is this?": IDEFICS,
    "USER: <__media__>\\nWhat is this?": THEIRS.replace(SYSTEM + " ", ""),
}


@pytest.mark.parametrize(("said", "text"), OWN.items(), ids=["llama 2", "llama 3", "chatml", "typed", "no system"])
def test_a_template_of_the_models_own_is_not_wrong(tmp_path: Path, said: str, text: str) -> None:
    paths = write(tmp_path, sets(TEMPLATE, text))
    found = doctor.diagnose(paths)
    row = template_row(found)
    assert found.ok and row.status == "warning" and "MobileVLM V2 as published learned Vicuna v1" in row.cost
    assert not row.repairable and said in row.found and "its own" in row.found
    doctor.repair(paths, tmp_path / "out", False)
    assert gguf.read(tmp_path / "out" / paths[0].name).settings[TEMPLATE] == text
    row = template_row(doctor.diagnose(paths[:1]))
    assert (row.status, row.cost) == ("ok", "") and said in row.found


def test_without_jinja2_the_texts_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "find_spec", lambda name: None)
    assert status(doctor.diagnose(write(tmp_path)[:1])) == {}
    found = doctor.diagnose(write(tmp_path, sets(TEMPLATE, THEIRS))[:1])
    assert status(found) == {"decoder template": "warning"}
    assert any("pip install jinja2" in row.found for row in found.rows)


# files and folders


def test_foreign_and_damaged_files(tmp_path: Path) -> None:
    decoder, mmproj = write(tmp_path)
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(mmproj.read_bytes()[:-1000])
    with pytest.raises(BundleError, match=r"cut\.gguf is no sound GGUF file"):
        doctor.diagnose([decoder, cut])
    with pytest.raises(BundleError, match="holds 'whisper'"):
        doctor.diagnose(write(tmp_path, sets("general.architecture", "whisper")))
    strange = all_of(drops("mm.model.peg.0.weight"), sets("clip.projector_type", "resampler"))
    with pytest.raises(BundleError, match="no MobileVLM or LLaVA mmproj: 'resampler'"):
        doctor.diagnose(write(tmp_path, mmproj=strange))
    with pytest.raises(BundleError, match="one of several files"):
        doctor.diagnose(write(tmp_path, sets("split.count", 2)))
    with pytest.raises(UsageError, match="both a decoder"):
        doctor.diagnose([decoder, decoder])


def test_where_copies_go(tmp_path: Path) -> None:
    decoder, mmproj = write(tmp_path / "in")
    named = mmproj.rename(mmproj.with_name(decoder.name.replace("Tiny", "Other")))
    with pytest.raises(UsageError, match="exists and is not empty"):
        doctor.repair([decoder], tmp_path / "in", False)
    (tmp_path / "empty").mkdir()
    written = doctor.repair([named, decoder], tmp_path / "empty", False).written
    assert [Path(path).name for path in written] == ["Tiny-Q4_0.gguf", "mmproj-Other-Q4_0.gguf"]
    assert {path.name for path in tmp_path.iterdir()} == {"in", "empty"}


def test_a_copy_that_cannot_be_finished_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write(tmp_path / "in", sets(TEMPLATE, None))

    def killed(*given: Any) -> None:
        shutil.copyfile(*given[:2])
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "rewrite", lambda file, target, change: killed(file.path, target))
    with pytest.raises(KeyboardInterrupt):
        doctor.repair(paths, tmp_path / "out", False)
    assert {path.name for path in tmp_path.iterdir()} == {"in"}


def test_the_position_workaround(tmp_path: Path) -> None:
    paths = write(tmp_path)
    left = doctor.repair(paths, tmp_path / "out", True)
    assert left.ok and any("positions rolled" in row.found for row in left.rows)
    before, after = gguf.read(paths[1]), gguf.read(tmp_path / "out" / paths[1].name)
    assert after.settings[WORKAROUND] is True and WORKAROUND not in before.settings
    one, other = contents(before), contents(after)
    row = 64 * 2
    positions = one["v.position_embd.weight"][2]
    assert other.pop("v.position_embd.weight")[2] == positions[row:] + positions[:row] != positions
    assert other == {name: entry for name, entry in one.items() if name != "v.position_embd.weight"}
    # A second time it is left as it is.
    doctor.repair([tmp_path / "out" / paths[1].name], tmp_path / "again", True)
    assert (tmp_path / "again" / paths[1].name).read_bytes() == after.path.read_bytes()
    with pytest.raises(UsageError, match="none is given"):
        doctor.repair(paths[:1], tmp_path / "more", True)


WHOLE = gguf_bytes(*pair_mmproj())
HEAD = WHOLE.index(b"v.class_embd")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_head_is_judged_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(WHOLE)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(24, HEAD + 2000))
        new = data.draw(st.binary(min_size=1, max_size=8) | st.sampled_from((b"\xff" * 8, bytes(8))))
        content[at : at + len(new)] = new
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    try:
        found = doctor.diagnose([path])
    except BundleError:
        return
    assert {row.about for row in found.rows} == {"mmproj"}
    json.dumps(found.to_json())


PAIR = pair_decoder(), pair_mmproj()
PAIR[0][0][TEMPLATE] = OURS
OTHERS = sorted({key for head, _ in PAIR for key in head} - {"general.architecture", TEMPLATE})
VALUES = (True, False, 0, 1, 2**32 - 1, 0.0, float("nan"), "", "x", [0], [2**31 - 1], [0.5], ["a"])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(OTHERS), st.sampled_from(VALUES), min_size=1, max_size=4))
def test_any_setting_is_judged(tmp_path: Path, changed: dict[str, Any]) -> None:
    paths = tmp_path / "a.gguf", tmp_path / "mmproj.gguf"
    for path, (head, tensors) in zip(paths, PAIR, strict=True):
        own = {key: value for key, value in changed.items() if key in head}
        path.write_bytes(gguf_bytes(head | own, tensors))
    json.dumps(doctor.diagnose(paths).to_json())


# the command


def doctored(*arguments: object) -> Said:
    return call("doctor", *arguments)


def test_the_command(tmp_path: Path) -> None:
    paths = write(tmp_path, sets(TEMPLATE, None), all_of(swaps, sets(FEATURE_LAYER, None), widens))
    said = doctored(*paths)
    assert said.code == 1
    assert "wrong: template, layers" in said.err and "--repair OUT" in said.err
    assert "WRONG" in said.out and "MobileVLM V2" in said.out
    as_json = doctored(*reversed(paths), "--json")
    assert as_json.code == 1 and as_json.json["ok"] is False
    row = next(row for row in as_json.json["rows"] if row["check"] == "layers")
    assert row["repairable"] is True and row["status"] == "wrong"
    repaired = doctored(*paths, "--repair", tmp_path / "out")
    assert repaired.code == 0
    assert f"written: {tmp_path / 'out' / paths[0].name}, " in repaired.err
    assert doctored(tmp_path / "out" / paths[0].name, tmp_path / "out" / paths[1].name).code == 0


def test_it_reads_well_at_80_columns(tmp_path: Path) -> None:
    found = doctor.diagnose(write(tmp_path, sets(TEMPLATE, None), all_of(swaps, sets(FEATURE_LAYER, None), widens)))
    console = Console(width=80, markup=False, color_system=None)
    with console.capture() as capture:
        console.print(render.findings(found))
    assert all(len(line) <= 80 for line in capture.get().splitlines())
    words = " ".join(capture.get().split())
    for row in found.rows:
        assert row.found in words


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--repair", "out"], "there is no file to repair"),
        (["--mtmd-position-workaround"], "there is no file to repair"),
        (["{mmproj}", "--mtmd-position-workaround"], "written into a copy"),
        (["{decoder}", "--repair", "out", "--mtmd-position-workaround"], "none is given"),
        (["{mmproj}", "{mmproj}"], "both a mmproj"),
        (["{mmproj}", "{decoder}", "{decoder}"], "both a decoder"),
    ],
)
def test_calls_that_are_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str) -> None:
    monkeypatch.chdir(tmp_path)
    decoder, mmproj = write(tmp_path / "in")
    done = doctored(*(argument.format(decoder=decoder, mmproj=mmproj) for argument in arguments))
    assert done.code == 2 and said in done.err
    assert not (tmp_path / "out").exists()


def test_no_such_file(tmp_path: Path) -> None:
    said = doctored(tmp_path / "none.gguf")
    assert said.code == 1 and "cannot read none.gguf" in said.err
