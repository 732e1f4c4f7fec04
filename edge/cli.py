"""The command line: data to stdout, everything else to stderr; exit 0 fine, 1 failed, 2 the call was off."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from edge import plugins
from edge.errors import BundleError, ContextError, EdgeError, EngineError, ImageError, ParityError, UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edge.bench.rows import Row
    from edge.session import Session
    from edge.verify import Report

# How a picture's file name ends: what tells a picture that is missing from a question.
PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".tga", ".avif", ".heic", ".jp2"}

app = typer.Typer(name="edge", add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A directory that `edge export` wrote.")]
Cache = Annotated[str | None, typer.Option(metavar="f16|q8_0", help="How llama.cpp keeps keys and values; f16.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks and the libraries' messages.")]
Mmproj = Annotated[Path | None, typer.Option(metavar="FILE", help="The vision part of a GGUF checkpoint.")]
On = Annotated[
    list[str] | None,
    typer.Option(metavar="ssh://USER@HOST[:PORT]|adb:SERIAL", help="Measure there; may be given several times."),
]
PositionWorkaround = Annotated[
    bool,
    typer.Option("--mtmd-position-workaround", help="An mmproj for llama.cpp builds without #25844, and only those."),
]
MaxMemory = Annotated[str | None, typer.Option(metavar="SIZE", help="The most to take at the peak: 1.5GB.")]
Device = Annotated[str | None, typer.Option("--device", help="One of `edge devices`; this machine.")]
Threads = Annotated[int, typer.Option("--threads", "-t", min=0, help="Processor threads; 0: this machine's best.")]


@app.command()
def export(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A folder, a hub id, or a GGUF file.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="BUNDLE", help="Where the bundle is written.")],
    format: Annotated[str | None, typer.Option(help="onnx, gguf, tflite, coreml, executorch.")] = None,
    scheme: Annotated[list[str] | None, typer.Option(metavar="S|ROLE=S", help="How numbers are stored.")] = None,
    recipe: Annotated[str | None, typer.Option(help="A named choice of format and scheme for each role.")] = None,
    device: Annotated[str | None, typer.Option(help="A device of `edge devices`: its recipe.")] = None,
    calib: Annotated[Path | None, typer.Option(metavar="DIR", help="Pictures and questions to calibrate with.")] = None,
    imatrix: Annotated[Path | None, typer.Option(metavar="FILE", help="An importance matrix: no measuring.")] = None,
    context: Annotated[int | None, typer.Option(min=1, help="Positions to export for; the checkpoint's own.")] = None,
    vision_tower: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the vision tower lies.")] = None,
    mmproj: Mmproj = None,
    gguf_only: Annotated[
        bool, typer.Option("--gguf-only", help="Without the vision part that `edge run` uses.")
    ] = False,
    mtmd_position_workaround: PositionWorkaround = False,
    tensor_type: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN=KIND", help="A kind for tensors of the decoder's GGUF file.")
    ] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Core ML packages compiled too; on a Mac.")] = False,
    split: Annotated[bool, typer.Option("--split", help="An ExecuTorch program for each half, not one.")] = False,
    backend: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="coreml, mps, vulkan: ExecuTorch's encoder for it, too.")
    ] = None,
    threads: Threads = 0,
    max_loss: Annotated[float | None, typer.Option(help="Fail when quantising costs more (1 - cosine).")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Turn a checkpoint into a bundle, and prove that it computes the same model."""
    from rich.console import Console

    from edge import show

    with _export_side(), _leaving_tidily():
        side = plugins.load("exporters", "export")
        request = side.ExportRequest(
            checkpoint=checkpoint,
            output=output,
            format=format,
            schemes=tuple(scheme or ()),
            recipe=recipe,
            device=device,
            calib=calib,
            imatrix=imatrix,
            context=context,
            vision_tower=vision_tower,
            mmproj=mmproj,
            gguf_only=gguf_only,
            mtmd_position_workaround=mtmd_position_workaround,
            tensor_type=tuple(tensor_type or ()),
            compile=compile,
            split=split,
            backend=tuple(backend or ()),
            threads=threads,
            max_loss=max_loss,
        )
        with show.Stages(console=Console(stderr=True)) as stages:
            done = side.export(request, stages.report)
    if as_json:
        facts = {"path": str(done.path), "bytes": done.bytes, "seconds": round(done.seconds, 3)}
        facts["fit"] = done.fit.to_json() if done.fit else None
        _print_json({**facts, "report": done.report.to_json(), "next_command": done.next_command})
        return
    _print(show.parity(done.report))
    print(f"\n{done.path}: {show.size(done.bytes)} in {done.seconds:.1f} s")
    print(f"worst: {show.worst(done.report)}")
    if done.fit:
        print(f"predicted, not measured: {show.fit_line(done.fit)}")
    print(f"next: {done.next_command}")


