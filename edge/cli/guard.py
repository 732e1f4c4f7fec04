"""`edge guard`: proof and speed of bundles on this machine, held to a baseline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge.cli.exits import cleanup_on_signal
from edge.cli.options import BundlesArgument, Debug, Json
from edge.cli.output import print_json, say
from edge.errors import EdgeError, UsageError

if TYPE_CHECKING:
    from edge.bench.guard import Watched


def guard(
    bundles: BundlesArgument,
    baseline: Annotated[
        Path, typer.Option(metavar="FILE", help="What is held to; written where it is not there.")
    ] = Path("guard.json"),
    renew: Annotated[bool, typer.Option("--renew", help="Write it anew, if every proof holds.")] = False,
    max_slower: Annotated[float, typer.Option(min=0, metavar="PERCENT", help="What a row may be worse by.")] = 10.0,
    repetitions: Annotated[int, typer.Option("--repetitions", "-r", min=1, help="How often each is measured.")] = 5,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Prove and measure bundles, and fail when one computes another model or is worse than a baseline.

    For whoever updates an engine: exit code 0 says that answers and speed are what they were.
    """
    from edge.bench import guard as watching
    from edge.bench.request import Request
    from edge.bundle.manifest import Bundle

    opened = [Bundle.open(bundle) for bundle in bundles]
    names = [watching.named(bundle) for bundle in opened]
    if len(set(names)) < len(names):
        raise UsageError(
            "two bundles have one name and recipe, by which a baseline knows them", hint="a baseline for each"
        )
    fresh = renew or not baseline.exists()
    before = {} if fresh else watching.read(baseline)
    if missing := [name for name in names if not fresh and name not in before]:
        raise UsageError(f"{baseline} has no {', '.join(missing)}", hint="--renew, with all bundles")
    found = []
    with cleanup_on_signal():
        for name, bundle in zip(names, opened, strict=True):
            request = Request(str(bundle.path), repetitions=repetitions, debug=debug)
            one = watching.watch(bundle, before.get(name), request, max_slower / 100)
            found.append(one)
            if not as_json:
                _tell(one)
    if as_json:
        print_json({"ok": not any(one.failures for one in found), "bundles": [one.to_json() for one in found]})
    if failed := [f"{one.name}: {failure}" for one in found for failure in one.failures]:
        raise EdgeError("; ".join(failed), hint="measure again; or keep the library's version that was there before")
    if fresh:
        watching.write(baseline, found)
        say(f"{baseline}: the baseline from now on")


def _tell(one: Watched) -> None:
    from edge.bench.compare import describe

    for line in (*one.updated, *map(describe, one.changes)):
        say(f"{one.name}: {line}")
    say(f"{one.name}: {'; '.join(one.failures) or 'computes the same model, and no slower'}")
