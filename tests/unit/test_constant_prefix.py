"""The positions before the first image, kept between sessions: used where they are this bundle's, and nothing else."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import BYTES, DECODER, FIXED, GROWING, NumpyGraph, write_model_bundle
from PIL import Image

import edge
from edge.bundle.manifest import Bundle
from edge.decoders.kv_graph import KVGraphDecoder
from edge.devices import whole_files
from edge.engines import open_part
from edge.errors import UsageError
from edge.inference import constant_prefix, loader, saved
from edge.inference.constant_prefix import FOLDER, ConstantPrefix
from edge.inference.kept import WORTH
from edge.inference.session import Session
from edge.inputs.prompt import Turn
from edge.types import Graph, OpenOptions, PartFiles

CONTEXT = 400
SYSTEM = "Be brief, be exact, be kind."  # a byte a position
LENGTH = 1 + len(f"{SYSTEM} USER: ")
PHOTO = Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 30, 3)).astype(np.uint8))


@pytest.fixture(params=[FIXED, GROWING], ids=["fixed", "growing"], autouse=True)
def computed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """How many positions each run of a decoder computed."""
    lengths: list[int] = []

    def opened(part: PartFiles, engine: str, options: OpenOptions) -> Graph:
        if "decoder" not in part.covers:
            found = open_part(part, engine, options)
            assert not hasattr(found, "extend")
            return found  # type: ignore[return-value]
        graph = NumpyGraph(replace(DECODER, context=CONTEXT), request.param)
        graph.lengths = lengths
        return graph

    monkeypatch.setattr(loader, "open_part", opened)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return lengths


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_model_bundle(tmp_path / "bundle", context=CONTEXT)


@pytest.fixture
def expected(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> tuple[int, ...]:
    """What is answered without anything kept; nor does it keep anything."""
    with monkeypatch.context() as patch:
        patch.setattr(ConstantPrefix, "keep", lambda *_: None)
        ids, cached = asked(bundle)
    assert cached == 0
    return ids


def opened(bundle: Bundle) -> Session:
    return edge.load(bundle.path, engine="null")


def asked(bundle: Bundle, question: str = "Why?", system: str | None = SYSTEM) -> tuple[tuple[int, ...], int]:
    """What the first answer of a session says, and how much of its prompt was not computed."""
    with opened(bundle) as session:
        session.ask(PHOTO, question, system=system, max_tokens=8)
        return session.last.token_ids, session.last.cached_tokens


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "edge-vlm" / FOLDER).glob("*"))


def test_the_next_session_does_not_compute_it(
    bundle: Bundle, expected: tuple[int, ...], computed: list[int], tmp_path: Path
) -> None:
    assert asked(bundle, "What is this?")[1] == 0
    (kept,) = files(tmp_path)
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600 or os.name == "nt"
    before = len(computed)
    with opened(bundle) as session:
        session.ask(PHOTO, "Why?", system=SYSTEM, max_tokens=8)
        assert session.last.token_ids == expected
        assert session.last.cached_tokens == LENGTH
        assert computed[before] == session.last.prompt_tokens - LENGTH
    content = kept.read_bytes()
    assert asked(bundle)[1] == LENGTH
    assert kept.read_bytes() == content and files(tmp_path) == [kept]


def test_it_has_nothing_of_the_image_the_question_or_the_answer(bundle: Bundle, tmp_path: Path) -> None:
    asked(bundle, "A secret?")
    found = saved.read(*files(tmp_path), bundle)
    assert (found.turns, found.images, found.system) == ((), (), None)
    assert found.prefix is not None
    assert bytes(id - BYTES for id in found.prefix.held[1:]) == f"{SYSTEM} USER: ".encode()
    assert found.prefix.snapshot.position == LENGTH
    assert {array.shape[2] for array in found.prefix.snapshot.arrays.values()} == {LENGTH}


def test_each_system_text_has_its_own(bundle: Bundle, tmp_path: Path) -> None:
    other = "Say nothing that is not so."
    with opened(bundle) as session:
        for system in (SYSTEM, other, SYSTEM):
            session.ask(PHOTO, "Why?", system=system, max_tokens=2)
    assert len(files(tmp_path)) == 1  # of the last one
    assert asked(bundle, system=other)[1] == 0
    assert asked(bundle, system=other)[1] > WORTH
    assert asked(bundle)[1] == LENGTH
    assert len(files(tmp_path)) == 2


def test_a_session_takes_it_up_again_when_the_system_text_changes(bundle: Bundle) -> None:
    asked(bundle)
    with opened(bundle) as session:
        session.ask(PHOTO, "Why?", system="Be long, be vague, be unkind.", max_tokens=2)
        session.ask(PHOTO, "Why?", system=SYSTEM, max_tokens=2)
        assert session.last.cached_tokens == LENGTH


def test_too_few_positions_are_not_kept(bundle: Bundle, tmp_path: Path) -> None:
    assert 1 + len("A chat. USER: ") <= WORTH
    asked(bundle, system=None)
    assert files(tmp_path) == []


def test_more_than_the_context_holds_is_not_computed(bundle: Bundle, computed: list[int], tmp_path: Path) -> None:
    with edge.load(bundle.path, engine="null", context=LENGTH) as session:
        session.warm(SYSTEM)
    assert computed == [] and files(tmp_path) == []


def test_clients_system_texts_are_not_written_down(bundle: Bundle, tmp_path: Path) -> None:
    with opened(bundle) as session:
        for _ in session.converse([Turn.about("Why?")], system=SYSTEM, max_tokens=2):
            pass
    assert files(tmp_path) == []


def test_a_chat_keeps_it_too(bundle: Bundle) -> None:
    with opened(bundle) as session:
        chat = session.chat(PHOTO, system=SYSTEM)
        chat.ask("Why?", max_tokens=2)
        chat.ask("Why not?", max_tokens=2)
    assert asked(bundle)[1] == LENGTH


def test_warm(bundle: Bundle, expected: tuple[int, ...], computed: list[int]) -> None:
    with opened(bundle) as session:
        session.warm(SYSTEM)
        assert computed[-1] == LENGTH
        session.ask(PHOTO, "Why?", system=SYSTEM, max_tokens=8)
        assert (session.last.token_ids, session.last.cached_tokens) == (expected, LENGTH)
        before = len(computed)
        session.warm()  # its own is too short
        with opened(bundle) as other:
            other.warm(SYSTEM)
        assert len(computed) == before
    assert asked(bundle) == (expected, LENGTH)


def test_what_is_forgotten_is_computed_whole(bundle: Bundle) -> None:
    asked(bundle)
    with opened(bundle) as session:
        session.forget()
        session.ask(PHOTO, "Why?", system=SYSTEM, max_tokens=2)
        assert session.last.cached_tokens == 0


def test_nothing_is_kept_after_an_error(bundle: Bundle, tmp_path: Path) -> None:
    session = opened(bundle)
    session.ask(PHOTO, "Why?", system=SYSTEM, max_tokens=2)
    with pytest.raises(UsageError), session:
        session.ask(PHOTO, "Why?", system=SYSTEM, max_tokens=0)
    assert files(tmp_path) == []


def test_an_answer_that_was_not_read_to_its_end_keeps_nothing(bundle: Bundle, tmp_path: Path) -> None:
    with opened(bundle) as session:
        next(iter(session.stream(PHOTO, "Why?", system=SYSTEM)))
    assert files(tmp_path) == []


def test_an_engine_is_told_how_long_the_first_prompt_will_be(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def told() -> int:
        with opened(bundle) as session:
            return constant_prefix.begun(bundle, session.plan)

    assert told() == 0
    asked(bundle)
    assert told() == LENGTH + 4 + WORTH
    asked(bundle, system=SYSTEM * 2)
    for number, path in enumerate(sorted(files(tmp_path), key=lambda path: path.stat().st_mtime_ns)):
        os.utime(path, (number, number))
    assert told() == LENGTH + len(SYSTEM) + 4 + WORTH
    asked(bundle)  # used last
    assert told() == LENGTH + 4 + WORTH
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "bundle" / "manifest.json"))
    assert told() == 0


# a file that is not what it should be


def cut(kept: Path) -> None:
    kept.write_bytes(kept.read_bytes()[:-9])


def empty(kept: Path) -> None:
    kept.write_bytes(b"")


def bent(kept: Path) -> None:
    content = bytearray(kept.read_bytes())
    content[len(content) // 2] ^= 4
    kept.write_bytes(content)


def none_of_ours(kept: Path) -> None:
    kept.write_bytes(np.random.default_rng(0).bytes(1000))


def a_folder(kept: Path) -> None:
    kept.unlink()
    kept.mkdir()


@pytest.mark.parametrize("spoil", [cut, empty, bent, none_of_ours, a_folder], ids=lambda spoil: spoil.__name__)
def test_what_is_damaged_is_computed_anew(
    bundle: Bundle,
    expected: tuple[int, ...],
    tmp_path: Path,
    spoil: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked(bundle)
    (kept,) = files(tmp_path)
    spoil(kept)
    assert asked(bundle) == (expected, 0)
    assert "the prefix of prompts is computed anew" in caplog.text
    assert asked(bundle) == (expected, 0 if spoil is a_folder else LENGTH)


def test_another_bundles_file(bundle: Bundle, expected: tuple[int, ...], tmp_path: Path) -> None:
    other = write_model_bundle(tmp_path / "other", context=CONTEXT - 1)
    asked(bundle)
    (kept,) = files(tmp_path)
    asked(other)
    (others,) = {*files(tmp_path)} - {kept}
    shutil.copy(others, kept)
    assert asked(bundle) == (expected, 0)
    assert asked(bundle) == (expected, LENGTH)


def test_a_file_of_other_positions(bundle: Bundle, expected: tuple[int, ...], tmp_path: Path) -> None:
    asked(bundle)
    (kept,) = files(tmp_path)
    asked(bundle, system=SYSTEM.replace("kind", "cold"))
    (others,) = {*files(tmp_path)} - {kept}
    shutil.copy(others, kept)
    assert asked(bundle) == (expected, 0)
    assert asked(bundle) == (expected, LENGTH)


def test_another_layout(bundle: Bundle, expected: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    asked(bundle)
    monkeypatch.setattr(KVGraphDecoder, "layout", "another")
    assert asked(bundle) == (expected, 0)


def test_what_it_depends_on_is_in_its_name(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(bundle) as session:
        plan, tokenizer = session.plan, session.tokenizer

    def place(**changes: object) -> Path:
        return ConstantPrefix(bundle, replace(plan, **changes), tokenizer, SYSTEM)._place()  # type: ignore[arg-type]

    here = constant_prefix.host.inspect()
    found = {place(), place(cache="q8_0"), place(isa=("avx2",)), place(gpu_layers=3)}
    (choice,) = (choice for choice in plan.choices if choice.role == "decoder")
    found.add(place(choices=(replace(choice, provider="cuda"),)))
    found.add(place(choices=(replace(choice, engine="onnxruntime"),)))
    with monkeypatch.context() as patch:
        patch.setattr(constant_prefix.host, "inspect", lambda: replace(here, name="another processor"))
        found.add(place())
    with monkeypatch.context() as patch:
        engine = replace(constant_prefix.engine_named("null"), version="0.0.0")
        patch.setattr(constant_prefix, "engine_named", lambda _: engine)
        found.add(place())
    assert len(found) == 8
    assert place(threads=plan.threads + 1) in found


# a cache that cannot be written


def test_without_a_folder_of_its_own(
    bundle: Bundle, expected: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert asked(bundle) == asked(bundle) == (expected, 0)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(constant_prefix.file_facts, "cache_dir", no_home)
    assert asked(bundle) == (expected, 0)


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_a_full_disk(
    bundle: Bundle, expected: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def full(final: Path, **options: object) -> Iterator[Path]:
        with whole(final, **options) as beside:  # type: ignore[arg-type]
            yield beside
            raise OSError(errno.ENOSPC, "No space left on device")

    whole = whole_files.aside
    monkeypatch.setattr(whole_files, "aside", full)
    assert asked(bundle) == asked(bundle) == (expected, 0)
    assert files(tmp_path) == []


def test_what_a_killed_process_left_is_removed(bundle: Bundle, tmp_path: Path) -> None:
    asked(bundle)
    (kept,) = files(tmp_path)
    old, fresh = kept.with_name(".a.safetensors.1.part"), kept.with_name(".a.safetensors.2.part")
    for left in (old, fresh):
        left.write_bytes(b"torn")
    os.utime(old, (0, 0))
    asked(bundle, system=SYSTEM * 2)
    assert not old.exists() and fresh.exists()


def test_the_ones_used_least_lately_make_room(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [SYSTEM.replace("kind", word) for word in ("cold", "warm", "tidy")]
    made: list[Path] = []
    for number, system in enumerate(texts[:2]):
        asked(bundle, system=system)
        (new,) = {*files(tmp_path)} - {*made}
        made.append(new)
        os.utime(new, (number + 1, number + 1))
    asked(bundle, system=texts[0])  # used: the second is the oldest now
    monkeypatch.setattr(constant_prefix, "MOST", 2 * made[0].stat().st_size)
    asked(bundle, system=texts[2])
    assert len(files(tmp_path)) == 2
    assert made[0].exists() and not made[1].exists()
    monkeypatch.setattr(constant_prefix, "MOST", 100)  # one that is larger is not written at all
    asked(bundle, system=SYSTEM * 2)
    assert len(files(tmp_path)) == 2
