"""Which runs are served, which user gets which, and the runs of the last reload, in a file that all replicas read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from genrec.data.files import write_json
from genrec.errors import InputError


@dataclass(frozen=True)
class RunPlace:
    """Which run: the name that it was asked for by, and the directory of its report, symbolic links resolved."""

    name: str
    directory: Path

    @classmethod
    def find(cls, directory: Path) -> RunPlace:
        """The run whose report is in ``directory``, or where that points to."""
        return cls(directory.name, directory.resolve())


@dataclass(frozen=True)
class Split:
    """Which share of the users the second of two runs gets; by a hash, so that a user stays with a run."""

    second: float = 0.0

    def of(self, user: str) -> int:
        """0 for a user of the first run, 1 for one of the second."""
        number = int.from_bytes(hashlib.sha256(user.encode("utf-8", "surrogatepass")).digest()[:8], "big")
        return int(number / 2**64 < self.second)


@dataclass(frozen=True)
class RunsFile:
    """``<storage>/serving/<deployment>.json``: written by the first reload, so that a restarted replica finds it.

    A new deployment has a file of its own, and begins with the runs that it was told.
    """

    path: Path

    def read(self) -> tuple[int, list[RunPlace]]:
        """The number of reloads so far, and the runs of the last one; 0 and none before the first.

        Raises:
            InputError: the file is damaged.
        """
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            runs = [RunPlace(one["name"], self.path.parents[1] / "runs" / one["directory"]) for one in content["runs"]]
            return int(content["reloads"]), runs
        except FileNotFoundError:
            return 0, []
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.path} cannot be read ({error}); remove it to serve the deployed runs") from None

    def write(self, places: Sequence[RunPlace]) -> int:
        """Tell the others to serve ``places``; returns the number of reloads so far."""
        reloads = self.read()[0] + 1
        runs = [{"name": place.name, "directory": place.directory.name} for place in places]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_json({"reloads": reloads, "runs": runs}, self.path)
        return reloads
