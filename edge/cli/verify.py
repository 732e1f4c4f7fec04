"""`edge verify`: replays the recorded proof, or makes a new one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edge import plugins
from edge.cli.exits import cleanup_on_signal, export_side
from edge.cli.options import Base, BundleArgument, Debug, GpuLayers, Isa, Json, Mmproj, Provider, Threads
from edge.cli.output import print_json, print_rich, say
from edge.cli.vouched import Isolated, TrustedKey, isolated, verified
from edge.errors import ParityError, UsageError

if TYPE_CHECKING:
    from edge.bundle.manifest import Bundle
    from edge.verify import Report


def verify(
    bundle: BundleArgument,
    against: Annotated[
        str | None, typer.Option(metavar="CHECKPOINT", help="Compare anew with this checkpoint.")
    ] = None,
    mmproj: Mmproj = None,
    base: Base = None,
    threads: Threads = 0,
    isa: Isa = None,
    provider: Provider = None,
    gpu_layers: GpuLayers = None,
    apart: Isolated = None,
    trusted_key: TrustedKey = None,
    warm: Annotated[
        bool, typer.Option("--warm", help="Put what is packed here beside it, for machines alike without a cache.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Replay what the export recorded, and compare stage by stage."""
    from edge.bundle.manifest import Bundle
    from edge.cli import render

    options = {"threads": threads, "isa": isa, "provider": provider, "gpu_layers": gpu_layers}
    if warm and apart:
        raise UsageError("--warm opens the bundle in this process, once it is proven", hint="leave --isolated away")
    alone = isolated(bundle, apart, trusted_key)
    if against is None:
        for option, given in (("--mmproj", mmproj), ("--base", base)):
            if given is not None:
                raise UsageError(f"{option} is for a checkpoint that the bundle is held to", hint="--against CKPT")
        report = verified(bundle, apart=alone, debug=debug, **options)
    else:
        if provider or gpu_layers is not None:
            raise UsageError(
                "a checkpoint is compared with on the processor", hint="leave --provider or --against away"
            )
        with export_side():  # before a replay, which takes long
            comparison = plugins.load("exporters", "verify_checkpoint")
        if alone:  # torch is no guest of a process that is bounded: it compares once the bundle is known
            verified(bundle, apart=True, debug=debug, **options)
        with export_side(), cleanup_on_signal():
            report = comparison.verify_against(Bundle.open(bundle), against, mmproj, threads, isa, base=base)
    if as_json:
        print_json(report.to_json())
    else:
        print_rich(render.parity(report))
    for note in report.notes:
        say(note)
    if not report.ok:
        stages = ", ".join(row.stage for row in report.rows if not row.ok)
        raise ParityError(f"{bundle} does not compute the same model: {stages}", hint=_remedy(report))
    how = f" ({', '.join(report.evaluated)}: computed by an evaluator, not run)" if report.evaluated else ""
    on = f" on {', '.join(report.providers)}" if report.providers else ""
    if report.adopted:
        say(
            f"{bundle}: what sees computes the same model{on}{how}; the {'+'.join(report.adopted)} is kept as it was "
            "published: not proven, only compared with what it answered when the bundle was made"
        )
    else:
        say(f"{bundle} computes the same model{on}{how}")
    if warm:
        _warm(Bundle.open(bundle))


def _warm(bundle: Bundle) -> None:
    from edge.bundle import warm
    from edge.inference.warming import warmed
    from edge.units import format_size

    made, libraries = warmed(bundle)
    if not made:
        raise UsageError(
            f"no engine that opens {bundle.path} here keeps packed weights, or the cache cannot be written",
            hint="LiteRT and ExecuTorch keep some: edge export … --format tflite",
        )
    size = warm.write(bundle, made, libraries)
    say(f"{bundle.path / warm.FOLDER}: {format_size(size)}, for machines like this one")


def _remedy(report: Report) -> str:
    if report.providers:
        return (
            "the card's kernels are wrong, or its driver is: --provider cpu is not concerned; edge doctor has versions"
        )
    return "export the bundle again"
