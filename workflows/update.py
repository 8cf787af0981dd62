"""Let a finished run go on learning from new events, and publish it for /v1/reload if the guard finds it better.

RUN is the directory of a run's report, LOG a table of interactions. Events are appended to the log, items of --items
that the catalogue lacks are inserted, and the policy trains for some steps on new queries and a share of old ones,
held near to what it was. NDCG@10 on old and on new validation queries decides whether the new run is published.

genrec update storage/runs/demo --log today.parquet --items new_items.parquet
genrec update storage/runs/demo --log today.parquet learning.update.steps=200
genrec update storage/runs/demo --back
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from workflows.cli import main


def update(run: Path, log: Path, items: Path | None, overrides: Mapping[str, object]) -> str:
    """Update the run; returns what was done, as a sentence.

    Raises:
        InputError: what cannot be used, or nothing new.
    """
    from cluster.update.run_update import update_run
    from genrec.data.files import explaining_failed_writes

    with explaining_failed_writes("the update", run.absolute()):
        done = update_run(run, log, items, overrides)
    start, last = done.curve[0], done.curve[-1]
    seen = ", ".join(f"{name} {start[name]:.4f}" for name in ("old", "new") if name in start)
    begin = f"{done.counts['new']} new events, {done.inserted} items inserted; before, NDCG@10 of queries: {seen}"
    if done.run is None:
        return f"{begin}; no version was better ({last.get('refused', 'no gain')}): nothing was published"
    best = max((one for one in done.curve if "refused" not in one), key=lambda one: one.get("old", 0) + one["new"])
    after = ", ".join(f"{name} {best[name]:.4f}" for name in ("old", "new") if name in best)
    return f"{begin}; after: {after}; published: {done.run}"


def roll_back(run: Path) -> str:
    """Go back to the run before the update; returns what was done, as a sentence."""
    from cluster.update.run_update import roll_back as back

    return f"the newest run of its name is again {back(run)}"


if __name__ == "__main__":
    main("update")
