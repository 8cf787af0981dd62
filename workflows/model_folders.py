"""What ``genrec export`` and ``genrec import`` do: a run to a Hugging Face folder, and back."""

from __future__ import annotations

from pathlib import Path


def export(run: Path, folder: Path, licence: str) -> str:
    """Write the folder; returns what was done, as a sentence.

    Raises:
        InputError: no finished run, a folder that holds something, or a model that cannot be written.
    """
    from genrec.data.files import explaining_failed_writes
    from genrec.inference.hf_folder.export_run import export_run
    from genrec.inference.recommender import load

    with explaining_failed_writes("the export", folder.absolute().parent):
        check = export_run(load(run), run, folder.absolute(), licence)
    return (
        f"exported to {folder}; over {check.histories} histories, log-probabilities by semantic ID differ from the "
        f"policy's by {check.largest:.2g} at most, and {check.same_first:.0%} of the best items are the same"
    )


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
