"""The sections of the data path: where the log comes from, and item texts to vectors."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from genrec.config.section import SPEED, Section, UserPath


class Filters(Section):
    """Which interactions and items survive ``prepare``. Zero or null switches a filter off."""

    user_core: int = Field(default=0, ge=0, description="k-core: users with fewer interactions are removed, repeatedly")
    item_core: int = Field(default=0, ge=0, description="k-core: items with fewer interactions are removed, repeatedly")
    item_users: int = Field(
        default=0, ge=0, description="items with fewer distinct users are removed, once, before the k-core"
    )
    last_per_user: int = Field(default=0, ge=0, description="keep only each user's most recent n interactions")
    drop_duplicates: bool = Field(
        default=False, description="of interactions that are equal in every column only the first is kept"
    )
    first_only: bool = Field(default=False, description="keep only the first interaction of each user with each item")
    start: str | None = Field(default=None, description="ISO date; earlier interactions are removed")
    end: str | None = Field(default=None, description="ISO date; interactions from then on are removed")
    title_words: int = Field(
        default=0, ge=0, description="items whose title has more words are removed (MiniOneRec: 20)"
    )
    require_title: bool = Field(default=False, description="items without a title are removed")


class Data(Section):
    """Where the catalogue and the log come from, and how the log is split."""

    source: Literal["parquet", "complete_journey", "amazon", "minionerec", "movielens", "recbole"] = "parquet"
    path: UserPath | None = Field(default=None, description="directory (or URL prefix) with the source's files")
    items: UserPath | None = Field(
        default=None, description="item file or URL, when it is not at its default place under path"
    )
    interactions: UserPath | None = Field(default=None, description="log file or URL, likewise")
    columns: dict[str, str] = Field(
        default_factory=dict, description="parquet, recbole: canonical column -> the file's column"
    )
    time_unit: Literal["auto", "s", "ms", "us", "ns"] = Field(
        default="auto",
        description="parquet, recbole: unit of numeric timestamps; auto: by size, from 10^11 on ms, 10^14 us, 10^17 ns",
    )
    departments: tuple[str, ...] = Field(default=("DRUG GM",), description="complete_journey: the departments to keep")
    filters: Filters = Filters()
    split: Literal["leave_one_out", "chronological", "given"] = "leave_one_out"
    max_history: PositiveInt = Field(default=10, le=512, description="items of history a query carries")
    eval_queries: int = Field(default=0, ge=0, description="cap on valid and test queries each (hash sample); 0 = all")
    shards: PositiveInt = Field(default=4, le=512, description="user shards that prepare writes, all open at once")


class Embed(Section):
    """Item text to vectors."""

    model: UserPath = Field(default="minilm", description="'minilm' (packaged), or a model name or path")
    kind: Literal["sentence", "causal"] = Field(
        default="sentence", description="sentence-transformers, or causal LM states"
    )
    pooling: Literal["mean", "last", "cls"] = "mean"
    fields: tuple[str, ...] = ("title", "brand", "categories", "description")
    max_tokens: PositiveInt = 256
    batch_size: PositiveInt = Field(default=64, json_schema_extra=SPEED, description="texts per forward")
    shard_items: PositiveInt = Field(default=2048, description="items per output file")