@app.command()
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
    max_memory: MaxMemory = None,
    system: Annotated[str | None, typer.Option(help="Instead of the model's own system prompt.")] = None,
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
    from edge.memory import parse_size
    from edge.sampling import Sampling
    from edge.session import load

    options: dict[str, Any] = {
        "max_tokens": max_tokens,
        "sampling": Sampling(temp, top_k, top_p, repeat_penalty, seed),
    }
    limit = parse_size(max_memory) if max_memory else None
    with load(bundle, threads=threads, cache=cast("Any", cache), max_memory=limit, debug=debug) as session:
        if session.plan.given_up:
            _say("little memory: " + ", ".join(session.plan.given_up))
        if question is None:
            _chat(session, pictures, system, options)
        elif as_json:
            session.ask(pictures or None, question, system=system, **options)
            _print_json(_answer(session))
        else:
            from edge import show

            _stream(session.stream(pictures or None, question, system=system, **options))
            _say(show.answer(session.last))


@app.command()
def verify(
    bundle: BundleArgument,
    against: Annotated[
        str | None, typer.Option(metavar="CHECKPOINT", help="Compare anew with this checkpoint.")
    ] = None,
    mmproj: Mmproj = None,
    threads: Threads = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Replay what the export recorded, and compare stage by stage."""
    from edge import show

    report = _verified(bundle, against, mmproj, threads)
    if as_json:
        _print_json(report.to_json())
    else:
        _print(show.parity(report))
    if not report.ok:
        stages = ", ".join(row.stage for row in report.rows if not row.ok)
        raise ParityError(f"{bundle} does not compute the same model: {stages}", hint="export the bundle again")
    how = f" ({', '.join(report.evaluated)}: computed by an evaluator, not run)" if report.evaluated else ""
    _say(f"{bundle} computes the same model{how}")


def _verified(bundle: Path, against: str | None, mmproj: Path | None, threads: int) -> Report:
    from edge.bundle import Bundle

    opened = Bundle.open(bundle)
    if against is None:
        from edge.verify import verify

        return verify(opened, threads=threads)
    with _export_side(), _leaving_tidily():
        report: Report = plugins.load("exporters", "against").verify_against(opened, against, mmproj, threads)
    return report


@app.command()
def bench(
    context: typer.Context,
    bundles: Annotated[list[Path], typer.Argument(metavar="BUNDLE", help="Directories that `edge export` wrote.")],
    n_prompt: Annotated[str, typer.Option("--n-prompt", "-p", metavar="N,N", help="Prompts to read; 190.")] = "",
    n_gen: Annotated[str, typer.Option("--n-gen", "-n", metavar="N,N", help="Tokens to generate; 64.")] = "",
    n_depth: Annotated[str, typer.Option("--n-depth", "-d", metavar="N,N", help="After so many positions.")] = "0",
    repetitions: Annotated[int, typer.Option("--repetitions", "-r", min=1, help="How often each is measured.")] = 5,
    image: Annotated[str | None, typer.Option(metavar="IMAGE", help="Instead of the bundle's own picture.")] = None,
    threads: Annotated[str, typer.Option("--threads", "-t", metavar="N,N", help="Processor threads to try.")] = "",
    engine: Annotated[str, typer.Option(metavar="NAME,NAME", help="Engines to try before the device's own.")] = "",
    cache: Annotated[str, typer.Option(metavar="f16,q8_0", help="How llama.cpp keeps keys and values; f16.")] = "",
    sustained: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Then go on for so long.")] = 0.0,
    output: Annotated[str, typer.Option("--output", "-o", help="md, json, jsonl, csv.")] = "md",
    save: Annotated[Path | None, typer.Option(metavar="FILE", help="Keep the results, as JSON.")] = None,
    compare: Annotated[Path | None, typer.Option(metavar="FILE", help="Fail when slower than what was kept.")] = None,
    max_slower: Annotated[float, typer.Option(min=0, metavar="PERCENT", help="What --compare allows.")] = 5.0,
    on: On = None,
    debug: Debug = False,
) -> None:
    """Measure seeing, reading the prompt, generating, loading, memory and energy.

    With --on: on another machine, by the package that is installed there. What a bundle lacks there is copied.
    """
    from edge.bench import changes, results, runner
    from edge.bench.request import Request, numbers, sweep

    common = Request(
        picture=image,
        n_prompt=numbers("-p", n_prompt) or None,
        n_gen=numbers("-n", n_gen) or None,
        n_depth=numbers("-d", n_depth, 0) or (0,),
        repetitions=repetitions,
        sustained=sustained,
        debug=debug,
    )
    requests = sweep([str(bundle) for bundle in bundles], engine, threads, cache, common)
    here = {"on", "image", "output", "save", "compare", "max_slower"}
    rows = _rows_on(on, bundles, image, _given(context, but=here)) if on else runner.bench(requests)
    before = results.read(compare) if compare else None  # what cannot be read is told before the work
    with _leaving_tidily():
        found, code = _measured(rows, output, save, hosts=bool(on))
    if before is not None and found:
        compared = changes.compare(found, before, max_slower / 100)
        _say("\n".join(map(changes.describe, compared)))
        if slower := [change.what for change in compared if change.slower]:
            raise EdgeError(f"slower than {compare}: {'; '.join(slower)}", hint="measure again, or look at warnings")
    if code:
        raise typer.Exit(code)


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
                _complain(row)
                code = code or row.exit_code
                continue
            print(("" if found else writer.begin()) + writer.row(row), end="", flush=True)
            found.append(row)
            for warning in {w.partition(":")[0]: w for w in row.get("warnings", ())}.values():
                place, where = row.get("host"), (row["model_filename"], row["n_threads"], warning.partition(":")[0])
                if (key := (place, *where)) not in warned:
                    warned.add(key)
                    _say(f"warning: {f'{place}: ' if place else ''}{row['test']}: {warning}")
    finally:
        if found:
            print(writer.end(), end="", flush=True)
            if save:
                results.write(save, found)
    return found, code


def _rows_on(
    on: Sequence[str], bundles: Sequence[Path], image: str | None, options: tuple[str, ...]
) -> Iterator[Row | EdgeError]:
    """What other machines measure; all of them at a time, one bundle after another."""
    from rich.console import Console

    from edge import show
    from edge.bundle import Bundle
    from edge.remote.bench import Job
    from edge.remote.fleet import bench_on
    from edge.remote.target import parse_all

    links = parse_all(on)
    if image is not None and not os.path.isfile(image):
        raise ImageError(f"no such picture: {image!r}", hint="edge bench BUNDLE --image IMAGE")
    for bundle in bundles:
        job = Job(Bundle.open(bundle), options, None if image is None else Path(image))
        with show.Stages(console=Console(stderr=True)) as stages:
            done = bench_on(links, job, stages.report, stages.say)
        yield from done.results
        yield from done.errors
        if done.interrupted:
            raise KeyboardInterrupt


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


@app.command()
def report(
    results: Annotated[list[Path], typer.Argument(metavar="RESULTS", help="What `edge bench --save` wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The page.")],
    bandwidth: Annotated[
        float | None, typer.Option(min=0.1, metavar="GB/s", help="The memory's, where the results do not tell.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Draw results of `edge bench` as one page that opens anywhere."""
    from edge.bench import results as kept

    found = {str(path): kept.read(path) for path in results}
    with _needing("drawing", "report"):
        side = plugins.load("exporters", "report")
    side.write(found, output, bandwidth and bandwidth * 1e9)
    _say(f"written: {output}")


@app.command()
def inspect(bundle: BundleArgument, as_json: Json = False, debug: Debug = False) -> None:
    """Print the manifest readably."""
    from edge import show
    from edge.bundle import Bundle

    manifest = Bundle.open(bundle).manifest
    if as_json:
        _print_json(manifest.to_json())
    else:
        _print(show.manifest(manifest))


@app.command()
def devices(
    name: Annotated[str | None, typer.Argument(metavar="DEVICE", help="One of them; `this`: measure it.")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the devices that `edge export --device` knows, and this machine; or show one, with its sources."""
    from edge import show
    from edge.devices import detect, measured, profile, profiles

    if name is not None:
        one = measured(profile(name))
        _print_json(one.to_json()) if as_json else _print(show.device(one))
    elif as_json:
        _print_json({"devices": [p.to_json() for p in profiles()], "this": detect().to_json()})
    else:
        _print(show.devices(profiles(), detect()))


@app.command()
def fit(
    model: Annotated[str, typer.Argument(metavar="BUNDLE|CHECKPOINT", help="A bundle, or what `edge export` takes.")],
    device: Device = None,
    recipe: Annotated[str | None, typer.Option(help="Of a checkpoint: instead of the device's.")] = None,
    format: Annotated[str | None, typer.Option(help="Of a checkpoint, as for `edge export`.")] = None,
    scheme: Annotated[list[str] | None, typer.Option(metavar="S|ROLE=S", help="Of a checkpoint.")] = None,
    context: Annotated[int, typer.Option(min=0, help="Positions; 0: the model's, or what the memory holds.")] = 0,
    cache: Cache = None,
    vision_tower: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the vision tower lies.")] = None,
    mmproj: Mmproj = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Predict memory, first token and speed on a device; refuse what does not fit, naming what would."""
    from edge import show
    from edge.bundle import MANIFEST, Bundle
    from edge.devices import THIS, measured, profile
    from edge.fit import fit as predict

    target = measured(profile(device or THIS))
    if Path(model, MANIFEST).is_file():
        manifest = Bundle.open(model).manifest
    else:
        with _export_side():
            manifest = plugins.load("exporters", "foresee").foresee(
                model, recipe or target.recipe, format, tuple(scheme or ()), vision_tower=vision_tower, mmproj=mmproj
            )
    found = predict(manifest, target, context=context, cache=cast("Any", cache))
    _print_json(found.to_json()) if as_json else _print(show.fit(found))


@app.command()
def doctor(
    files: Annotated[list[Path] | None, typer.Argument(metavar="FILE.gguf", show_default=False)] = None,
    repair: Annotated[Path | None, typer.Option(metavar="OUT", help="Write corrected copies of the files.")] = None,
    mtmd_position_workaround: PositionWorkaround = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Say which engines are installed, what the processor can do, and what to install.

    With a GGUF decoder, an mmproj or both: say what is wrong with them, what it costs, and correct it.
    """
    if files:
        _examine(files, repair, mtmd_position_workaround, as_json)
        return
    if repair or mtmd_position_workaround:
        raise UsageError("there is no file to repair", hint="edge doctor MODEL.gguf MMPROJ.gguf --repair OUT")
    from edge import show
    from edge.doctor import diagnose

    found = diagnose()
    if as_json:
        _print_json(found.to_json())
    else:
        _print(show.doctor(found))


def _examine(files: list[Path], repair: Path | None, position_workaround: bool, as_json: bool) -> None:
    from edge import show

    if position_workaround and not repair:
        raise UsageError("--mtmd-position-workaround is written into a copy", hint="add --repair OUT")
    with _export_side(), _leaving_tidily():
        side = plugins.load("exporters.gguf_file", "doctor")
        found = side.repair(files, repair, position_workaround) if repair else side.diagnose(files)
    if as_json:
        _print_json(found.to_json())
    else:
        _print(show.findings(found))
    if wrong := [row for row in found.rows if row.status == "wrong"]:
        lost = [row.cost for row in wrong if not row.repairable]
        command = shlex.join(["edge", "doctor", *map(str, files), "--repair", "OUT"])
        raise BundleError(f"wrong: {', '.join(row.check for row in wrong)}", hint=lost[0] if lost else command)
    if found.written:
        _say("written: " + ", ".join(found.written))


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of a failure; leaves by SystemExit otherwise, as typer does."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    debug = "--debug" in given
    if debug:
        logging.basicConfig(level=logging.DEBUG)
    try:
        app(args=given, prog_name="edge")
    except EdgeError as error:
        if debug:
            traceback.print_exc()
        _complain(error)
        return error.exit_code
    except Exception as error:
        if debug:
            traceback.print_exc()
        _say(f"error: {type(error).__name__}: {error}\nhint: this is a bug in edge-vlm; --debug shows where")
        return 1
    return 0


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


def _chat(session: Session, pictures: list[str], system: str | None, options: dict[str, Any]) -> None:
    chat = session.chat(pictures or None, system=system)
    for question in _questions():
        try:
            _stream(chat.stream(question, **options))
        except ContextError as error:  # the next question may be shorter
            _complain(error)


def _questions() -> Iterator[str]:
    """The lines of stdin; with a prompt and line editing where somebody types them."""
    typed = sys.stdin.isatty()
    if typed:
        with contextlib.suppress(ImportError):  # Windows has none
            importlib.import_module("readline")  # input() finds it loaded
        _say("Ask; Ctrl-D ends.")
    with contextlib.suppress(EOFError):
        while True:
            line = input("> " if typed and sys.stdout.isatty() else "")
            if line.strip():
                yield line.strip()


def _stream(pieces: Iterable[str]) -> None:
    begun = False
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
            begun = True
    except BaseException:
        if begun:  # Ctrl-C ended the answer, or an error did
            print(flush=True)
        raise
    print(flush=True)


def _answer(session: Session) -> dict[str, Any]:
    from edge.bench.memory import peak_bytes

    peak = peak_bytes()
    peak_mb = None if peak is None else round(peak / 1e6, 1)
    return {**asdict(session.last), "peak_rss_mb": peak_mb, "plan": session.plan.to_json()}


def _export_side() -> contextlib.AbstractContextManager[None]:
    return _needing("exporting", "export")


@contextlib.contextmanager
def _needing(what: str, extra: str) -> Iterator[None]:
    """What runs inside needs the libraries of that extra."""
    try:
        yield
    except ImportError as error:
        if (error.name or "").split(".")[0] in ("edge", "exporters"):
            raise
        raise EngineError(
            f"{what} needs more than is installed: {error}", hint=f"pip install 'edge-vlm[{extra}]'"
        ) from error


@contextlib.contextmanager
def _leaving_tidily() -> Iterator[None]:
    """A kill ends what runs inside as an exit does: what is half written is removed."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    numbers = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    ours = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]  # nohup stays nohup
    for number in ours:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _print(renderable: RenderableType) -> None:
    from rich.console import Console

    # No markup: a manifest's words are not ours.
    Console(markup=False, emoji=False, highlight=False).print(renderable)


def _print_json(data: Any) -> None:
    print(json.dumps(data, indent=1, ensure_ascii=False), flush=True)


def _complain(error: EdgeError) -> None:
    _say(f"error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
