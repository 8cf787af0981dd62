"""Write a finished run as a Hugging Face folder that others can load without genrec.

RUN is the directory of a run's report, DIR a new folder. It holds the model with its adapters merged, a tokenizer with
the SID tokens, a model card, hashes, and catalog_logits.py, which keeps `generate` inside the catalogue. What a plain
model cannot hold, such as an item head or a prior, is said in the card and as a warning.

genrec export storage/runs/demo demo-model --licence apache-2.0
"""

from __future__ import annotations

from pathlib import Path

from workflows.cli import main


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


if __name__ == "__main__":
    main("export")
