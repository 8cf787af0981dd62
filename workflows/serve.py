"""Serve a finished run over HTTP, or two of them with a share of the users each.

RUN is the directory of a run's report. The environment variable GENREC_API_KEY (16 characters or more) is the key that
inserts, removals and reloads ask for. /docs shows every route.

genrec serve storage/runs/demo
genrec serve storage/runs/demo serve.port=8080 serve.replicas=2
genrec serve storage/runs/demo --second storage/runs/other --share 0.2
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def serve(run: Path, second: Path | None, share: float, words: dict[str, str]) -> None:
    """Serve until interrupted.

    Raises:
        InputError: a run that cannot be served, an unknown setting, or a port that is taken.
    """
    from cluster.serve.command import read_settings, serve_until_interrupted
    from cluster.session import configure_process

    config = read_settings(run, second, words)
    configure_process(config)
    from cluster.serve.application import ServeArguments

    others = {} if second is None else {"second_run": str(second), "second_share": share}
    serve_until_interrupted(ServeArguments(run=str(run), **others, **config.serve.model_dump()), config)


if __name__ == "__main__":
    from workflows.cli import main

    main("serve")
