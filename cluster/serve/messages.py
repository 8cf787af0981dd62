"""What the HTTP service reads and answers; the OpenAPI document is made from these models.

A request is refused (422) where a field is unknown or of another type. Every answer names the run, the weights and the
catalogue that it comes from.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

ID_LENGTH = 512
MAX_CONSTRAINT_IDS = 100_000
Id = Annotated[str, StringConstraints(min_length=1, max_length=ID_LENGTH)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=120)]
Text = Annotated[str, StringConstraints(max_length=20_000)]


class RequestBody(BaseModel):
    """Base of all requests: unknown fields are refused, and whole numbers are read as the texts of ids."""

    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True, allow_inf_nan=False)


class ConstraintBody(RequestBody):
    """Which items may be recommended; a field that is left out restricts nothing."""

    allow: list[Id] | None = Field(default=None, max_length=MAX_CONSTRAINT_IDS, description="only these item ids")
    deny: list[Id] = Field(default=[], max_length=MAX_CONSTRAINT_IDS, description="none of these item ids")
    category: Text | None = Field(default=None, description="a category's name, of any level")
    price: tuple[float, float] | None = Field(default=None, description="lowest and highest price, both included")
    unseen: bool = Field(default=False, description="nothing of the history")


class DiversityBody(RequestBody):
    """How much a list gives up in probability for items that differ from each other."""

    kind: Literal["vectors", "categories", "calibrated", "beams"]
    weight: float = Field(default=0.5, ge=0.0, le=1.0, description="0: by score alone; 1: by diversity alone")


class UserBody(RequestBody):
    """Whose next item is asked for: a history, or a user of the log."""

    history: list[Id] = Field(
        default=[], description="item ids, oldest first; ids that are not in the catalogue are left out, and named"
    )
    user: Id | None = Field(
        default=None,
        description="without a history: a user of the log, whose whole history is read. With one: who asks, so that "
        "the same user gets the same of two runs",
    )
    history_events: list[Text | None] = Field(default=[], description="type of event of each item of the history")
    history_times: list[int] = Field(default=[], description="time of each, in epoch seconds")
    event: Text | None = Field(default=None, description="type of event that is asked for")
    run: Name | None = Field(default=None, description="the run that answers; without, the user's own of the two")


class RecommendBody(UserBody):
    """A request for the next items."""

    k: int = Field(default=10, ge=1, description="items wanted; at most serve.max_k")
    constraint: ConstraintBody | None = None
    diversity: DiversityBody | None = None
    explain: bool = Field(default=False, description="say why each item is recommended")
    prior: bool = Field(default=True, description="false: without the run's ItemKNN, the policy alone")
    deadline_ms: float | None = Field(
        default=None, gt=0, description="after which popular items are answered instead; default serve.deadline_ms"
    )


class RecommendBatchBody(RequestBody):
    """Several requests in one; they may differ in everything."""

    requests: list[RecommendBody] = Field(min_length=1, description="at most serve.max_batch_request")


class ScoreBody(UserBody):
    """A request for the probabilities of given items."""

    items: list[Id] = Field(min_length=1, description="item ids; at most serve.max_k times 10")


class ChatMessage(RequestBody):
    """A message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: Text


