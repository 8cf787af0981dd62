"""The record of a search, ``search.json``: what was searched, every trial, the front, the finalists and the winner.

``genrec tune`` writes it again after every report of a trial, so a table or a page made from it can be live. All
figures are of the validation queries, except ``test``, which is there once the declared winner has been tested.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from genrec.data.files import write_json
from genrec.errors import InputError

FILE = "search.json"

Value = float | int | bool | str | None
"""A value of a config key."""

Metrics = dict[str, float | None]
"""Figures by name; None where one is not a number or does not apply."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DimensionRecord(_Record):
    """Where one config key was searched: between ``low`` and ``high``, or among ``values``."""

    kind: Literal["uniform", "loguniform", "int", "choice", "grid"]
    low: float | None = None
    high: float | None = None
    values: list[Value] | None = None


class TrialRecord(_Record):
    """One trial: a short run of GRPO with ``values`` in place of the config's.

    ``status`` is ``running``; ``finished``; ``stopped`` by the scheduler before its last step; ``diverged``, where a
    loss or a metric is not a number; or ``failed``, with the reason in ``error``. ``metrics`` are those of the version
    that is kept, ``curve`` has a point per validation: ``step`` and its metrics, from step 0, the SFT policy.

    ``feasible``: within all constraints. ``on_front``: feasible, and no feasible trial is better in one objective and
    as good in the others. ``audit``: means over the run's updates, such as ``kl`` or ``zero_advantage_groups``.
    """

    id: str
    name: str
    values: dict[str, Value]
    seed: int
    status: Literal["running", "finished", "stopped", "failed", "diverged"]
    error: str | None = None
    metrics: Metrics = Field(default_factory=dict)
    feasible: bool = False
    on_front: bool = False
    audit: Metrics = Field(default_factory=dict)
    curve: list[Metrics] = Field(default_factory=list[Metrics])
    steps: int = 0
    seconds: float = 0.0

    def placed(self, *, on_front: bool) -> TrialRecord:
        """The same trial, on the front or not."""
        return TrialRecord.model_validate({**self.model_dump(), "on_front": on_front})


class SeedRun(_Record):
    """A finalist run again with another seed: its metrics, or the ``error`` that ended it."""

    seed: int
    metrics: Metrics = Field(default_factory=dict)
    feasible: bool = False
    error: str | None = None


class MeanDifference(_Record):
    """A mean difference of the metric, paired by seed, with its interval; None where too few runs are left.

    The intervals of k finalists hold together with 95 %: each has 1 - 0.05 / k (Bonferroni). ``pairs``: the seeds with
    which both runs ended; 0 in records that did not count them.
    """

    mean: float | None
    low: float | None
    high: float | None
    pairs: int = 0


class FinalistRecord(_Record):
    """One of the best trials, run again with fresh seeds.

    ``difference``: its metric minus that of the config's own values, with equal seeds; ``difference_from_sft``: minus
    the SFT policy's.
    """

    trial: str
    values: dict[str, Value]
    seeds: list[SeedRun]
    difference: MeanDifference
    difference_from_sft: MeanDifference | None = None


class DefaultRecord(_Record):
    """The config's own values: the trial that ran them (None: none did), and its runs with the finalists' seeds."""

    id: str | None = None
    metrics: Metrics = Field(default_factory=dict)
    seeds: list[SeedRun] = Field(default_factory=list[SeedRun])


class WinnerRecord(_Record):
    """The trial that won, None where nothing beat the config's own values; ``verdict`` says it in a sentence."""

    trial: str | None
    verdict: str


class BudgetRecord(_Record):
    """What the search was allowed to use (None: no limit), and what it used."""

    trials: int
    hours: float | None = None
    gpu_hours: float | None = None
    used_trials: int = 0
    used_hours: float = 0.0
    used_gpu_hours: float = 0.0
    ended_by: Literal["trials", "hours", "gpu_hours"] | None = None


class SearchRecord(_Record):
    """A whole search. ``metric`` is what ranks trials; ``objectives`` span the front, larger is better for each.

    ``constraints``: metric -> the least value that a feasible trial may have. ``sft``: the metrics of the SFT policy,
    from which every trial starts. ``winner`` is None until the search has ended.
    """

    metric: str
    objectives: list[str]
    constraints: dict[str, float]
    space: dict[str, DimensionRecord]
    searcher: str
    scheduler: str
    sft: Metrics = Field(default_factory=dict)
    default: DefaultRecord = DefaultRecord()
    trials: list[TrialRecord] = Field(default_factory=list[TrialRecord])
    finalists: list[FinalistRecord] = Field(default_factory=list[FinalistRecord])
    winner: WinnerRecord | None = None
    budget: BudgetRecord
    steps_total: int = 0
    steps_per_trial: int = 0

    def write(self, directory: Path) -> None:
        """Write ``search.json`` into ``directory``, at once or not at all."""
        write_json(self.model_dump(mode="json"), directory / FILE)

    @staticmethod
    def read(directory: Path) -> SearchRecord:
        """The record in ``directory``.

        Raises:
            InputError: there is none, or it is none.
        """
        path = directory / FILE
        try:
            return SearchRecord.model_validate_json(path.read_bytes())
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error}; it is written by genrec tune") from None
        except ValueError as error:
            raise InputError(f"{path} is no record of a search: {error}") from None
