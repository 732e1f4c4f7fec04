"""A bundle in a process of its own: the same answers, and whatever becomes of that process is one error here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY
from fakes import write_golden, write_model_bundle
from PIL import Image

from edge.bundle.manifest import Bundle
from edge.devices import once
from edge.errors import BundleError, ContextError, EngineError, UsageError
from edge.inference import session as here
from edge.inference.sampling import Sampling
from edge.isolation import events, session
from edge.isolation.process import SILENCE, Process
from edge.verify import verify

SAID = """
import json, os, signal, sys, time
from edge.isolation import frames
def say(**event): frames.write(sys.stdout.buffer, event)
def opened(): say(event="opened", plan={"given_up": [], "notes": []}, free=[])
def heard(): frames.read(sys.stdin.buffer) or sys.exit()
def raw(content): os.write(1, content)
"""
ANSWER = """
times = dict.fromkeys(("load_ms", "image_ms", "vision_ms", "prefill_ms", "ttft_ms", "decode_ms", "decode_tok_s"), 1.0)
counts = dict.fromkeys(("prompt_tokens", "image_tokens", "cached_tokens", "generated_tokens"), 1)
answer = {"stop_reason": "stop", "token_ids": [5], **counts, "timings": times}
"""
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals")


def child(script: str) -> tuple[str, ...]:
    return (sys.executable, "-P", "-c", SAID + ANSWER + textwrap.dedent(script))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    found = write_model_bundle(tmp_path_factory.mktemp("isolated") / "tiny", context=200)
    write_golden(found)
    return Bundle.open(found.path)


@pytest.fixture(scope="module")
def isolated(bundle: Bundle, picture: str) -> Iterator[session.IsolatedSession]:
    with session.load(bundle.path, engine="null", image=picture) as found:
        yield found


@pytest.fixture(scope="module")
def whole(bundle: Bundle) -> Iterator[here.Session]:
    with here.load(bundle.path, engine="null") as found:
        yield found


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("pictures") / "red.png"
    Image.new("RGB", (40, 30), "red").save(path)
    return str(path)


# the same as in this process


@pytest.mark.parametrize("seen", [None, 1, 2])
def test_the_same_pieces(
    isolated: session.IsolatedSession, whole: here.Session, seen: int | None, picture: str
) -> None:
    images = None if seen is None else [picture] * seen
    options = {"max_tokens": 20, "sampling": Sampling(temperature=0.8, seed=3)}
    assert [*isolated.stream(images, "What?", **options)] == [*whole.stream(images, "What?", **options)]
    ours, theirs = isolated.last, whole.last
    assert ours.timings.ttft_ms > 0
    for name in ("text", "token_ids", "stop_reason", "prompt_tokens", "image_tokens", "generated_tokens"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert (isolated.peak_bytes() or 0) > 1_000_000
    plans = [{**plan.to_json(), "image_bytes": "what is free"} for plan in (isolated.plan, whole.plan)]
    assert plans[0] == plans[1]
    assert isolated.plan.free == whole.plan.free


def test_a_conversation_goes_on_and_is_saved(
    isolated: session.IsolatedSession, whole: here.Session, picture: str, tmp_path: Path
) -> None:
    chat, ours = isolated.chat([picture], system="Short."), whole.chat([picture], system="Short.")
    for question in ("What is this?", "Why?"):
        assert [*chat.stream(question, max_tokens=9)] == [*ours.stream(question, max_tokens=9)]
    assert (len(chat.turns), chat.system) == (2, "Short.")
    chat.save(str(tmp_path / "talk"))
    again = isolated.resume(str(tmp_path / "talk"))
    assert (len(again.turns), again.system) == (2, "Short.")
    assert [*again.stream("And?", max_tokens=9)] == [*ours.stream("And?", max_tokens=9)]


def test_an_answer_that_is_not_read_to_its_end_is_stopped(isolated: session.IsolatedSession) -> None:
    first = "".join(isolated.stream(None, "First?", max_tokens=9))
    pieces = isolated.stream(None, "Long?", max_tokens=100)
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert "".join(isolated.stream(None, "First?", max_tokens=9)) == first


def test_an_error_of_a_question_is_raised_and_the_next_is_answered(isolated: session.IsolatedSession) -> None:
    with pytest.raises(ContextError, match="positions"):
        [*isolated.stream(None, "why " * 500)]
    with pytest.raises(UsageError, match="max_tokens is 0"):
        [*isolated.stream(None, "What?", max_tokens=0)]
    assert "".join(isolated.stream(None, "What?", max_tokens=3))


def test_what_cannot_be_opened_is_said_as_it_is_here(tmp_path: Path, bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="no bundle at"):
        session.load(tmp_path)
    with pytest.raises(UsageError, match="no engine 'unknown'"):
        session.load(bundle.path, engine="unknown")


def test_the_same_report(bundle: Bundle) -> None:
    assert session.verify(bundle.path, engine="null").to_json() == verify(bundle, engine="null").to_json()


@pytest.mark.skipif(sys.platform != "linux", reason="what Linux tells of a process")
def test_the_child_is_bounded(isolated: session.IsolatedSession) -> None:
    limits = Path(f"/proc/{isolated.pid}/limits").read_text().splitlines()
    found = {line[:26].strip(): line[26:].split()[:2] for line in limits}
    assert found["Max core file size"] == ["0", "0"]
    for name in ("Max data size", "Max file size", "Max open files"):
        assert "unlimited" not in found[name]
    status = Path(f"/proc/{isolated.pid}/status").read_text()
    assert "NoNewPrivs:\t1\n" in status
    assert os.getsid(isolated.pid) == isolated.pid


ALONE = "import ctypes, os; os._exit(ctypes.CDLL(None).unshare(0x40000000 | (0x10000000 if os.geteuid() else 0)) != 0)"


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces")
def test_no_thread_of_the_child_reaches_a_network(isolated: session.IsolatedSession) -> None:
    """Libraries start some as they are imported: these stayed in it, and who is not root left it not at all."""
    if subprocess.run([sys.executable, "-c", ALONE], check=False).returncode:
        pytest.skip("no namespaces are allowed here")
    networks = {os.readlink(place / "ns" / "net") for place in Path(f"/proc/{isolated.pid}/task").iterdir()}
    assert networks.isdisjoint({os.readlink("/proc/self/ns/net")})


# a child that goes wrong


@posix
@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL, signal.SIGBUS])
@pytest.mark.parametrize("when", ["opening", "answering"])
def test_a_child_that_dies_is_one_error(number: signal.Signals, when: str) -> None:
    before = "" if when == "opening" else "opened(); heard(); say(event='piece', text='A'); "
    program = child(f"heard(); {before}os.kill(os.getpid(), {number})")
    message = f"process that opened the bundle was ended by {number.name}: "
    with pytest.raises(EngineError, match=message) as caught, session.load("anything", program=program) as opened:
        [*opened.stream(None, "What?")]
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("heard(); sys.exit(3)", "ended with exit code 3"),
        ("heard(); print('std::bad_alloc', file=sys.stderr); sys.exit(3)", "asked for more memory than it may have"),
        ("heard(); sys.stderr.write('x' * 50_000_000); sys.exit(4)", "ended with exit code 4"),
        ("heard(); time.sleep(600)", r"said nothing for 0\.5 s, and was ended"),
        ("heard(); os.close(1); time.sleep(600)", "closed its end, and was ended"),
        ("raw(b'\\xff' * 100_000_000)", r"no answer \(a frame of 4,294,967,295 bytes\)"),
        ("raw(bytes(400))", r"no answer \(a frame of 0 bytes\)"),
        ("raw(b'\\0\\0\\0\\x09{}'); sys.exit()", r"no answer \(a frame of 9 bytes ends after 2\)"),
        ("raw(b'\\0\\0\\0\\x02[]')", "holds no object"),
        ("raw(b'\\0\\0\\0\\x02{]')", "no answer"),
        ("raw(b'\\0\\x03\\0\\0' + b'[' * 0x30000)", "no answer"),
        ("say(event='opened')", "its plan is no object"),
        ("say(event='opened', plan={'given_up': [3], 'notes': []}, free=[])", "holds what is no text"),
        ("say(event='opened', plan={'given_up': [], 'notes': ['x' * 9000]}, free=[])", "holds what is no text"),
        ("say(event='opened', plan={'given_up': [], 'notes': [], 'x': 'x' * 70_000}, free=[])", "plan is too long"),
        ("say(event='vouched')", "'vouched' where opened should follow"),
        ("say(event='error', kind='EngineError', message=['x'])", "its message is no text"),
    ],
)
def test_what_is_no_answer_ends_the_child(script: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        session.load(
            "anything", program=child(script + "; time.sleep(600)"), silence=0.5 if "for 0" in message else SILENCE
        )


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("[say(event='piece', text='x') for _ in range(10_000)]", "more than 16 tokens"),
        ("say(event='piece', text='\\ud800')", "surrogates not allowed"),
        ("say(event='piece', text='x' * 70_000)", "no text of 65,536 letters"),
        ("say(event='done', answer=dict(answer, stop_reason='bored'), peak=1)", "an answer ended by 'bored'"),
        ("say(event='done', answer=dict(answer, token_ids=[-1]), peak=1)", "token ids are none"),
        ("say(event='done', answer=dict(answer, timings=dict(times, load_ms=float('nan'))), peak=1)", "its load_ms"),
        ("say(event='done', answer=answer, peak='much')", "its peak is 'much'"),
        ("say(event='saved')", "'saved' where piece or done should follow"),
    ],
)
def test_an_answer_that_is_none_ends_the_child(said: str, message: str) -> None:
    with (
        session.load("anything", program=child(f"heard(); opened(); heard(); {said}; time.sleep(600)")) as opened,
        pytest.raises(EngineError, match=message),
    ):
        [*opened.stream(None, "What?", max_tokens=16)]


@pytest.mark.parametrize("kind", ["first_line", "SystemExit", "annotations", "EngineError"])
def test_an_error_is_one_of_the_tree(kind: str) -> None:
    program = child(f"heard(); say(event='error', kind={kind!r}, message='no kernel', hint=None); heard()")
    with pytest.raises(EngineError, match=r"^no kernel$"):
        session.load("anything", program=program)


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ({}, "no rows"),
        ({"rows": []}, "no rows"),
        ({"rows": [{"stage": "x", "against": "y", "error": {}, "tolerance": {"cosine": 0.9}}]}, "lacks 'cosine'"),
        ({"rows": [3]}, "a row of its report is none"),
    ],
)
def test_a_report_that_is_none(report: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        events.report({"report": report})


def test_whether_a_row_holds_is_decided_here() -> None:
    row = {"stage": "tokens", "against": "stored", "error": {"tokens": 0.5}, "tolerance": {"tokens": 1.0}, "ok": True}
    assert not events.report({"report": {"ok": True, "rows": [row]}}).ok
    assert not events.report({"report": {"rows": [{**row, "error": {"tokens": None}}]}}).ok


def test_what_its_libraries_say_is_told_when_asked_for() -> None:
    told: list[str] = []
    program = child("print('a kernel', file=sys.stderr); heard(); opened(); heard()")
    session.load("anything", program=program, told=told.append).close()
    assert told == ["a kernel"]


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


@pytest.fixture
def unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process has warned of nothing yet."""
    monkeypatch.setattr(once, "_SAID", set())


