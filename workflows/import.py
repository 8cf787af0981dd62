"""Make a run of a folder that `genrec export` wrote, so that genrec.load and genrec serve take it.

Every file is compared with its hash. The run has no users and no ItemKNN prior, since both need the log.

genrec import demo-model
genrec import demo-model --storage other --name bought
"""

from __future__ import annotations

from pathlib import Path

from workflows.cli import main


def import_folder(folder: Path, storage: Path, name: str) -> str:
    """Make the run; returns what was done, as a sentence.

    Raises:
        InputError: no exported folder, or one that was changed.
    """
    from genrec.data.files import explaining_failed_writes
    from genrec.inference.hf_folder.import_run import import_run
    from genrec.inference.recommender import load

    with explaining_failed_writes("the import", storage.absolute()):
        run = import_run(folder, storage.absolute(), name)
    items = len(load(run).view.ids)
    return f"imported {items} items and their policy: {run}"


if __name__ == "__main__":
    main("import")
