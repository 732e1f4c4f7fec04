from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import DECODER, FIXED, GROWING, NumpyGraph, write_model_bundle
from PIL import Image

import edge
from edge.bundle import checksums
from edge.bundle.manifest import Bundle, File, write_manifest
from edge.decoders.kv_graph import kv_decoder
from edge.errors import BundleError, ContextError, EdgeError, EngineError, ImageError, UsageError
from edge.inference import loader
from edge.inference import session as sessions
from edge.inference.sampling import Sampling
from edge.inference.session import Session
from edge.inference.vision import REMEMBERED, ImageTimes, VisionEncoder
from edge.inputs.prompt import Turn
from edge.inputs.views import Views
from edge.types import Array, Graph, OpenOptions, PartFiles

CONTEXT = 400


def photo(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30, 3)).astype(np.uint8))


class Eye:
    """A vision part whose rows depend on the whole picture; it counts."""

    def __init__(self, part: PartFiles) -> None:
        self.inputs, self.outputs = part.inputs, part.outputs
        self.shape = tuple(int(d) for d in part.outputs[0].shape)
        self.looked = 0

    def run(self, feeds: dict[str, Array], into: None = None) -> dict[str, Array]:
        (pixels,) = feeds.values()
        self.looked += 1
        seed = int(np.abs(pixels).sum() * 1e3) % 2**32
        rows = np.random.default_rng(seed).normal(size=self.shape).astype(np.float32)
        return {self.outputs[0].name: rows}


class Engine:
    """Opens parts as what this file's fakes are; they stay at hand."""

    def __init__(self, length: tuple[int | str, int | str]) -> None:
        self.length = length
        self.eyes: list[Eye] = []
        self.options: list[OpenOptions] = []
        self.brain: NumpyGraph | None = None

    def __call__(self, part: PartFiles, engine: str, options: OpenOptions) -> Graph:
        self.options.append(options)
        if "decoder" in part.covers:
            self.brain = NumpyGraph(replace(DECODER, context=CONTEXT), self.length)
            return self.brain
        self.eyes.append(Eye(part))
        return self.eyes[-1]

    @property
    def computed(self) -> list[int]:
        assert self.brain is not None
        return self.brain.lengths


