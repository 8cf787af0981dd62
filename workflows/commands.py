"""The commands of the verbs: their arguments, and the work that they begin."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from functools import partial, wraps
from importlib import import_module
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Concatenate, ParamSpec

import click

from genrec.errors import InputError, unknown_name
from workflows.help_rows import (
    LAST_STAGE,
    Rows,
    benchmark_rows,
    catalog_rows,
    export_rows,
    import_rows,
    judge_rows,
    manifest_rows,
    report_rows,
    serve_rows,
    stage_rows,
    update_rows,
)

if TYPE_CHECKING:
    from genrec.config import Config

P = ParamSpec("P")

TAKE_REWARDS = ("grpo", "tune", "evaluate", "full")
INPUT_AND_OUTPUT = "Input and output"


class Verb(click.Command):
    """A command with a section of its own in its help: a title, and rows that are looked up only when it is shown."""

    title = ""
    rows: Callable[[], Rows]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the section, then the options."""
        with formatter.section(self.title):
            formatter.write_dl(self.rows())
        super().format_options(ctx, formatter)


class UserFile(click.ParamType):
    """A path; ``~`` is the user's home also where the shell leaves it, as in ``--rewards=~/mine.py``."""

    name = "file"

    def convert(self, value: str | Path, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path with the home in place of ``~``."""
        try:
            return Path(value).expanduser()
        except RuntimeError as error:
            raise InputError(f"{value}: {error}; give the whole path") from None


class UserRun(click.ParamType):
    """A run: the directory of its report, or its URL in an object store, which stays as it is."""

    name = "run"

    def convert(self, value: str | Path, param: click.Parameter | None, ctx: click.Context | None) -> Path | str:
        """The directory as a path, the URL as text."""
        return str(value) if "://" in str(value) else UserFile().convert(value, param, ctx)


class Verbs(click.Group):
    """A group that names the nearest command for an unknown one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command of the first argument.

        Raises:
            InputError: there is none of that name.
        """
        known = self.list_commands(ctx)
        if args and not args[0].startswith("-") and args[0] not in known and not ctx.resilient_parsing:
            raise unknown_name("command", args[0], known)
        return super().resolve_command(ctx, args)


def takes_config(work: Callable[Concatenate[Config, P], None]) -> Callable[..., None]:
    """A command's callback that reads a config, and calls ``work(config, ...)`` unless ``--show`` was given."""

    @click.argument("words", metavar="CONFIG... [KEY=VALUE]...", nargs=-1)
    @click.option("--show", is_flag=True, help="Print the resolved config as YAML, and exit.")
    @click.option("-v", "--verbose", is_flag=True, help="Show debugging messages too.")
    @click.option("-q", "--quiet", is_flag=True, help="Show warnings and errors only.")
    @wraps(work)
    def callback(
        words: Sequence[str], show: bool, verbose: bool, quiet: bool, *args: P.args, **options: P.kwargs
    ) -> None:
        from genrec.config import load_config, to_yaml

        if verbose and quiet:
            raise click.UsageError("got --verbose and --quiet; wanted: one of them")
        config = load_config([word for word in words if "=" not in word], [word for word in words if "=" in word])
        if show:
            click.echo(to_yaml(config), nl=False)
            return
        _start(config, logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
        from genrec.data.files import explaining_failed_writes

        with explaining_failed_writes("the command", config.storage_path):
            work(config, *args, **options)

    return callback


def _start(config: Config, level: int) -> None:
    """Make this process ready for work."""
    from cluster.progress import show_in_terminal
    from cluster.session import configure_process, require_packages
    from cluster.trackers import require_trackers

    configure_process(config)
    require_packages(config)
    require_trackers(config)
    show_in_terminal(level)


def stage_command(verb: str) -> click.Command:
    """The command that runs the pipeline to the last stage of ``verb``."""

    @takes_config
    def run(config: Config, rewards: Path | None = None) -> None:
        from cluster import pipeline, reward_file

        reward_file.settings(rewards)  # Refuses a missing file now, not hours later.
        pipeline.run(config, LAST_STAGE[verb], reward_file=rewards)

    if verb in TAKE_REWARDS:
        about = "Python file with a mapping TERMS of reward terms; rewards.custom.NAME gives their weights."
        run = click.option("--rewards", metavar="FILE", type=UserFile(), help=about)(run)
    return _verb(verb, run, help_of(f"workflows.{verb}"), INPUT_AND_OUTPUT, partial(stage_rows, verb))


def bench_command() -> click.Command:
    """``genrec bench NAME CONFIG...``."""

    @click.argument("name")
    @click.option("--json", "as_json", is_flag=True, help="Print the result as one line of JSON, too.")
    @takes_config
    def run(config: Config, name: str, as_json: bool) -> None:
        registry = import_module("benchmarks.registry")
        if name not in registry.BENCHMARKS:
            raise unknown_name("benchmark", name, registry.BENCHMARKS)
        bench = registry.run(name, config)
        click.echo(bench.table())
        if as_json:
            click.echo(bench.as_json())
        if bench.failure:
            raise click.ClickException(bench.failure)

    return _verb("bench", run, help_of("workflows.bench"), "Benchmarks", benchmark_rows)


def report_command() -> click.Command:
    """``genrec report RUN...``."""

    @click.argument("runs", metavar="RUN...", type=UserRun(), nargs=-1)
    @click.option("--out", metavar="DIRECTORY", type=UserFile(), default=Path("report"), help="Where the files go.")
    def run(runs: Sequence[Path | str], out: Path) -> None:
        from genrec.data.files import explaining_failed_writes
        from genrec.evaluation.report.compare import report_runs

        with explaining_failed_writes("the report", out):
            click.echo(f"report: {report_runs([_on_this_machine(run) for run in runs], out)}")

    return _verb("report", run, help_of("workflows.report"), INPUT_AND_OUTPUT, report_rows)


def judge_command() -> click.Command:
    """``genrec judge RUN CONFIG...``."""

    @click.argument("run", metavar="RUN", type=UserRun())
    @takes_config
    def judge(config: Config, run: Path | str) -> None:
        from cluster.judge import judge_run

        verdict, page = judge_run(config, _on_this_machine(run))
        click.echo(f"{verdict}\njudgement: {page}")

    return _verb("judge", judge, help_of("workflows.judge"), INPUT_AND_OUTPUT, judge_rows)


def catalog_command() -> click.Command:
    """``genrec catalog insert FILE CONFIG...`` and ``genrec catalog remove ID[,ID…] CONFIG...``."""

    @click.argument("file", metavar="FILE", type=UserFile())
    @takes_config
    def insert(config: Config, file: Path) -> None:
        """Give each item of a file the nearest free semantic ID.

        The file is Parquet, CSV, TSV or JSON lines. Items that were removed before return to the semantic ID that they
        had.

        \b
            genrec catalog insert new_items.parquet demo cpu
        """
        from workflows.catalog_changes import insert

        click.echo(insert(config, file))

    @click.argument("ids", metavar="ID[,ID…]")
    @takes_config
    def remove(config: Config, ids: str) -> None:
        """Hide items from every search; their semantic IDs stay theirs.

        \b
            genrec catalog remove 1029743,1106523 demo cpu
        """
        from workflows.catalog_changes import remove

        click.echo(remove(config, ids.split(",")))

    commands: dict[str, click.Command] = {
        run.__name__: _verb(run.__name__, run, inspect.getdoc(run) or "", INPUT_AND_OUTPUT, catalog_rows)
        for run in (insert, remove)
    }
    return Verbs("catalog", commands=commands, help=help_of("workflows.catalog"))


def serve_command() -> click.Command:
    """``genrec serve RUN [serve.KEY=VALUE]...``."""

    @click.argument("run", metavar="RUN", type=UserRun())
    @click.argument("words", metavar="[KEY=VALUE]...", nargs=-1)
    @click.option("--second", metavar="RUN", type=UserRun(), help="Another run of the same storage, served beside it.")
    @click.option("--share", type=click.FloatRange(0, 1), default=0.5, help="Of the users, who get the second run.")
    def callback(run: Path | str, words: Sequence[str], second: Path | str | None, share: float) -> None:
        from cluster.progress import show_in_terminal
        from cluster.serve.command import serve
        from genrec.config.loading import read_overrides

        show_in_terminal(logging.INFO)
        serve(run, second, share, read_overrides(words))

    return _verb("serve", callback, help_of("workflows.serve"), "Settings", serve_rows)


def manifest_command() -> click.Command:
    """``genrec manifest FILE [CONFIG...] [KEY=VALUE]...``."""

    @click.argument("file", metavar="FILE", type=UserFile())
    @click.argument("words", metavar="[CONFIG]... [KEY=VALUE]...", nargs=-1)
    def callback(file: Path, words: Sequence[str]) -> None:
        from cluster.manifest import check

        click.echo(check(file, words).table())

    return _verb("manifest", callback, help_of("workflows.manifest"), "Manifests", manifest_rows)


def export_command() -> click.Command:
    """``genrec export RUN DIR``."""

    @click.argument("run", metavar="RUN", type=UserRun())
    @click.argument("folder", metavar="DIR", type=UserFile())
    @click.option("--licence", default="other", help="Of the model, for its card, such as apache-2.0.")
    def callback(run: Path | str, folder: Path, licence: str) -> None:
        _log_alone()
        click.echo(import_module("workflows.model_folders").export(_on_this_machine(run, parts=True), folder, licence))

    return _verb("export", callback, help_of("workflows.export"), INPUT_AND_OUTPUT, export_rows)


def import_command() -> click.Command:
    """``genrec import DIR``."""

    @click.argument("folder", metavar="DIR", type=UserFile())
    @click.option("--storage", default="storage", show_default=True, help="Where the run is made.")
    @click.option("--name", default="", help="Of the run; without, as it was.")
    def callback(folder: Path, storage: str, name: str) -> None:
        if "://" in storage:
            raise InputError(f"--storage {storage}: a run is imported into a directory; got a URL")
        _log_alone()
        place = UserFile().convert(storage, None, None)
        click.echo(import_module("workflows.model_folders").import_folder(folder, place, name))

    return _verb("import", callback, help_of("workflows.import"), INPUT_AND_OUTPUT, import_rows)


def update_command() -> click.Command:
    """``genrec update RUN --log FILE [learning.update.KEY=VALUE]...``."""

    @click.argument("run", metavar="RUN", type=UserRun())
    @click.argument("words", metavar="[KEY=VALUE]...", nargs=-1)
    @click.option("--log", metavar="FILE", type=UserFile(), help="New events: user, item, timestamp.")
    @click.option("--items", metavar="FILE", type=UserFile(), help="Items to insert, where the catalogue lacks them.")
    @click.option("--back", is_flag=True, help="Go back to the run before the last update.")
    def callback(run: Path | str, words: Sequence[str], log: Path | None, items: Path | None, back: bool) -> None:
        from genrec.config.loading import read_overrides

        if back == (log is not None):
            raise click.UsageError("wanted either --log FILE or --back")
        overrides = read_overrides(words)
        if foreign := [key for key in overrides if not key.startswith(("learning.update.", "compute.", "seed"))]:
            raise InputError(f"got {foreign[0]!r}; an update takes learning.update.KEY, compute.KEY and seed")
        _log_alone()
        work = import_module("workflows.run_updates")
        click.echo(work.roll_back(run) if log is None else work.update(run, log, items, overrides))

    return _verb("update", callback, help_of("workflows.update"), "Settings", update_rows)


def _on_this_machine(run: Path | str, *, parts: bool = False) -> Path:
    """The directory of a run's report; the files of one in an object store are fetched first, its parts if wanted."""
    from genrec.inference.run_place import RunPlace

    return run if isinstance(run, Path) else RunPlace.find(run).directory(parts=parts)


def _log_alone() -> None:
    """Make this process ready for work that has no config."""
    from cluster.progress import show_in_terminal
    from cluster.session import silence_libraries

    silence_libraries()
    show_in_terminal(logging.INFO)


def _verb(name: str, callback: Callable[..., None], text: str, title: str, rows: Callable[[], Rows]) -> Verb:
    command = click.command(name, cls=Verb, help=text, no_args_is_help=True)(callback)
    command.title, command.rows = title, rows
    return command


def help_of(module: str) -> str:
    """A module's docstring as help: the paragraph of commands is indented, and keeps its lines."""
    paragraphs = inspect.cleandoc(import_module(module).__doc__ or "").split("\n\n")
    return "\n\n".join(f"\b\n{indent(text, '    ')}" if text.startswith("genrec ") else text for text in paragraphs)


COMMANDS: dict[str, Callable[[], click.Command]] = {
    "report": report_command,
    "judge": judge_command,
    "catalog": catalog_command,
    "export": export_command,
    "import": import_command,
    "update": update_command,
    "serve": serve_command,
    "manifest": manifest_command,
    "bench": bench_command,
}
"""The verbs that are no stages of the pipeline, and what makes each one's command."""
