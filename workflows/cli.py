"""The command line: ``genrec VERB CONFIG... [KEY=VALUE]...``, the same as ``python -m workflows.VERB CONFIG...``.

The help of a verb is the docstring of its module. What is slow to import is imported by the command that needs it, so
that ``--help`` and ``--show`` answer at once.
"""

from __future__ import annotations

import signal
import sys
from io import TextIOWrapper

import click

from cluster.interruption import LINE, end_if_interrupted, end_on_signals
from genrec.errors import InputError
from workflows.commands import COMMANDS, Verbs, stage_command
from workflows.help_rows import LAST_STAGE

INTERRUPTED = 128 + signal.SIGINT


class CommandLine(Verbs):
    """``genrec``: makes a verb's command when it is named, and turns errors of the user into messages."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, in the order of the pipeline."""
        return [*LAST_STAGE, *COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a verb, or None."""
        if cmd_name in LAST_STAGE:
            return stage_command(cmd_name)
        return COMMANDS[cmd_name]() if cmd_name in COMMANDS else None

    def invoke(self, ctx: click.Context) -> object:
        """Run the command; bad input ends with one message and exit code 2, Ctrl-C with 130."""
        try:
            return super().invoke(ctx)
        except InputError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            end_if_interrupted()
            click.echo(f"\n{LINE}", err=True)
            ctx.exit(INTERRUPTED)


@click.command("genrec", cls=CommandLine, no_args_is_help=True, context_settings={"max_content_width": 110})
@click.version_option(package_name="genrec", message="%(prog)s %(version)s")
def command_line() -> None:
    """Generative recommendation: a catalogue and a log in, a recommender and its report out.

    CONFIG is a YAML file, or the name of a packaged one such as demo (what to learn) or cpu (where to run). Later ones
    win, and KEY=VALUE wins over all. Finished stages are found again and skipped.

    \b
        genrec full demo cpu                          everything, from the raw log to the report
        genrec sft demo cpu learning.sft.lr=1e-3      up to supervised fine-tuning, with another learning rate
        genrec full demo cpu --show                   the resolved config, and nothing else
    """


def main(verb: str | None = None) -> None:
    """Run this process's arguments; ``verb`` is given where its module was started (``python -m workflows.VERB``)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # A terminal that knows only ASCII shows ? for the rest.
    end_on_signals()
    given = [] if verb is None else [verb]
    command_line.main([*given, *sys.argv[1:]], prog_name="genrec")


if __name__ == "__main__":
    main()
