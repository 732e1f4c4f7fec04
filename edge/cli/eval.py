"""`edge eval`: accuracy by the field's benchmarks, and two runs compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge import plugins
from edge.cli.options import Debug, Json, Threads, bundle_folder
from edge.cli.output import print_json, print_rich, say
from edge.cli.vouched import introduced
from edge.errors import EdgeError, UsageError

if TYPE_CHECKING:
    from edge.evaluation.answers_file import Line, Run
    from edge.evaluation.runner import Progress, Report
    from edge.evaluation.task import Question, Task

CALL = "edge eval BUNDLE --task NAME|FOLDER --data DIR"


def eval(
    bundle: Annotated[
        Path | None,
        typer.Argument(metavar="BUNDLE", parser=bundle_folder, help="What `edge export` wrote.", show_default=False),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(metavar="NAME|FOLDER", help=f"{', '.join(plugins.names('edge.evaluation.tasks'))}; or a folder."),
    ] = None,
    data: Annotated[Path, typer.Option(metavar="DIR", help="Where the task's official files are.")] = Path("."),
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Keep every answer; go on where it ends.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="A sample of N questions, always the same.")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(metavar="A B", help="Pair two files of answers instead.")
    ] = None,
    margin: Annotated[
        float | None, typer.Option(min=0, metavar="POINTS", help="Fail unless B is no worse than A by so much.")
    ] = None,
    threads: Threads = 0,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure accuracy on POPE, TextVQA, GQA, ScienceQA, MME, MMBench, VQAv2 or a folder of questions."""
    if compare is not None:
        if bundle or task or output or limit:
            raise UsageError("--compare takes two files of answers, and asks nothing", hint="edge eval --compare A B")
        _compare(compare, margin, as_json)
        return
    if margin is not None:
        raise UsageError("--margin belongs to --compare", hint="edge eval --compare A.jsonl B.jsonl --margin 0.5")
    if bundle is None or task is None:
        raise UsageError(f"there is no {'--task' if bundle else 'BUNDLE'}", hint=CALL)
    from edge.cli import render_evaluation as render

    report = _evaluated(bundle, task, data, output, limit, threads, debug)
    print_json(report.to_json()) if as_json else print_rich(render.report(report))
    for line in render.remarks(report):
        say(line)


def _evaluated(
    bundle: Path, name: str, data: Path, output: Path | None, limit: int | None, threads: int, debug: bool
) -> Report:
    from edge.evaluation import files, runner, selection
    from edge.inference.session import load

    name, task, questions = _task(name, data)
    chosen = selection.select(questions, limit, task.TITLE)
    files.require_images(chosen, task.TITLE)
    introduced(bundle, debug, threads=threads)
    with load(bundle, threads=threads, debug=debug) as session:
        for note in session.plan.notes:
            say(note)
        run = runner.describe(session, name, task, questions)
        known, keep = _kept(output, run)
        with _progress(output) as report:
            lines = runner.ask(session, task, chosen, known, keep, report)
    return runner.summarise(run, task, chosen, lines)


def _task(name: str, data: Path) -> tuple[str, Task, list[Question]]:
    """A task by its name, or a folder of the project's own kind; and all its questions."""
    from edge.evaluation import tasks
    from edge.evaluation.folder import FolderTask

    if name in tasks.names() or not Path(name).is_dir():
        task = tasks.find(name)
        return name, task, task.read(tasks.locate(name, data))
    folder = Path(name)
    own = FolderTask(folder.resolve().name)
    if not any(folder.glob(own.MARKS[0])) and (others := tasks.holders(folder)):
        other = next(iter(others))
        raise UsageError(f"{name!r} holds files of {others[other]}", hint=f"--task {other} --data {name}")
    return "folder", own, own.read(folder)


def _kept(output: Path | None, run: Run) -> tuple[list[Line], Callable[[Line], None]]:
    """The answers of an earlier run, and what keeps a new one."""
    from edge.evaluation import answers_file

    if output is None:
        return [], lambda line: None
    file, known = answers_file.resume(output, run)
    return known, file.append


@contextmanager
def _progress(output: Path | None) -> Iterator[Callable[[Progress], None]]:
    """Shows the progress on stderr, and says after Ctrl-C how to go on."""
    from rich.console import Console

    from edge.cli.render_evaluation import Answers

    with Answers(Console(stderr=True)) as bar:
        try:
            yield bar.report
        except KeyboardInterrupt:
            bar.stop()
            kept = f"{output} holds them, and the same command goes on" if output else "-o FILE would have kept them"
            say(f"interrupted after {bar.done} answers: {kept}")
            raise


def _compare(paths: tuple[Path, Path], margin: float | None, as_json: bool) -> None:
    from edge.cli import render_evaluation as render
    from edge.evaluation.comparison import compare

    found = compare(*paths)
    share = None if margin is None else margin / 100
    print_json(found.to_json(share)) if as_json else print_rich(render.comparison(found, share))
    if share is not None and (verdict := found.paired.verdict(share)) != "no worse":
        low, high = 100 * found.paired.low, 100 * found.paired.high
        said = "worse" if verdict == "worse" else "not shown to be no worse"
        raise EdgeError(
            f"{paths[1]} is {said} than {paths[0]} by {margin:g} points: the difference is between {low:+.2f} and "
            f"{high:+.2f}",
            hint="take the better bundle" if verdict == "worse" else "ask more questions, or allow a larger --margin",
        )
