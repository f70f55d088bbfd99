"""The verbs of the command line, thin over the functions that do them; imported only when one is run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from lookalike.cli import cleaning_flags, cleaning_verbs, data_flags, data_verbs, flags
from lookalike.cli.arguments import Verb, answered
from lookalike.cli.checks import (
    LOADED,
    is_model,
    overrides,
    picked,
    refuse_run,
    refuse_swapped,
    refuse_unknown,
    write_record,
)
from lookalike.cli.demo import demo
from lookalike.core import dist
from lookalike.core.devices import keep_freed
from lookalike.core.errors import UserError, meant
from lookalike.core.files import refuse_unwritable
from lookalike.evaluation import compare as comparing
from lookalike.evaluation import evaluate as measuring
from lookalike.evaluation.evaluation import Evaluation, Result
from lookalike.evaluation.segment import Segmented
from lookalike.evaluation.settings import configured
from lookalike.evaluation.study import StudyResult, conducted
from lookalike.exchange.export import refuse_filled
from lookalike.report.comparison import markdown
from lookalike.report.comparison import write as write_comparison
from lookalike.report.pictures import write_detections, write_segmentation
from lookalike.report.run import report as write_report
from lookalike.report.study import markdown as study_markdown
from lookalike.report.study import write as write_study
from lookalike.train.embeddings import files_of
from lookalike.train.exported import export as export_model
from lookalike.train.pretrain import Request, carry_out
from lookalike.train.screen import Screen
from lookalike.train.trained import load


def run(command: Verb, rest: Sequence[str], began: float) -> int:
    """Carry out one parsed command, given at ``began``; ``rest`` is what the parser did not know. The exit code."""
    keep_freed()
    if dist.started() > 1 and not isinstance(command, flags.Pretrain | flags.Evaluate | data_flags.Embed):
        raise UserError(f"{type(command).__name__.lower()} runs in one process: leave out torchrun")
    files, folders = outputs(command)
    for path in (*files, *folders):
        refuse_unwritable(path, folder=path in folders)
    if isinstance(command, flags.Pretrain):
        return pretrain(command, rest, began)
    if isinstance(command, flags.Compare):
        return compare(command, rest)
    if isinstance(command, data_flags.Preview):
        return data_verbs.preview(command, rest)
    refuse_unknown(command, rest)
    if isinstance(command, flags.Evaluate):
        return evaluate(command)
    return _ACTIONS[type(command)](command)


def outputs(command: Verb) -> tuple[list[str], list[str]]:
    """The files, and the folders, that a command will write: no work is done for one that cannot be written.

    Those of pretraining and of prepare are looked at by the functions themselves.
    """
    files = [*(path for name in ("json", "page") if (path := getattr(command, name, None))), *page_of(command)]
    match command:
        case flags.EvaluateFit(out=str(out)) | flags.Compare(out=out) | flags.Study(out=out):
            return files, [out]
        case data_flags.Doctor(data=str(data), out=out) if not is_model(data):
            return files, [out]
        case data_flags.Embed(out=out):
            return [str(file) for file in files_of(Path(out))], []
        case data_flags.Preview(out=out) | flags.Report(out=out):
            return [out], []
        case cleaning_flags.Finds(out=out):
            tree = getattr(command, "keep_tree", None)
            return [*files, *([out] if out else [])], [tree] if tree else []
    return files, []


def pretrain(command: flags.Pretrain, rest: Sequence[str], began: float) -> int:
    """Exit code 0, or 128 and the number of the signal that stopped the run."""
    refuse_run(command.data, "pretrain")
    same = [field.name for field in fields(Request) if hasattr(command, field.name)]
    request = Request(
        settings=dict(overrides(command, rest)),
        supervised=isinstance(command, flags.Supervised),
        **picked(command, *same),
    )
    done = carry_out(request, began)
    return 128 + done.signal if done.signal else 0


def evaluate(command: flags.Evaluate[Evaluation]) -> int:
    """Prints and writes what the command measures."""
    spec = command.settings
    page = next(iter(page_of(command)), None)
    refuse_swapped(command.run, command.data)
    with measuring.processes(spec), Screen(spec.NAME, quiet=not dist.first()) as screen:
        out = command.out if isinstance(command, flags.EvaluateFit) else None
        trained = load(command.run, say=screen.say, **picked(command, *LOADED, "untrained", "weights", "precision"))
        how: dict[str, Any] = {"out": out, "workers": command.workers, "progress": screen.work, "say": screen.say}
        result = measuring.evaluate(trained, command.data, spec, **how)
        screen.say(str(result))
        if page is not None:
            draw(Path(page), command, result)
            screen.say(f"written: {page}")
    if result.numbers:  # which the first process of torchrun has
        about = picked(command, "untrained", "weights", "run", "model", "data", "precision")
        about |= {"task": spec.NAME, "metric": result.metric}
        write_record(command.json, result.record() | about)
    return 0


def page_of(command: Verb) -> list[str]:
    """The page that an evaluation with something to look at writes, if it is one."""
    return [command.page or f"{command.settings.NAME}.html"] if isinstance(command, flags.EvaluateScenes) else []


def draw(page: Path, command: flags.Evaluate[Evaluation], result: Result) -> None:
    """The pictures, their annotations and the predictions."""
    about = {name: str(value) for name, value in result.settings.items()}
    about |= {"run": command.run, "data": command.data, "weights": command.weights or "its own"}
    title = f"{command.settings.NAME} · {Path(command.data).name}"
    if isinstance(result.detail, Segmented):
        write_segmentation(page, title, str(result), result.detail, about)
        return
    write_detections(page, title, str(result), result.detail.pictures, result.detail.detections, about)


def compare(command: flags.Compare, rest: Sequence[str]) -> int:
    """Prints and writes the table."""
    spec = settings_of(command, rest)
    with Screen("compare") as screen:
        try:
            same = picked(command, "trials", "weights", "metric", "out", *LOADED)
            table = comparing.compare(command.runs, command.on, spec, progress=screen.work, say=screen.say, **same)
        except (KeyboardInterrupt, SystemExit):
            screen.say(f"stopped: finished trials are kept in {command.out}, and the same command continues")
            raise
        screen.say("\n" + markdown(table))
        for path in write_comparison(table, Path(command.out)):
            screen.say(f"written: {path}")
    return 0


def settings_of(command: flags.Compare, rest: Sequence[str]) -> Evaluation:
    """The task with the settings that the parser did not know, read as ``lookalike evaluate TASK`` reads them."""
    default = configured(command.task, {}, trials=True)
    spec: Evaluation
    prog = f"lookalike compare --task {command.task}"
    spec, unknown = answered(type(default), rest, default=default, prog=prog)
    if unknown and unknown[0].startswith("--"):
        name = unknown[0].split("=")[0]
        known = [f"--{field.name.replace('_', '-')}" for field in fields(spec)]
        raise UserError(f"{command.task} has no setting {name!r}; {meant(name, known)}")
    refuse_unknown(command, unknown)
    return spec


def study(command: flags.Study) -> int:
    """Prints and writes the table, anew after each run."""
    refuse_run(command.data, "study")
    out, written = Path(command.out), list[Path]()
    with Screen("study") as screen:
        how = picked(command, "steps", "seeds", "tasks", "workers")

        def done(outcome: StudyResult) -> None:
            written[:] = write_study(outcome, out)

        try:
            outcome = conducted(command.name, command.data, out, **how, progress=screen.work, say=screen.say, done=done)
        except (KeyboardInterrupt, SystemExit):
            screen.say(f"stopped: finished runs are kept in {command.out}, and the same command continues")
            raise
        screen.say("\n" + study_markdown(outcome))
        for path in written:
            screen.say(f"written: {path}")
    return 0


def export(command: flags.Export) -> int:
    """Prints what the other library found."""
    refuse_filled(Path(command.out))
    with Screen("export") as screen:
        trained = load(command.run, say=screen.say, **picked(command, *LOADED))
        for line in export_model(trained, command.to, command.out, command.numbers).lines:
            screen.say(line)
    return 0


def report(command: flags.Report) -> int:
    """Writes the page."""
    with Screen("report") as screen:
        how = picked(command, "numbers", "data")
        page = write_report(command.runs, command.out, progress=screen.work, **how)
        screen.say(f"written: {page}; open it in a browser")
    return 0


def try_demo(command: flags.Demo) -> int:
    """Exit code 0, or 128 and the number of the signal that stopped it."""
    return demo(Path(command.out), command.overwrite)


_ACTIONS: dict[type[Verb], Callable[[Any], int]] = {
    flags.Demo: try_demo,
    flags.Study: study,
    flags.Export: export,
    flags.Report: report,
    **data_verbs.ACTIONS,
    **cleaning_verbs.ACTIONS,
}