@pytest.fixture(params=[FIXED, GROWING], ids=["fixed", "growing"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Engine:
    made = Engine(request.param)
    monkeypatch.setattr(loader, "open_part", made)
    return made


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_model_bundle(tmp_path / "bundle", context=CONTEXT)


@pytest.fixture
def session(engine: Engine, bundle: Bundle) -> Session:
    return edge.load(bundle.path, engine="null")


def test_one_question(session: Session, engine: Engine) -> None:
    pieces = list(session.stream(photo(1), "What is this?", max_tokens=8))
    answer = session.last
    assert "".join(pieces) == answer.text != ""
    assert answer.generated_tokens == len(answer.token_ids) == 8
    assert answer.stop_reason == "length"
    assert answer.image_tokens == 4
    assert (
        answer.prompt_tokens == len("A chat. USER: ") + 1 + 4 + len("\nWhat is this? ASSISTANT:") == engine.computed[0]
    )
    times = answer.timings
    assert times.load_ms == session.load_ms > 0
    assert times.image_ms > 0
    assert times.vision_ms > 0
    assert times.ttft_ms >= times.image_ms + times.vision_ms + times.prefill_ms > 0
    assert times.decode_tok_s == pytest.approx(7e3 / times.decode_ms)


def test_ask_is_the_stream_in_one_piece(session: Session) -> None:
    assert session.ask(photo(1), "Why?", max_tokens=8) == "".join(session.stream(photo(1), "Why?", max_tokens=8))


def test_answers_depend_on_picture_and_question(session: Session) -> None:
    asked = [(photo(1), "Why?"), (photo(2), "Why?"), (photo(1), "How?"), (None, "Why?"), ([photo(1), photo(2)], "Why?")]
    said = set()
    for image, question in asked:
        session.ask(image, question, max_tokens=12)
        said.add(session.last.token_ids)
    assert len(said) == len(asked)


def test_an_answer_does_not_depend_on_what_was_asked_before(session: Session, engine: Engine, bundle: Bundle) -> None:
    asked: list[tuple[Any, str]] = [(photo(1), "Why?"), (photo(1), "Why not?"), (None, "Why?"), (photo(1), "Why?")]
    used = [session.ask(image, question, max_tokens=8) for image, question in asked]
    anew = [edge.load(bundle.path, engine="null").ask(image, question, max_tokens=8) for image, question in asked]
    assert used == anew


def test_the_same_picture_is_seen_and_read_once(session: Session, engine: Engine) -> None:
    session.ask(photo(1), "Why?", max_tokens=2)
    first = session.last
    session.ask(photo(1), "Whence?", max_tokens=2)
    assert engine.eyes[0].looked == 1
    again = session.last
    assert again.cached_tokens == 1 + len("A chat. USER: ") + 4 + len("\nWh")
    assert engine.computed == [first.prompt_tokens, 1, again.prompt_tokens - again.cached_tokens, 1]
    session.ask(photo(2), "Why?", max_tokens=2)
    assert engine.eyes[0].looked == 2
    assert session.last.cached_tokens == 1 + len("A chat. USER: ")


def test_what_is_forgotten_is_computed_again(session: Session, engine: Engine) -> None:
    first = session.ask(photo(1), "Who?", max_tokens=4)
    session.forget()
    assert session.ask(photo(1), "Who?", max_tokens=4) == first
    assert session.last.cached_tokens == 0
    assert engine.eyes[0].looked == 2


def test_several_pictures_and_none(session: Session) -> None:
    session.ask([photo(1), photo(2)], "Which?", max_tokens=1)
    assert session.last.image_tokens == 8
    session.ask((photo(1),), "Which?", max_tokens=1)
    assert session.last.image_tokens == 4
    session.ask(None, "Which?", max_tokens=1)
    assert session.last.image_tokens == 0
    assert session.last.timings.image_ms == session.last.timings.vision_ms == 0
    assert session.last.prompt_tokens == 1 + len("A chat. USER: Which? ASSISTANT:")


def test_a_system_sentence(session: Session) -> None:
    session.ask(None, "Who?", system="", max_tokens=1)
    assert session.last.prompt_tokens == 1 + len("USER: Who? ASSISTANT:")
    session.ask(None, "Who?", system="Be brief.", max_tokens=1)
    assert session.last.prompt_tokens == 1 + len("Be brief. USER: Who? ASSISTANT:")


def test_sampling_is_seeded(session: Session) -> None:
    def say(seed: int) -> tuple[int, ...]:
        session.ask(None, "Who?", max_tokens=12, sampling=Sampling(temperature=2.0, seed=seed))
        return session.last.token_ids

    assert say(1) == say(1)
    assert say(1) != say(2)


# a conversation


def test_a_second_turn_computes_only_what_is_new(session: Session, engine: Engine) -> None:
    chat = session.chat(photo(1))
    chat.ask("What is this?", max_tokens=5)
    first, before = session.last, len(engine.computed)
    chat.ask("And that?", max_tokens=5)
    answer = session.last
    # The last token of the first answer was never fed; then comes the end of the turn, and the new question.
    new = 1 + 1 + len("USER: And that? ASSISTANT:")
    assert engine.computed[before] == new
    assert answer.cached_tokens == first.prompt_tokens + 4
    assert answer.prompt_tokens == answer.cached_tokens + new
    assert answer.image_tokens == 4
    assert engine.eyes[0].looked == 1
    assert [(t.content[-1], len(t.content) - 1, t.answer) for t in chat.turns] == [
        ("What is this?", 1, first.text),
        ("And that?", 0, answer.text),
    ]


def test_a_conversation_is_what_it_would_be_without_a_cache(session: Session, bundle: Bundle) -> None:
    chat = session.chat(photo(1))
    said = [chat.ask(question, max_tokens=6) for question in ("What?", "Why?", "How?")]
    anew = edge.load(bundle.path, engine="null").chat(photo(1))
    found = []
    for question in ("What?", "Why?", "How?"):
        anew._session.decoder.rewind(0)  # forgets
        found.append(anew.ask(question, max_tokens=6))
        assert anew._session.last.cached_tokens == 0
    assert found == said


def test_an_answer_cut_at_a_stop_string_is_remembered_as_text(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = session.chat()
    chat.ask("What?", max_tokens=3)
    assert chat.turns[0].answer_ids == session.last.token_ids
    monkeypatch.setattr(session.tokenizer, "decode", lambda ids: "more than the answer")
    chat.ask("Why?", max_tokens=3)
    assert (chat.turns[1].answer_ids, chat.turns[1].answer) == (None, session.last.text)


def test_an_abandoned_turn_is_not_kept(session: Session, bundle: Bundle) -> None:
    chat = session.chat(photo(1))
    chat.ask("What?", max_tokens=4)
    stream = chat.stream("Never mind.", max_tokens=50)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert [t.content[-1] for t in chat.turns] == ["What?"]
    anew = edge.load(bundle.path, engine="null").chat(photo(1))
    anew.ask("What?", max_tokens=4)
    assert chat.ask("Why?", max_tokens=6) == anew.ask("Why?", max_tokens=6)


def test_a_chat_without_a_picture_and_with_a_system(session: Session) -> None:
    chat = session.chat(system="Be brief.")
    chat.ask("Who?", max_tokens=1)
    assert session.last.prompt_tokens == 1 + len("Be brief. USER: Who? ASSISTANT:")
    assert chat.turns[0] == Turn.about("Who?", (), session.last.text, session.last.token_ids)


def test_a_conversation_that_outgrows_the_context(session: Session) -> None:
    chat = session.chat(photo(1))
    chat.ask("What?", max_tokens=4)
    with pytest.raises(ContextError, match=r"positions, and the context holds 400"):
        chat.ask("x" * 400)
    assert len(chat.turns) == 1
    chat.ask("Short?", max_tokens=500)
    assert session.last.stop_reason == "context"
    assert session.last.prompt_tokens + session.last.generated_tokens == CONTEXT + 1


def test_snapshots_of_several_conversations_take_turns(session: Session, engine: Engine, bundle: Bundle) -> None:
    first, second = session.chat(photo(0)), session.chat(photo(1))
    kept, said = [], []
    for chat in (first, second):
        chat.ask("What?", max_tokens=5)
        kept.append(session.snapshot())
    for chat, prefix in zip((first, second), kept, strict=True):
        assert prefix is not None
        assert prefix.nbytes > 0
        session.restore(prefix)
        said.append(chat.ask("And then?", max_tokens=5))
        assert session.last.cached_tokens == len(prefix.held)
    for number, answer in enumerate(said):
        with edge.load(bundle.path, engine="null") as other:
            chat = other.chat(photo(number))
            chat.ask("What?", max_tokens=5)
            assert chat.ask("And then?", max_tokens=5) == answer


def test_an_answer_is_held_to_a_schema_only_with_its_extra(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    monkeypatch.delitem(sys.modules, "edge.inference.grammar", raising=False)
    for answer in (session.stream(photo(1), "What?", schema={}), session.chat().stream("What?", schema={})):
        with pytest.raises(EngineError, match="held to a schema by llguidance, which is not there") as caught:
            next(answer)
        assert caught.value.hint == "pip install 'edge-vlm[schema]'"


# pictures


def test_encode_image(session: Session, engine: Engine, tmp_path: Path) -> None:
    photo(1).save(tmp_path / "p.png")
    found = session.encode_image(tmp_path / "p.png")
    assert (found.rows.shape, found.rows.dtype) == ((4, 32), np.float32)
    same = [session.encode_image(s) for s in (photo(1), np.asarray(photo(1)), (tmp_path / "p.png").read_bytes())]
    assert {s.key for s in same} == {found.key}
    assert session.encode_image(photo(2)).key != found.key
    assert engine.eyes[0].looked == 2


def test_a_session_remembers_so_many_pictures(session: Session, engine: Engine) -> None:
    for seed in range(REMEMBERED):
        session.encode_image(photo(seed))
    session.encode_image(photo(0))  # is the freshest now
    session.encode_image(photo(REMEMBERED))  # the oldest, 1, has to go
    assert engine.eyes[0].looked == REMEMBERED + 1
    session.encode_image(photo(0))
    assert engine.eyes[0].looked == REMEMBERED + 1
    session.encode_image(photo(1))
    assert engine.eyes[0].looked == REMEMBERED + 2


def test_a_projector_of_its_own(engine: Engine, tmp_path: Path) -> None:
    bundle = write_model_bundle(tmp_path / "split", split=True)
    session = edge.load(bundle.path, engine="null")
    assert session.encode_image(photo(1)).rows.shape == (4, 32)
    assert [eye.looked for eye in engine.eyes] == [1, 1]


def test_a_vision_part_of_another_shape(session: Session, engine: Engine) -> None:
    engine.eyes[0].shape = (1, 5, 32)
    with pytest.raises(EngineError, match=r"the vision part gave \[1, 5, 32\], expected \[1, 4, 32\]") as caught:
        session.encode_image(photo(1))
    assert f"edge verify {session.bundle.path}" in str(caught.value.hint)


def test_a_picture_that_is_none(session: Session) -> None:
    with pytest.raises(ImageError):
        session.ask("nowhere.png", "What?")
    with pytest.raises(ImageError):
        session.chat(b"no picture")
    assert session.ask(None, "What?", max_tokens=2)


# loading


def test_what_the_engines_are_told(engine: Engine, bundle: Bundle) -> None:
    session = edge.load(bundle.path, engine="null", threads=3, context=100, debug=True)
    assert session.decoder.position == 0
    assert engine.options == [OpenOptions(3, 100, True, None)] * 2
    assert (session.plan.threads, session.plan.context) == (3, 100)


def test_a_graph_keeps_keys_and_values_as_it_was_made_to(engine: Engine, bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="cannot be stored as q8_0: the graph that null runs fixes") as caught:
        edge.load(bundle.path, engine="null", cache="q8_0").ask(None, "What?")
    assert engine.options[0].cache == "q8_0"
    assert "--cache" in str(caught.value.hint)


def test_a_bundle_that_sees_nothing(engine: Engine, bundle: Bundle) -> None:
    """It answers questions about no picture, and says of one what to do."""
    companions = (bundle.manifest.tokenizer, replace(bundle.manifest.golden, path="mmproj-x.gguf"))
    blind = replace(bundle.manifest, parts=bundle.manifest.parts[1:], companions=companions)
    (bundle.path / "mmproj-x.gguf").write_bytes((bundle.path / "golden.safetensors").read_bytes())
    write_manifest(bundle.path, blind)
    session = edge.load(bundle.path, engine="null")
    assert [choice.part.covers for choice in session.plan.choices] == [("decoder",)]
    assert session.ask(None, "What?", max_tokens=2)
    asked = (
        lambda: session.ask(photo(1), "What?"),
        lambda: session.chat(photo(1)),
        lambda: session.encode_image(photo(1)),
    )
    for ask in asked:
        with pytest.raises(EngineError, match="no vision part") as caught:
            ask()
        command = f"edge export {bundle.path / 'decoder.onnx'} --mmproj {bundle.path / 'mmproj-x.gguf'} -o OUT"
        assert command in str(caught.value.hint)
    assert session.ask(None, "What?", max_tokens=2)


def test_a_cache_that_does_not_exist(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match="no cache of 'q2'") as caught:
        edge.load(bundle.path, engine="null", cache="q2")  # type: ignore[arg-type]
    assert "f16, q8_0" in str(caught.value.hint)


def test_threads_are_the_devices(engine: Engine, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    here = replace(sessions.detect(), threads=7)
    monkeypatch.setattr(sessions, "detect", lambda: here)
    edge.load(bundle.path, engine="null")
    assert {o.threads for o in engine.options} == {7}


def test_the_null_engine_answers(bundle: Bundle) -> None:
    with edge.load(bundle.path, engine="null") as session:
        session.ask(photo(1), "What?", max_tokens=20)
        assert len(set(session.last.token_ids)) > 3
        first = session.last.token_ids
        session.ask(photo(1), "Why, then?", max_tokens=20)
        session.ask(photo(1), "What?", max_tokens=20)
        assert session.last.token_ids == first


def test_the_null_engine_answers_with_a_growing_cache(tmp_path: Path) -> None:
    bundle = write_model_bundle(tmp_path / "bundle", GROWING)
    assert edge.load(bundle.path, engine="null").ask(None, "What?", max_tokens=20)


def test_a_missing_engine_is_explained(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    none = tuple(replace(e, installed=e.name == "null") for e in sessions.installed_engines())
    monkeypatch.setattr(sessions, "installed_engines", lambda evaluators=False: none)
    with pytest.raises(EngineError, match="no engine opens the vision of null") as caught:
        edge.load(bundle.path)
    assert "pip install 'edge-vlm[onnxruntime]'" in str(caught.value.hint)


def test_too_little_memory(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    here = replace(sessions.detect(), memory_bytes=1000)
    monkeypatch.setattr(sessions, "detect", lambda: here)
    with pytest.raises(EngineError, match="too little memory"):
        edge.load(bundle.path, engine="null")


def flip(bundle: Bundle, name: str) -> None:
    data = bytearray((bundle.path / name).read_bytes())
    data[-1] ^= 1
    (bundle.path / name).write_bytes(data)


def test_a_flipped_byte_is_found_before_anything_is_answered(engine: Engine, bundle: Bundle) -> None:
    flip(bundle, "embed_tokens.npy")
    session = edge.load(bundle.path, engine="null")
    for call in (lambda: next(session.stream(None, "What?")), lambda: session.encode_image(photo(1)), session.chat):
        with pytest.raises(BundleError, match=r"embed_tokens.npy is not the file that was exported"):
            call()


def test_hashing_numbers_does_not_hold_up_loading(
    engine: Engine, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed, check = threading.Event(), checksums.check

    def slow(bundle: Bundle, entries: Sequence[File] | None = None) -> None:
        if entries is None or any(entry.path.endswith(".npy") for entry in entries):
            assert hashed.wait(30)
        check(bundle, entries)

    monkeypatch.setattr(checksums, "check", slow)
    session = edge.load(bundle.path, engine="null")  # would wait for ever if it waited for those hashes
    hashed.set()
    assert session.ask(None, "What?", max_tokens=2)


@pytest.mark.parametrize("name", ["vision.onnx", "decoder.onnx", "tokenizer.json"])
def test_what_native_code_parses_is_hashed_first(
    engine: Engine, bundle: Bundle, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged head ends a process."""
    opened: list[str] = []

    def open_part(part: PartFiles, name: str, options: OpenOptions) -> Graph:
        opened.append(part.files[0].name)
        return engine(part, name, options)

    monkeypatch.setattr(loader, "open_part", open_part)
    tokenizer = sessions.Tokenizer.open
    monkeypatch.setattr(sessions.Tokenizer, "open", lambda path: opened.append(path.name) or tokenizer(path))
    flip(bundle, name)
    with pytest.raises(BundleError, match=rf"{name} is not the file that was exported"):
        edge.load(bundle.path, engine="null").ask(None, "What?")
    assert name not in opened


def opens_late(engine: Engine, opened: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder opens once the event is set."""

    def open_part(part: PartFiles, name: str, options: OpenOptions) -> Graph:
        if "decoder" in part.covers:
            assert opened.wait(30)
        return engine(part, name, options)

    monkeypatch.setattr(loader, "open_part", open_part)


def test_a_picture_is_seen_while_the_decoder_opens(
    engine: Engine, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = threading.Event()
    opens_late(engine, opened, monkeypatch)
    session = edge.load(bundle.path, engine="null")
    assert len(session.encode_image(photo(1))) == 4
    seen = session.load_ms
    opened.set()
    assert session.ask(photo(1), "What?", max_tokens=2)
    assert engine.eyes[0].looked == 1
    assert session.last.timings.load_ms == session.load_ms > seen > 0


def test_a_session_closes_while_the_decoder_opens(
    engine: Engine, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = threading.Event()
    opens_late(engine, opened, monkeypatch)
    with edge.load(bundle.path, engine="null") as session:
        pass
    opened.set()
    with pytest.raises(UsageError, match="the session is closed"):
        session.ask(None, "What?")


def test_a_decoder_that_fails_late_is_told_at_the_first_question(
    engine: Engine, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = threading.Event()

    def open_part(part: PartFiles, name: str, options: OpenOptions) -> Graph:
        if "decoder" in part.covers:
            assert opened.wait(30)
            raise EngineError("no such kernel")
        return engine(part, name, options)

    monkeypatch.setattr(loader, "open_part", open_part)
    session = edge.load(bundle.path, engine="null")
    opened.set()
    for _ in range(2):
        with pytest.raises(EngineError, match="no such kernel"):
            session.ask(None, "What?")
    flip(bundle, "decoder.onnx")
    with pytest.raises(BundleError, match=r"decoder.onnx is not the file"):
        edge.load(bundle.path, engine="null").ask(None, "What?")


def test_damage_explains_more_than_the_engine(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> Graph:
        raise EngineError("protobuf parsing failed")

    monkeypatch.setattr(loader, "open_part", refuse)
    with pytest.raises(EngineError, match="protobuf"):
        edge.load(bundle.path, engine="null")
    flip(bundle, "decoder.onnx")
    with pytest.raises(BundleError, match=r"decoder.onnx is not the file"):
        edge.load(bundle.path, engine="null")


@pytest.mark.parametrize("role", ["vision", "decoder"])
def test_engines_that_own_a_decoder(role: str, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(FIXED)

    def open_part(part: PartFiles, name: str, options: OpenOptions) -> object:
        opened = engine(part, name, options)
        if part.covers[0] != role:
            return opened
        spec = bundle.manifest.spec.decoder
        files = bundle.files(bundle.manifest.part("decoder"))
        return kv_decoder(NumpyGraph(spec), files, spec, options.context)

    monkeypatch.setattr(loader, "open_part", open_part)
    if role == "decoder":
        assert edge.load(bundle.path, engine="null").ask(photo(1), "What?", max_tokens=3)
    else:
        with pytest.raises(EngineError, match=r"null opened the vision\+projector as a decoder"):
            edge.load(bundle.path, engine="null")


# ends


def test_nothing_was_answered(session: Session) -> None:
    with pytest.raises(UsageError, match="nothing was answered yet"):
        _ = session.last


def test_a_closed_session(session: Session) -> None:
    with session:
        session.ask(photo(1), "What?", max_tokens=1)
    calls: list[Callable[[], object]] = [
        lambda: session.ask(None, "What?"),
        lambda: session.encode_image(photo(1)),
        lambda: session.decoder,
    ]
    for call in calls:
        with pytest.raises(UsageError, match="the session is closed"):
            call()
    session.close()
    assert session.last.generated_tokens == 1, "what was answered can still be looked at"


def test_a_failure_is_survived(session: Session, engine: Engine) -> None:
    expected = session.ask(photo(1), "What?", max_tokens=6)
    assert engine.brain is not None
    stream = session.stream(photo(1), "What?", max_tokens=6)
    next(stream)
    engine.brain.fail = True
    with pytest.raises(EdgeError, match="the graph failed"):
        list(stream)
    engine.brain.fail = False
    assert session.ask(photo(1), "What?", max_tokens=6) == expected


# little memory


@pytest.fixture
def apart(engine: Engine, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Session:
    """One half at a time: the limit is just below what both take."""
    with edge.load(bundle.path, engine="null") as whole:
        limit = whole.plan.peak_bytes - 1
    engine.eyes.clear()
    return edge.load(bundle.path, engine="null", max_memory=limit)


def test_one_half_is_open_at_a_time(engine: Engine, apart: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = weakrefs(engine, monkeypatch)
    assert (apart.plan.one_at_a_time, apart.plan.context) == (True, CONTEXT)
    first = apart.ask(photo(1), "What?", max_tokens=5)
    assert [kind for kind, part in opened if part() is not None] == ["decoder"]
    assert apart.ask(photo(1), "What?", max_tokens=5) == first
    assert apart.last.cached_tokens > 0, "the same picture opens nothing"
    other = apart.ask(photo(2), "What?", max_tokens=5)
    assert [kind for kind, _ in opened] == ["decoder", "vision", "decoder"]
    assert [kind for kind, part in opened if part() is not None] == ["decoder"]
    assert apart.last.cached_tokens == 0
    assert apart.ask(photo(1), "What?", max_tokens=5) == first, "its rows are remembered"
    with edge.load(apart.bundle.path, engine="null") as whole:
        assert whole.ask(photo(1), "What?", max_tokens=5) == first
        assert whole.ask(photo(2), "What?", max_tokens=5) == other


@pytest.mark.parametrize("name", ["decoder.onnx", "embed_tokens.npy"])
def test_a_half_that_is_opened_again_is_checked_again(apart: Session, bundle: Bundle, name: str) -> None:
    assert apart.ask(photo(1), "What?", max_tokens=5)
    flip(bundle, name)
    with pytest.raises(BundleError, match=rf"{name} is not the file that was exported"):
        apart.ask(photo(2), "What?", max_tokens=5)


def weakrefs(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """What is opened from now on; the engine's own references are dropped."""
    opened: list[tuple[str, Any]] = []

    def open_part(part: PartFiles, name: str, options: OpenOptions) -> Graph:
        found = engine(part, name, options)
        opened.append(("decoder" if "decoder" in part.covers else "vision", weakref.ref(found)))
        engine.eyes.clear()
        engine.brain = None
        return found

    monkeypatch.setattr(loader, "open_part", open_part)
    return opened


def test_an_answer_that_is_still_read_ends_when_another_picture_is_seen(apart: Session) -> None:
    answer = apart.stream(photo(1), "What?", max_tokens=20)
    next(answer)
    apart.encode_image(photo(2))
    with pytest.raises(UsageError, match="another question was asked"):
        list(answer)
    assert apart.ask(photo(2), "What?", max_tokens=3)


def test_no_memory_is_told_before_anything_opens(engine: Engine, bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="too little memory: null takes"):
        edge.load(bundle.path, engine="null", max_memory=1000)
    assert engine.options == []


def test_what_is_free_bounds_what_may_be_taken(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    here = replace(sessions.detect(), memory_bytes=1000)
    monkeypatch.setattr(sessions, "detect", lambda: here)
    with pytest.raises(EngineError, match="too little memory"):
        edge.load(bundle.path, engine="null", max_memory=1 << 40)


# views


def test_views_are_encoded_and_remembered_one_by_one(bundle: Bundle) -> None:
    """Tiles and frames: what comes again costs nothing, in whatever company."""
    eye = Eye(bundle.files(bundle.manifest.part("vision")))
    encoder, times = VisionEncoder(bundle, lambda: (eye,)), ImageTimes()
    a, b, c = np.random.default_rng(0).normal(size=(3, 1, 3, 28, 28)).astype(np.float32)
    one, two = (encoder.encode_views(Views((view,)), times) for view in (a, b))
    both = encoder.encode_views(Views((a, b)), times)
    np.testing.assert_array_equal(both.rows, np.concatenate([one.rows, two.rows]))
    assert (both.rows.shape, eye.looked) == ((8, 32), 2)
    turned = encoder.encode_views(Views((b, a)), times)
    assert len({both.key, turned.key, one.key, two.key}) == 4
    encoder.encode_views(Views((c, a, c)), times)
    assert eye.looked == 3
    encoder.forget()
    np.testing.assert_array_equal(encoder.encode_views(Views((a, b)), times).rows, both.rows)
    assert eye.looked == 5


def test_more_views_than_are_remembered_are_all_there(bundle: Bundle) -> None:
    eye = Eye(bundle.files(bundle.manifest.part("vision")))
    encoder, times = VisionEncoder(bundle, lambda: (eye,)), ImageTimes()
    views = list(np.random.default_rng(1).normal(size=(REMEMBERED + 3, 1, 3, 28, 28)).astype(np.float32))
    found = encoder.encode_views(Views(tuple(views)), times).rows.reshape(len(views), 4, 32)
    for view, rows in zip(views, found, strict=True):
        np.testing.assert_array_equal(encoder.encode_views(Views((view,)), times).rows, rows)