@pytest.mark.usefixtures("unsaid")
def test_its_warnings_are_given_here_once_of_each(caplog: pytest.LogCaptureFixture) -> None:
    program = child(
        """
        def warn(text): say(event="warning", text=text)
        heard(); warn("a \x1b[2Jkernel\u202e\\nis slow"); warn("the cache: full"); opened()
        heard(); warn("the cache: full"); say(event="piece", text="A"); warn("it is hot")
        say(event="done", answer=answer); frames.read(sys.stdin.buffer); warn("nothing is kept")
        """
    )
    with session.load("anything", program=program) as opened:
        assert warned(caplog) == ["a  [2Jkernel  is slow", "the cache: full"]
        assert [*opened.stream(None, "What?")] == ["A"]
        assert warned(caplog)[2:] == ["it is hot"]
    assert warned(caplog)[3:] == ["nothing is kept"]


@pytest.mark.usefixtures("unsaid")
@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("[say(event='warning', text='slow') for _ in range(101)]", "more than 100 warnings"),
        ("say(event='warning', text='x' * 9000)", "no text of 8,192 letters"),
        ("say(event='warning', text=['slow'])", "no text of 8,192 letters"),
        ("say(event='warning')", "no text of 8,192 letters"),
    ],
)
def test_warnings_that_are_none_or_too_many_end_the_child(script: str, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        session.load("anything", program=child(f"heard(); {script}; time.sleep(600)"))


@pytest.mark.usefixtures("unsaid")
def test_what_the_bundles_own_process_warns_of_is_said_here(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    with session.load(bundle.path, engine="null") as opened:
        assert [*opened.stream(None, "What?", max_tokens=3)]
    (warning,) = warned(caplog)
    assert warning.startswith(f"the cache {tmp_path / 'cache' / 'edge-vlm'} cannot be used: ")


# its life


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


def eventually(holds: Callable[[], bool]) -> None:
    for _ in range(3000):
        if holds():
            return
        time.sleep(0.02)
    raise AssertionError("it never happens")


@pytest.mark.skipif(sys.platform != "linux", reason="what Linux tells of a process")
def test_a_child_ends_with_its_parent(bundle: Bundle) -> None:
    """However that ends."""
    script = f"""
    import time
    from edge.isolation import session
    found = session.load({str(bundle.path)!r}, engine="null")
    print(found.pid, flush=True)
    time.sleep(600)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert not gone(pid)
        parent.kill()
    eventually(lambda: gone(pid))


@posix
def test_a_child_that_does_not_leave_is_killed() -> None:
    process = Process(child("signal.signal(signal.SIGTERM, signal.SIG_IGN); say(event='opened'); time.sleep(600)"))
    process.event("opened")
    process.end(within=0.1)
    assert gone(process.pid)
    with pytest.raises(EngineError, match="has ended"):
        process.send("open")
