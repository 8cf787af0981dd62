"""Vectors to semantic IDs without collisions, the catalogue with its trie, and the health page."""

from __future__ import annotations

from cluster.artifacts import Artifact
from cluster.stages import steps
from genrec.config import Config
from workflows import embed, prepare
from workflows.change import OPTIONS, change
from workflows.door import main


def run(config: Config, insert: str | None = None, remove: str | None = None) -> Artifact:
    """Give every item of the prepared catalogue its SID, then change the live catalogue where that is asked for."""
    data = prepare.run(config)
    output = steps.assign(config, data, None if config.sid.quantizer == "given" else embed.run(config))
    change(config, output, insert, remove)
    return output


if __name__ == "__main__":
    main(run, __doc__, options=OPTIONS)