class ChatBody(RequestBody):
    """A request for the policy's next message; ``[[…]]`` in a message holds an item's id."""

    messages: Text | list[ChatMessage]
    max_tokens: int = Field(default=128, ge=1, le=512)
    temperature: float = Field(default=0.0, ge=0.0, le=2.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    seed: int = Field(default=0, ge=0, lt=2**63)
    run: Name | None = None


class NewItem(RequestBody):
    """An item to insert."""

    id: Id
    title: Text
    description: Text = ""
    brand: Text = ""
    categories: list[Text] = Field(default=[], max_length=32, description="a path, coarse to fine")
    price: float | None = Field(default=None, allow_inf_nan=False)


class InsertBody(RequestBody):
    """Items to insert; each gets the nearest free semantic ID."""

    items: list[NewItem] = Field(min_length=1, max_length=1000)


class ReloadBody(RequestBody):
    """Which run to serve from now on."""

    run: Name | None = Field(
        default=None, description="the name of a run of the same storage; without, the newest of the served name"
    )
    replaces: Name | None = Field(default=None, description="the served run that it takes the place of, of two")


class ServedVersion(BaseModel):
    """What an answer comes from."""

    run: str = Field(description="name of the run, as it was asked to be served")
    policy: str = Field(description="artifact of the policy's weights")
    catalog: str = Field(description="artifact of the catalogue, and the number of the change that it has reached")


class ItemAnswer(BaseModel):
    """A recommended or scored item."""

    id: str
    title: str
    score: float = Field(description="the item's probability; of popular items, their share of the events")
    path: list[str] = Field(default=[], description="names of the codes of its semantic ID, where they have names")
    why: dict[str, object] | None = Field(default=None, description="where explain was asked for")


class RecommendAnswer(BaseModel):
    """Recommended items, best first."""

    request_id: str
    served: ServedVersion
    items: list[ItemAnswer]
    source: Literal["policy", "popularity"] = Field(
        description="popularity: the most frequent items within the constraint, where the history is empty or the "
        "policy's answer would have been too late"
    )
    cached: bool = False
    unknown: list[str] = Field(default=[], description="ids of the history that are not in the catalogue: left out")
    notes: list[str] = Field(default=[], description="what else the answer departs from the request in")


class RecommendBatchAnswer(BaseModel):
    """The answers of a batch, in its order."""

    request_id: str
    answers: list[RecommendAnswer]


class ScoreAnswer(BaseModel):
    """The probability of each item that was asked about, in its order."""

    request_id: str
    served: ServedVersion
    items: list[ItemAnswer]
    unknown: list[str] = []


class ChatAnswer(BaseModel):
    """The policy's message."""

    request_id: str
    served: ServedVersion
    text: str
    items: list[str] = Field(description="ids of the items in the text")
    ended: bool = Field(description="false where the message was cut at max_tokens")


class ItemDetails(BaseModel):
    """All that is known of an item."""

    id: str
    title: str
    categories: list[str] = []
    price: float | None = None
    sid: list[int] = Field(description="the codes of its semantic ID")
    path: list[str] = []
    removed: bool = False


class FoundItem(BaseModel):
    """A hit of the title search."""

    id: str
    title: str


class FoundItems(BaseModel):
    """The items whose titles have the words that were searched for."""

    items: list[FoundItem]


class CatalogChange(BaseModel):
    """What an insert or a removal has done, to the catalogue of every served run that has it."""

    inserted: int = 0
    returned: int = Field(default=0, description="removed before, and there again with the semantic ID that they had")
    removed: int = 0
    served: list[ServedVersion]


class ReloadAnswer(BaseModel):
    """What is served after a reload."""

    changed: bool = Field(description="false where the newest weights and catalogue were served already")
    served: list[ServedVersion]


class RunInfo(BaseModel):
    """A run that is served."""

    served: ServedVersion
    share: float = Field(description="of the users")
    items: int
    max_history: int
    chat: bool = Field(description="whether POST /v1/chat can answer")
    events: list[str] = Field(description="types of event that a request may ask for")
    prior: str


class About(BaseModel):
    """What is served, and the limits."""

    runs: list[RunInfo]
    max_k: int
    max_history: int
    changes: bool = Field(description="whether an API key is set, without which nothing can be changed")
    categories: list[str] = Field(description="the most frequent categories, for constraints")


class Readiness(BaseModel):
    """Whether requests are answered."""

    status: Literal["ready", "starting", "closing"]
    served: list[ServedVersion] = []


class Problem(BaseModel):
    """An error: what came, what was wanted and the remedy, in words."""

    error: str
    request_id: str
