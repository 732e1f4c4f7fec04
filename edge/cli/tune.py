"""`edge tune`: finds the fastest engine and number of threads for a bundle on this machine, and keeps them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from edge.cli.exits import cleanup_on_signal
from edge.cli.options import BundleArgument, Debug, Json
from edge.cli.output import print_json, say, write
from edge.errors import ParityError

if TYPE_CHECKING:
    from edge.bench.tuning import Measured


def tune(bundle: BundleArgument, as_json: Json = False, debug: Debug = False) -> None:
    """Measure engines and threads, those that compute another model left out, and keep the fastest for `edge run`.

    What is kept holds for this bundle, this processor and these versions of the libraries.
    """
    from edge.bench import tuning
    from edge.bundle.manifest import Bundle
    from edge.devices import detect
    from edge.engines import installed_engines
    from edge.planning import tuned

    opened, here, engines = Bundle.open(bundle), detect(), installed_engines()
    found: list[Measured] = []
    with cleanup_on_signal():
        for one in tuning.tune(opened, tuning.candidates(opened.manifest, here, engines)):
            found.append(one)
            say(_line(one))
    best = tuning.fastest(found)
    if best is None or best.seconds is None:
        raise ParityError(f"no engine here computes {bundle}", hint=f"edge verify {bundle}")
    kept = tuned.Tuned(best.candidate.engine, best.candidate.threads, best.seconds)
    tuned.keep(opened, here, engines, kept)
    if as_json:
        print_json({"kept": asdict(kept), "measured": [asdict(one) for one in found]})
    else:
        write(f"kept: {_named(best)}")


def _named(one: Measured) -> str:
    threads = one.candidate.threads
    return f"{one.candidate.engine or 'the usual engine'}, {threads} thread{'s' * (threads != 1)}"


def _line(one: Measured) -> str:
    return f"{_named(one)}: " + (one.why if one.seconds is None else f"{one.seconds:.3g} s for a first answer")
