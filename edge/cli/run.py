"""`edge run`: answers one question, or chats."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edge.cli.exits import cleanup_on_signal
from edge.cli.options import BundleArgument, Cache, Debug, GpuLayers, ImageTokens, Isa, Json, Provider, Threads
from edge.cli.output import complain, print_json, say, write_answer
from edge.cli.vouched import Isolated, TrustedKey, isolated
from edge.errors import ContextError, ImageError, UsageError

if TYPE_CHECKING:
    from edge.inference.chat import Chat
    from edge.inference.constraint import Constraint
    from edge.inference.session import Session
    from edge.isolation.session import IsolatedChat, IsolatedSession

# How a picture's file name ends: what tells a picture that is missing from a question.
PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".tga", ".avif", ".heic", ".jp2"}


def run(
    bundle: BundleArgument,
    inputs: Annotated[list[str] | None, typer.Argument(metavar="IMAGE|QUESTION", show_default=False)] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", "-n", min=1, help="The longest answer.")] = 256,
    temp: Annotated[float, typer.Option(help="Temperature; 0: always the most probable token.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Pick among so many tokens; 0: all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Pick among the tokens of so much probability.")] = 1.0,
    repeat_penalty: Annotated[float, typer.Option(help="Above 1: say less of what was said.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answer.")] = None,
    threads: Threads = 0,
    cache: Cache = None,
    isa: Isa = None,
    provider: Provider = None,
    gpu_layers: GpuLayers = None,
    max_memory: Annotated[str | None, typer.Option(metavar="SIZE", help="The most to take at the peak: 1.5GB.")] = None,
    image_tokens: ImageTokens = None,
    system: Annotated[str | None, typer.Option(help="Instead of the model's own system prompt.")] = None,
    schema: Annotated[
        str | None, typer.Option(metavar="FILE", help="A JSON schema: every answer satisfies it.")
    ] = None,
    saved: Annotated[
        str | None,
        typer.Option("--session", metavar="FILE", help="Go on with the conversation in a file, and save it there."),
    ] = None,
    apart: Isolated = None,
    trusted_key: TrustedKey = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Answer a question about pictures; without a question, chat about them.

    The last argument is the question, unless it ends like a picture's file name or, standing alone, names a file.
    """
    pictures, question = split(inputs or [])
    if as_json and question is None:
        raise UsageError(
            "--json answers one question, and there is none", hint='edge run BUNDLE IMAGE "question" --json'
        )
    from edge.inference.sampling import Sampling
    from edge.units import parse_size

    options: dict[str, Any] = {
        "max_tokens": max_tokens,
        "sampling": Sampling(temp, top_k, top_p, repeat_penalty, seed),
        "schema": read_schema(schema) if schema else None,
    }
    opening: dict[str, Any] = {
        "threads": threads,
        "cache": cache,
        "isa": isa,
        "provider": provider,
        "gpu_layers": gpu_layers,
        "max_memory": parse_size(max_memory) if max_memory else None,
        "image_tokens": image_tokens,
        "image": pictures[0] if pictures else None,
        "debug": debug,
    }
    with _opened(bundle, isolated(bundle, apart, trusted_key), opening) as session:
        if session.plan.given_up:
            say("little memory: " + ", ".join(session.plan.given_up))
        for note in session.plan.notes:
            say(note)
        if session.plan.free:
            say(f"--isa {isa} does not bind {', '.join(session.plan.free)}: what its kernels use is its own choice")
        if saved is None and question is not None:
            _show(session, session.stream(pictures or None, question, system=system, **options), as_json)
            return
        with _conversation(session, pictures, system, saved) as chat:
            if question is None:
                _chat(chat, options)
            else:
                _show(session, chat.stream(question, **options), as_json)


def _opened(bundle: Path, apart: bool, options: dict[str, Any]) -> Session | IsolatedSession:
    if apart:
        from edge.isolation.session import load as load_apart

        return load_apart(bundle, told=say if options["debug"] else None, **options)
    from edge.inference.session import load

    return load(bundle, **options)


def split(inputs: Sequence[str]) -> tuple[list[str], str | None]:
    """Pictures, and the question if there is one. Raises ImageError on a picture that does not exist."""
    *pictures, last = inputs or [""]
    # os.path, not Path: a long question is no file name, and no error either.
    if os.path.splitext(last)[1].lower() in PICTURES or (not pictures and os.path.isfile(last)):
        pictures, last = [*pictures, last], ""
    for picture in pictures:
        if not os.path.exists(picture):
            raise ImageError(f"no such picture: {picture!r}", hint='edge run BUNDLE IMAGE "question"')
    return pictures, last or None


def read_schema(path: str) -> Constraint:
    """Raises UsageError on a file that holds none."""
    from edge.inference.constraint import MOST_BYTES, Constraint

    try:
        with open(path, "rb") as file:
            content = file.read(2 * MOST_BYTES)  # it may be indented; what is longer is no JSON any more
        return Constraint.json(json.loads(content))
    except OSError as error:
        raise UsageError(f"cannot read the schema {path}: {error.strerror}", hint="--schema FILE") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no JSON schema: {error}", hint='{"type": "object", "properties": …}') from error


@contextlib.contextmanager
def _conversation(
    session: Session | IsolatedSession, pictures: list[str], system: str | None, saved: str | None
) -> Iterator[Chat | IsolatedChat]:
    """A new one, or that of a file; it is saved there when it ends, however it does."""
    chat: Chat | IsolatedChat
    if saved is None or not os.path.exists(saved):
        chat = session.chat(pictures or None, system=system)
    else:
        chat = session.resume(saved, pictures or None)
        if system not in (None, chat.system):
            raise UsageError(f"{saved} has a system prompt of its own", hint="leave --system out")
    if saved is None:
        yield chat
        return
    before = len(chat.turns)
    with cleanup_on_signal():
        try:
            yield chat
        finally:
            if len(chat.turns) > before:
                chat.save(saved)


def _chat(chat: Chat | IsolatedChat, options: dict[str, Any]) -> None:
    for question in _questions():
        try:
            _stream(chat.stream(question, **options))
        except ContextError as error:  # the next question may be shorter
            complain(error)


def _questions() -> Iterator[str]:
    """The lines of stdin; with a prompt and line editing where somebody types them."""
    typed = sys.stdin.isatty()
    if typed:
        with contextlib.suppress(ImportError):  # Windows has none
            importlib.import_module("readline")  # input() finds it loaded
        say("Ask; Ctrl-D ends.")
    with contextlib.suppress(EOFError):
        while True:
            line = input("> " if typed and sys.stdout.isatty() else "")
            if line.strip():
                yield line.strip()


def _show(session: Session | IsolatedSession, pieces: Iterable[str], as_json: bool) -> None:
    """An answer while it is made, or all that is known of it."""
    if as_json:
        for _ in pieces:
            pass
        print_json(_answer(session))
        return
    from edge.cli import render

    _stream(pieces)
    say(render.answer(session.last))


def _stream(pieces: Iterable[str]) -> None:
    begun = False
    try:
        for piece in pieces:
            write_answer(piece)
            begun = True
    except BaseException:
        if begun:  # Ctrl-C ended the answer, or an error did
            print(flush=True)
        raise
    print(flush=True)


def _answer(session: Session | IsolatedSession) -> dict[str, Any]:
    from edge.devices.peak_memory import peak_bytes

    peak = getattr(session, "peak_bytes", peak_bytes)()  # of the process that has the engines
    peak_mb = None if peak is None else round(peak / 1e6, 1)
    return {**asdict(session.last), "peak_rss_mb": peak_mb, "plan": session.plan.to_json()}
