"""The section of a search: which keys, by which searcher, what is optimised, and what it may cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast, get_args

from pydantic import Field, PositiveInt, field_validator, model_serializer, model_validator

from genrec.config.section import SPEED, Section

Scalar = bool | int | float | str | None

Measured = Literal[
    "ndcg@10",
    "hr@10",
    "hr@50",
    "tail_hr@50",
    "category_entropy@10",
    "categories@10",
    "new_items@10",
    "value@10",
]

MEASURED: tuple[str, ...] = get_args(Measured)
"""What a validation reports: the tail's where there are such targets, those of categories where items have some."""

COUNTED = ("choice", "grid", "int")
"""Kinds of dimensions whose values can be counted, so that a grid can have them all."""


class Dimension(Section):
    """Where one key is searched: ``[low, high]`` for uniform, or a mapping such as ``{kind: choice, values: [4, 8]}``.

    ``uniform``, ``loguniform`` (uniform in the logarithm) and ``int`` draw between ``low`` and ``high``, both included;
    ``choice`` draws one of ``values``, ``grid`` takes each in turn.
    """

    kind: Literal["uniform", "loguniform", "int", "choice", "grid"] = "uniform"
    low: float | None = None
    high: float | None = None
    values: tuple[Scalar, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _from_range(cls, value: object) -> object:
        if isinstance(value, list | tuple):
            ends = cast("list[object]", value)
            if len(ends) != 2:
                raise ValueError(f"got {len(ends)} numbers, wanted [low, high] or a mapping with a kind")
            return {"low": ends[0], "high": ends[1]}
        return value

    @model_validator(mode="after")
    def _is_whole(self) -> Dimension:
        if self.kind in ("choice", "grid"):
            if self.low is not None or self.high is not None or not self.values:
                raise ValueError(f"kind={self.kind} wants values=[…], at least one, and neither low nor high")
            if len(set(map(repr, self.values))) < len(self.values):
                raise ValueError(f"values names one twice: {list(self.values)}")
            return self
        if self.low is None or self.high is None or self.values:
            raise ValueError(f"kind={self.kind} wants low and high, and no values")
        if self.low >= self.high:
            raise ValueError(f"the low end must lie below the high end; got {self.low:g} and {self.high:g}")
        if self.kind == "loguniform" and self.low <= 0:
            raise ValueError(f"kind=loguniform wants low above 0; got {self.low:g}")
        if self.kind == "int" and (self.low % 1 or self.high % 1):
            raise ValueError(f"kind=int wants whole numbers; got {self.low:g} and {self.high:g}")
        return self

    @model_serializer
    def _short(self) -> list[float | None] | dict[str, Any]:
        """As it is written in a config: a uniform range as ``[low, high]``."""
        if self.kind == "uniform":
            return [self.low, self.high]
        ends = {"low": self.low, "high": self.high} if self.low is not None else {"values": list(self.values)}
        return {"kind": self.kind, **ends}

    def ends(self) -> tuple[Scalar, ...]:
        """The extreme values: both ends of a range, every one of ``values``."""
        if self.low is None or self.high is None:
            return self.values
        return (int(self.low), int(self.high)) if self.kind == "int" else (self.low, self.high)

    def counted(self) -> tuple[Scalar, ...]:
        """All values of a dimension of a kind in ``COUNTED``."""
        if self.low is None or self.high is None:
            return self.values
        return tuple(range(int(self.low), int(self.high) + 1))

    def holds(self, value: object) -> bool:
        """Whether a search of this dimension may come to ``value``."""
        if self.low is None or self.high is None:
            return value in self.values
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return self.low <= value <= self.high and (self.kind != "int" or value % 1 == 0)


class Tune(Section):
    """A search over config keys: each trial is a short GRPO run with other values."""

    space: dict[str, Dimension] = Field(
        default={
            "rank_log": Dimension(low=-0.3, high=0.0),
            "prefix": Dimension(low=0.0, high=0.5),
            "diversity": Dimension(low=0.0, high=0.3),
        },
        description="a reward, as in prefix, or a key of rewards, learning, sid, embed or policy, and where it is "
        "searched: [low, high], or a mapping of kind uniform, loguniform or int with low and high, or of "
        "kind choice or grid with values",
    )
    searcher: Literal["random", "grid", "optuna", "pb2"] = Field(
        default="random",
        description="optuna: TPE, or NSGA-II for several objectives; pb2: a population that copies its best members "
        "and changes their values while they learn. All but grid begin with the config's own values",
    )
    scheduler: Literal["none", "asha", "median"] = Field(
        default="none", description="asha, median: trials that are behind the others at a validation are stopped"
    )
    trials: PositiveInt = Field(default=4, description="at most so many; a grid must have no more points")
    steps: PositiveInt = Field(default=40, description="updates of a trial")
    validations: PositiveInt = Field(
        default=4, description="of a trial, at equal distances; the scheduler decides at each"
    )
    reduction: int = Field(default=2, ge=2, description="asha: one of so many trials goes on at a rung")
    objectives: tuple[Measured, ...] = Field(
        default=("ndcg@10",),
        description="validation metrics to raise; the first ranks trials, several make a Pareto front",
    )
    pick: Literal["first", "knee"] = Field(
        default="first",
        description="which trials of the front are best: by the first objective, or nearest to the point that is best "
        "in all, each objective scaled to [0, 1] on the front",
    )
    constraints: tuple[Measured, ...] = Field(
        default=("hr@50", "tail_hr@50", "category_entropy@10"),
        description="validation metrics that may not fall below the SFT policy's by more than noise, where reported",
    )
    noise: float = Field(default=2.0, ge=0, description="standard errors (paired, over queries) that count as noise")
    finalists: int = Field(
        default=1, ge=0, description="best trials that are run again with fresh seeds; 0: none, so none is declared"
    )
    seeds: int = Field(default=3, ge=2, description="fresh seeds of each finalist, and of the config's own values")
    max_concurrent: PositiveInt = Field(
        default=1, json_schema_extra=SPEED, description="trials at a time; a killed search goes on with what it had"
    )
    hours: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="after which trials end where they are; the finalists come on top"
    )
    gpu_hours: Annotated[float, Field(gt=0)] | None = Field(default=None, description="the same, in hours of GPUs")
    in_full: bool = Field(
        default=False, json_schema_extra=SPEED, description="`genrec full` searches first, and takes the winner"
    )

    @field_validator("space", mode="before")
    @classmethod
    def _flat(cls, value: object) -> object:
        """Keys that came as nested sections, as they do from the command line, become dotted ones."""
        return dict(flattened(cast("Mapping[str, Any]", value))) if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _fits_together(self) -> Tune:
        uncounted = sorted(name for name, one in self.space.items() if one.kind not in COUNTED)
        listed = sorted(name for name, one in self.space.items() if one.kind == "grid")
        wrong = {
            "tune.space is empty; name at least one key": not self.space,
            f"tune.searcher=grid wants kind grid, choice or int; {uncounted} have another": self.searcher == "grid"
            and uncounted,
            f"tune.space: kind=grid of {listed} is for tune.searcher=grid; take choice": self.searcher != "grid"
            and listed,
            f"the grid has {self.grid_size} points, and tune.trials is {self.trials}; raise tune.trials": (
                self.searcher == "grid" and not uncounted and self.grid_size > self.trials
            ),
            f"tune.finalists={self.finalists} of tune.trials={self.trials} cannot be": self.finalists > self.trials,
            "tune.searcher=pb2 stops no trial, it gives it other values: take tune.scheduler=none": (
                self.searcher == "pb2" and self.scheduler != "none"
            ),
            "tune.searcher=pb2 changes a population of trials: tune.trials must be 2 or more": (
                self.searcher == "pb2" and self.trials < 2
            ),
            "tune.searcher=pb2 has one objective; take optuna for several": self.searcher == "pb2"
            and len(self.objectives) > 1,
            f"tune.searcher=pb2 wants kind uniform or int; {_without_range(self.space)} have another": self.searcher
            == "pb2"
            and _without_range(self.space),
            f"tune.scheduler={self.scheduler} compares trials by one metric; take none for several objectives": (
                self.scheduler != "none" and len(self.objectives) > 1
            ),
            f"tune.objectives names one twice: {list(self.objectives)}": len(set(self.objectives))
            < len(self.objectives),
            "tune.objectives is empty; name at least one metric": not self.objectives,
        }
        if found := [message for message, is_wrong in wrong.items() if is_wrong]:
            raise ValueError("; ".join(found))
        return self

    @property
    def grid_size(self) -> int:
        """Points of the grid of ``space``, whose dimensions must be of kinds in ``COUNTED``."""
        total = 1
        for one in self.space.values():
            total *= len(one.counted()) if one.kind in COUNTED else 1
        return total


def _without_range(space: Mapping[str, Dimension]) -> list[str]:
    return sorted(name for name, one in space.items() if one.kind not in ("uniform", "int"))


def flattened(space: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted keys and their dimensions, of a space that may have nested sections."""
    found: list[tuple[str, Any]] = []
    for name, value in space.items():
        is_section = isinstance(value, Mapping) and not _is_dimension(cast("Mapping[str, Any]", value))
        found += flattened(value, f"{prefix}{name}.") if is_section else [(f"{prefix}{name}", value)]
    return found


def _is_dimension(value: Mapping[str, Any]) -> bool:
    """Whether it is no section of keys, of which one may be called ``kind``."""
    return bool({"low", "high", "values"} & set(value)) or isinstance(value.get("kind"), str)
