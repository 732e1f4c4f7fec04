"""`edge bench`: measures bundles here, or on other machines."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge.cli.exits import cleanup_on_signal
from edge.cli.options import BundlesArgument, Debug, GpuLayers, Isa
from edge.cli.output import complain, say, write
from edge.errors import EdgeError, ImageError, UsageError

if TYPE_CHECKING:
    from edge.bench.schema import Row


def bench(
    context: typer.Context,
    bundles: BundlesArgument,
    n_prompt: Annotated[
        str, typer.Option("--n-prompt", "-p", metavar="N,N", help="Prompts to read; 190. 0: none.")
    ] = "",
    n_gen: Annotated[str, typer.Option("--n-gen", "-n", metavar="N,N", help="Tokens to generate; 64. 0: none.")] = "",
    n_depth: Annotated[str, typer.Option("--n-depth", "-d", metavar="N,N", help="After so many positions.")] = "0",
    repetitions: Annotated[int, typer.Option("--repetitions", "-r", min=1, help="How often each is measured.")] = 5,
    image: Annotated[str | None, typer.Option(metavar="IMAGE", help="Instead of the bundle's own picture.")] = None,
    threads: Annotated[str, typer.Option("--threads", "-t", metavar="N,N", help="Processor threads to try.")] = "",
    engine: Annotated[str, typer.Option(metavar="NAME,NAME", help="Engines to try before the device's own.")] = "",
    cache: Annotated[str, typer.Option(metavar="f16,q8_0", help="How llama.cpp stores the KV cache; f16.")] = "",
    questions: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Ask those of its prompts.jsonl, and count the right answers.")
    ] = None,
    isa: Isa = None,
    provider: Annotated[
        str, typer.Option(metavar="cpu,cuda", help="What computes: cpu, cuda and tensorrt are tried in turn.")
    ] = "",
    gpu_layers: GpuLayers = None,
    sustained: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Then go on for so long.")] = 0.0,
    output: Annotated[str, typer.Option("--output", "-o", help="md, json, jsonl, csv.")] = "md",
    save: Annotated[Path | None, typer.Option(metavar="FILE", help="Keep the results, as JSON.")] = None,
    compare: Annotated[Path | None, typer.Option(metavar="FILE", help="Fail when worse than what was kept.")] = None,
    max_slower: Annotated[float, typer.Option(min=0, metavar="PERCENT", help="What --compare allows.")] = 5.0,
    on: Annotated[
        list[str] | None,
        typer.Option(metavar="ssh://USER@HOST[:PORT]|adb:SERIAL", help="Measure there; may be given several times."),
    ] = None,
    debug: Debug = False,
) -> None:
    """Measure seeing, reading the prompt, generating, loading, memory and energy.

    With --on: on another machine, by the package that is installed there. What a bundle lacks there is copied.
    """
    from edge.bench import results, runner
    from edge.bench.request import Request, numbers, sweep

    common = Request(
        isa=isa,
        gpu_layers=gpu_layers,
        picture=image,
        n_prompt=numbers("-p", n_prompt, 0) or None,
        n_gen=numbers("-n", n_gen, 0) or None,
        n_depth=numbers("-d", n_depth, 0) or (0,),
        repetitions=repetitions,
        sustained=sustained,
        questions=None if questions is None else str(questions),
        debug=debug,
    )
    requests = sweep([str(bundle) for bundle in bundles], engine, threads, cache, provider, common)
    here = {"on", "image", "questions", "output", "save", "compare", "max_slower"}
    rows = _rows_on(on, bundles, image, questions, _given(context, but=here)) if on else runner.bench(requests)
    before = results.read(compare) if compare else None  # what cannot be read is told before the work
    with cleanup_on_signal():
        found, code = _measured(rows, output, save, hosts=bool(on))
    if before is not None and found and (worse := _worse(found, before, max_slower / 100)):
        raise EdgeError(f"worse than {compare}: {'; '.join(worse)}", hint="measure again, or look at warnings")
    if code:
        raise typer.Exit(code)


def _worse(found: Sequence[Row], before: Sequence[Row], allowed: float) -> list[str]:
    """Report each change, and name those that are worse by more than a share of `allowed`."""
    from edge.bench.compare import compare, describe

    changes = compare(found, before, allowed)
    say("\n".join(map(describe, changes)))
    return [change.what for change in changes if change.failed]


def _measured(rows: Iterable[Row | EdgeError], output: str, save: Path | None, hosts: bool) -> tuple[list[Row], int]:
    """The rows, printed and kept as they come, however it ends; and the exit code of the first failure. `hosts`: they
    are of several machines."""
    from edge.bench import results
    from edge.bench.output import WRITERS, Hosts

    if output not in WRITERS:
        raise UsageError(f"no output {output!r}", hint="one of: " + ", ".join(WRITERS))
    writer, code = Hosts() if hosts and output == "md" else WRITERS[output](), 0
    found: list[Row] = []
    warned: set[tuple[object, ...]] = set()
    try:
        for row in rows:
            if isinstance(row, EdgeError):
                complain(row)
                code = code or row.exit_code
                continue
            write(("" if found else writer.begin()) + writer.row(row), end="")
            found.append(row)
            for warning in {w.partition(":")[0]: w for w in row.get("warnings", ())}.values():
                place, where = row.get("host"), (row["model_filename"], row["n_threads"], warning.partition(":")[0])
                if (key := (place, *where)) not in warned:
                    warned.add(key)
                    say(f"warning: {f'{place}: ' if place else ''}{row['test']}: {warning}")
    finally:
        if found:
            write(writer.end(), end="")
            if save:
                results.write(save, found)
    return found, code


def _rows_on(
    on: Sequence[str], bundles: Sequence[Path], image: str | None, questions: Path | None, options: tuple[str, ...]
) -> Iterator[Row | EdgeError]:
    """What other machines measure; all of them at a time, one bundle after another."""
    from rich.console import Console

    from edge.bench import results
    from edge.bundle.manifest import Bundle
    from edge.cli import render
    from edge.inputs import calibration
    from edge.remote.bench import Job
    from edge.remote.fleet import bench_on
    from edge.remote.target import parse_all

    links = parse_all(on)
    if image is not None and not os.path.isfile(image):
        raise ImageError(f"no such picture: {image!r}", hint="edge bench BUNDLE --image IMAGE")
    asked = () if questions is None else tuple(calibration.read(questions))
    for bundle in bundles:
        job = Job(Bundle.open(bundle), options, None if image is None else Path(image), asked)
        with render.Stages(console=Console(stderr=True)) as stages:
            done = bench_on(links, job, stages.report, stages.say)
        for row in done.results:  # another machine's words: one that is none ends no other
            try:
                yield results.require(row, f"a result of {row.get('host')}")
            except EdgeError as error:
                yield error
        yield from done.errors
        if done.interrupted:
            raise done.interrupted


def _given(context: typer.Context, *, but: set[str]) -> tuple[str, ...]:
    """The options that the user gave, for another `edge` of the same command."""
    words: list[str] = []
    for parameter in context.command.params:
        source = getattr(context.get_parameter_source(str(parameter.name)), "name", "")
        if parameter.param_type_name != "option" or parameter.name in but or source != "COMMANDLINE":
            continue
        option = max(parameter.opts, key=len)
        value = context.params[str(parameter.name)]
        values = value if isinstance(value, list | tuple) else [value]
        words += [option if one is True else f"{option}={one}" for one in values]
    return tuple(words)
