"""The entry of `jepsen-lite`: run, check, list, replay. Exit status 0 ok, 1 illegal, 2 unknown or no run."""

from __future__ import annotations

import asyncio
import math
import re
import signal
import sys
import traceback
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from jepsen_lite import history, judging, nemesis, report, runner, simulated, targets, workloads
from jepsen_lite.judging import Judgement
from jepsen_lite.nemesis import Plan
from jepsen_lite.runner import Options, Outcome
from jepsen_lite.verdict import Word

STATUS = {Word.OK: 0, Word.ILLEGAL: 1, Word.UNKNOWN: 2}
NO_RUN = 2
_INTERRUPTED = 130
_T = TypeVar("_T")


class Problem(click.ClickException):
    """One line, and exit status 2: no verdict is never a pass."""

    exit_code = NO_RUN

    def show(self, file: object = None) -> None:
        """On standard error."""
        del file
        click.echo(f"jepsen-lite: {self.message}", err=True)


class FiniteRange(click.FloatRange):
    """Numbers of a range; nan lies in every one of click's."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Refuse it as any other that lies outside."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not in the range {self._describe_range()}.", param, ctx)
        return number


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="kvring", prog_name="jepsen-lite")
def cli() -> None:
    r"""Run a workload while things go wrong, and judge what clients were told.

    \b
      jepsen-lite list
      jepsen-lite run --workload register --nemesis halves --time 30
      jepsen-lite check jepsen-runs/register-halves-s1/history.jsonl
      jepsen-lite replay jepsen-runs/register-halves-s1
    """


@cli.command("run")
@click.option("--target", type=click.Choice(list(targets.ABOUT)), default="processes", show_default=True)
@click.option(
    "--workload", "-w", type=click.Choice(list(workloads.ABOUT)), default="register", show_default=True
)
@click.option("--nemesis", "-n", metavar="N", default="halves", show_default=True,
              help="One of `jepsen-lite list`, or single ones in turn: halves+kill.")  # fmt: skip
@click.option(
    "--time", "seconds", type=FiniteRange(4, 3600), default=60.0, show_default=True, help="Seconds."
)
@click.option("--seed", type=int, default=1, show_default=True, help="Decides the faults, and what is asked.")
@click.option("--nodes", type=click.IntRange(3, 9), default=5, show_default=True)
@click.option(
    "--replicas", type=click.IntRange(1, 7), default=3, show_default=True, help="Copies of each key."
)
@click.option("--clients", type=click.IntRange(2, 100), default=10, show_default=True)
@click.option(
    "--rate", type=FiniteRange(1, 5000), default=100.0, show_default=True, help="Operations a second."
)
@click.option("--links", type=click.Choice(["auto", "kernel", "proxy"]), default="auto", show_default=True,
              help="What cuts links: nftables, which needs root, or a proxy.")  # fmt: skip
@click.option("--level", type=click.Choice(["quorum", "one"]), default="quorum", show_default=True,
              help="Of plain reads and writes; `one` is there to be convicted.")  # fmt: skip
@click.option("--dir", "directory", metavar="DIR", help="Where files go.  [default: jepsen-runs/...]")
def run_command(directory: str | None, **given: Any) -> int:
    """Run a workload under a nemesis, judge it, write a report."""
    options = Options(**given)
    try:
        plan = nemesis.plan(options.nemesis, seed=options.seed, nodes=options.nodes, seconds=options.seconds)
    except nemesis.NoPlanError as problem:
        raise Problem(str(problem)) from None
    return _run(options, plan, Path(directory) if directory else _fresh(_name(options)))


@cli.command("replay")
@click.argument("run", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--dir", "directory", metavar="DIR", help="Where files go.  [default: beside the first run]")
def replay_command(run: Path, directory: str | None) -> int:
    """Run the plan of an earlier run again: same seed, same faults."""
    try:
        options, plan = runner.load_plan(run)
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise Problem(f"{run} holds no plan.json of a run: {problem}") from None
    return _run(options, plan, Path(directory) if directory else _fresh(run.name, run.parent))


@cli.command("check")
@click.argument("path", metavar="HISTORY")
def check_command(path: str) -> int:
    """Judge a saved history again."""
    try:
        found = history.load(path)
        judgement = judging.judge_saved(found)
    except history.HistoryError as problem:
        raise Problem(str(problem)) from None
    except KeyError as missing:
        raise Problem(f"{path}: its header names no workload that is known: {missing}") from None
    _tell(judgement)
    return STATUS[judgement.word]


@cli.command("list")
def list_command() -> None:
    """Show workloads, nemeses and targets."""
    for heading, table in (
        ("workloads", workloads.ABOUT),
        ("nemeses", nemesis.ABOUT),
        ("targets", targets.ABOUT),
    ):
        click.echo(f"{heading}:")
        for name, about in table.items():
            click.echo(f"  {name:11} {about}")
    click.echo(f"nemeses of the target sim: {', '.join(simulated.NAMES)}")


def _name(options: Options) -> str:
    target = "" if options.target == "processes" else f"{options.target}-"
    return f"{target}{options.workload}-{options.nemesis}-s{options.seed}"


def _fresh(name: str, parent: Path = Path("jepsen-runs")) -> Path:
    """A folder that is not there yet."""
    stem = re.sub(r"\.[0-9]+$", "", name)
    taken = [stem, *(f"{stem}.{number}" for number in range(2, 10_000))]
    return parent / next(each for each in taken if not (parent / each).exists())


def _run(options: Options, plan: Plan, directory: Path) -> int:
    if options.target == "sim":
        try:
            judged = simulated.simulate(options)
        except nemesis.NoPlanError as problem:
            raise Problem(str(problem)) from None
        click.echo(judged.text)
        return STATUS[judged.word]
    if directory.exists() and not directory.is_dir():
        raise Problem(f"{directory} is no folder; a run needs one of its own, or none: leave --dir out")
    if directory.exists() and any(directory.iterdir()):
        raise Problem(f"{directory} is not empty; a run needs a folder of its own, or none: leave --dir out")
    live = sys.stderr.isatty()

    def say(text: str) -> None:
        if live:
            click.echo(f"\r\x1b[K{text}", err=True, nl=False)

    try:
        outcome = _interruptible(runner.run(options, plan, directory, say=say))
    except targets.TargetError as problem:
        say("")
        raise Problem(str(problem)) from None
    say("")
    runner.save(directory, options, plan, outcome)
    try:
        where = str(report.write(directory, options, plan, outcome))
    except report.NoTemplatingError as problem:
        where = str(problem)
    _tell(outcome.judgement, outcome)
    click.echo(f"report: {where}")
    click.echo(f"history: {directory / 'history.jsonl'}")
    click.echo(f"again: {options.command()}")
    return STATUS[outcome.judgement.word]


def _interruptible(main: Coroutine[None, None, _T]) -> _T:
    """Run to the end; SIGTERM leaves as Ctrl-C does, through every `finally`."""

    async def watched() -> _T:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await main

    try:
        return asyncio.run(watched())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def _tell(judgement: Judgement, outcome: Outcome | None = None) -> None:
    for note in outcome.notes if outcome else ():
        click.echo(note)
    for verdict in judgement.verdicts:
        if verdict.word is not Word.OK:
            click.echo(str(verdict))
    checks = dict.fromkeys(f"{verdict.check} {verdict.word}" for verdict in judgement.verdicts)
    click.echo(f"checks: {', '.join(checks)}")
    click.echo("figures: " + ", ".join(f"{name} {value}" for name, value in _flat(judgement.figures)))
    click.echo(f"verdict: {judgement.word}")


def _flat(figures: dict[str, object]) -> list[tuple[str, object]]:
    return [
        pair
        for name, value in figures.items()
        for pair in (list(value.items()) if isinstance(value, dict) else [(name, value)])
        if pair[1] is not None
    ]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run `jepsen-lite` and end the process with the verdict's status."""
    try:
        result = cli.main(
            list(arguments) if arguments is not None else None, prog_name="jepsen-lite", standalone_mode=False
        )
        status = result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as asked:
        asked.show()
        status = NO_RUN
    except click.ClickException as problem:
        problem.show()
        status = NO_RUN
    except (KeyboardInterrupt, click.Abort):
        status = _INTERRUPTED
    except Exception:  # noqa: BLE001 - Python would end with the status that means illegal
        traceback.print_exc()
        status = NO_RUN
    sys.exit(status)


if __name__ == "__main__":
    main()
