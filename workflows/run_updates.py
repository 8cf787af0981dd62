"""What ``genrec update`` does: a run goes on with new events, or back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def update(run: Path | str, log: Path, items: Path | None, overrides: Mapping[str, object]) -> str:
    """Update the run; returns what was done, as a sentence.

    Raises:
        InputError: what cannot be used, or nothing new.
    """
    from cluster.update.run_update import update_run
    from genrec.config import Compute
    from genrec.data.files import explaining_failed_writes

    written = run.absolute() if isinstance(run, Path) else Path(Compute().cache).expanduser()
    with explaining_failed_writes("the update", written):
        done = update_run(run, log, items, overrides)
    start, last = done.curve[0], done.curve[-1]
    seen = ", ".join(f"{name} {start[name]:.4f}" for name in ("old", "new") if name in start)
    begin = f"{done.counts['new']} new events, {done.inserted} items inserted; before, NDCG@10 of queries: {seen}"
    if done.run is None:
        return f"{begin}; no version was better ({last.get('refused', 'no gain')}): nothing was published"
    best = max((one for one in done.curve if "refused" not in one), key=lambda one: one.get("old", 0) + one["new"])
    after = ", ".join(f"{name} {best[name]:.4f}" for name in ("old", "new") if name in best)
    published = done.run if isinstance(run, Path) else f"{done.run.name}, beside {run}"
    return f"{begin}; after: {after}; published: {published}"


def roll_back(run: Path | str) -> str:
    """Go back to the run before the update; returns what was done, as a sentence."""
    from cluster.update.run_update import roll_back as back

    return f"the newest run of its name is again {back(run).where}"
