"""`edge serve`: answers over HTTP, as the OpenAI protocol speaks, and with a page."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from edge.cli.exits import requires_extra
from edge.cli.options import BundlesArgument, Cache, Debug, GpuLayers, ImageTokens, Isa, Provider, Threads
from edge.cli.output import say
from edge.cli.vouched import introduced
from edge.errors import EdgeError, UsageError

if TYPE_CHECKING:
    from edge.bench.schema import Row
    from edge.inference.session import Session


def serve(
    bundles: BundlesArgument,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Another than this one wants a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8080,
    api_key: Annotated[
        list[str] | None, typer.Option(metavar="KEY", envvar="EDGE_API_KEY", help="Who may ask; several may be given.")
    ] = None,
    no_key: Annotated[bool, typer.Option("--no-key", help="Everybody who reaches it may ask.")] = False,
    allow_origin: Annotated[
        list[str] | None, typer.Option(metavar="ORIGIN", help="A site whose pages may ask: https://NAME.")
    ] = None,
    allow_urls: Annotated[bool, typer.Option("--allow-urls", help="Fetch images from public http(s) URLs.")] = False,
    cert: Annotated[Path | None, typer.Option(metavar="FILE", help="TLS: the certificate's chain, PEM.")] = None,
    key: Annotated[Path | None, typer.Option(metavar="FILE", help="TLS: its private key, PEM.")] = None,
    queue: Annotated[int, typer.Option(min=0, metavar="N", help="Requests that may wait; 429 beyond.")] = 32,
    kept: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory for conversations that wait: 500MB; 0: none.")
    ] = None,
    threads: Threads = 0,
    cache: Cache = None,
    isa: Isa = None,
    provider: Provider = None,
    gpu_layers: GpuLayers = None,
    image_tokens: ImageTokens = None,
    max_memory: Annotated[str | None, typer.Option(metavar="SIZE", help="The most for the models: 1.5GB.")] = None,
    debug: Debug = False,
) -> None:
    """Answer over HTTP: the OpenAI protocol at /v1, and a page at /.

    Ctrl-C and SIGTERM let what was accepted be answered first.
    """
    from edge.bench.request import Request
    from edge.bench.runner import bench
    from edge.units import parse_size

    with requires_extra("serving", "serve"):
        from edge.server.limits import Limits
        from edge.server.run import Settings
        from edge.server.run import serve as run
    settings = Settings(
        host=host,
        port=port,
        keys=tuple(api_key or ()),
        no_key=no_key,
        origins=tuple(allow_origin or ()),
        allow_urls=allow_urls,
        cert=cert,
        key=key,
        kept_bytes=None if kept is None else parse_size(kept) if kept != "0" else 0,
        limits=Limits(waiting=queue),
    )
    settings.check()
    if not debug:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    names = [bundle.resolve().name for bundle in bundles]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UsageError(f"two bundles are called {', '.join(sorted(twice))}", hint="rename one of the folders")
    with ExitStack() as stack:
        options: dict[str, Any] = {"threads": threads, "cache": cast("Any", cache), "isa": isa, "debug": debug}
        options |= {"image_tokens": image_tokens, "provider": provider, "gpu_layers": gpu_layers}
        left = parse_size(max_memory) if max_memory else None
        sessions = []
        for name, bundle in zip(names, bundles, strict=True):
            session = stack.enter_context(_opened(bundle, left, options))
            left = None if left is None else left - session.plan.peak_bytes
            sessions.append((name, session))

        def measure(bundle: Path) -> Iterator[Row | EdgeError]:
            request = Request(str(bundle), threads=threads, cache=cast("Any", cache), isa=isa, repetitions=2)
            return bench([replace(request, provider=provider, gpu_layers=gpu_layers)])

        run(sessions, settings, measure, lambda address: say(f"{', '.join(names)} at {address}"))


def _opened(bundle: Path, max_memory: int | None, options: dict[str, Any]) -> Session:
    """Ready for a question: the first client does not wait for the decoder."""
    from edge.inference.session import load

    introduced(bundle, **{name: options[name] for name in ("debug", "threads", "isa", "provider", "gpu_layers")})
    session = load(bundle, max_memory=max_memory, **options)
    if session.plan.given_up:
        say(f"{bundle}: little memory: " + ", ".join(session.plan.given_up))
    for note in session.plan.notes:
        say(f"{bundle}: {note}")
    session.warm()
    return session
