"""A training that is cut off after a number of checkpoints."""

from typing import Any

from genrec.learning.checkpoints import DirectoryCheckpoints


class Cut(Exception):
    """Raised where the training is cut off."""


def cut_after(checkpoints: DirectoryCheckpoints, saves: int) -> DirectoryCheckpoints:
    """``checkpoints`` that raise ``Cut`` once ``saves`` of them have been written."""
    keep, saved = checkpoints.save, 0

    def save(*arguments: Any) -> None:
        nonlocal saved
        keep(*arguments)
        saved += 1
        if saved == saves:
            raise Cut

    checkpoints.save = save  # type: ignore[method-assign]
    return checkpoints
