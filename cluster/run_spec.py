"""What a training worker or an actor is told: plain paths and the config, from which it builds everything itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genrec.config import Config

if TYPE_CHECKING:
    from genrec.policy.model import Policy
    from genrec.policy.prompts import Prompts
    from genrec.sid.catalog import Catalog


@dataclass(frozen=True)
class RunSpec:
    """One training stage: its inputs, and the directory where rank 0 leaves the result.

    ``start`` holds the policy to begin from (the SFT policy), or is None for a new one; ``vectors`` the item vectors
    and ``rewards`` the Python file of terms, for rewards that want them.
    """

    config: Config
    data: Path
    catalog: Path
    out: Path
    start: Path | None = None
    vectors: Path | None = None
    rewards: Path | None = None

    @property
    def backbones(self) -> Path:
        """Where packaged models are kept in a form that loads fast."""
        return Path(self.config.storage).absolute() / "backbones"

    def build(self) -> tuple[Policy, Prompts, Catalog]:
        """The policy (with the tensors of ``start``), its prompts and the catalogue."""
        from genrec.data.tables import read_items
        from genrec.policy.backbone import build, load
        from genrec.sid.catalog import Catalog

        catalog = Catalog.load(self.catalog)
        config = self.config
        history = config.data.max_history
        options: dict[str, Any] = {"max_history": history, "seed": config.seed, "cache": self.backbones}
        if self.start is None:
            if config.policy.kind == "pretrained":
                options["titles"] = [title or "" for title in read_items(self.data)["title"].to_pylist()]
            return *build(config.policy, catalog, **options), catalog
        return *load(config.policy, catalog, self.start, **options), catalog
