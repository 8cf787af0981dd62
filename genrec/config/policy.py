"""The section of the language model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from genrec.config.section import Section, UserPath


class Lora(Section):
    """Low-rank adapters on a pretrained backbone."""

    rank: PositiveInt = 64
    alpha: PositiveInt = 128
    dropout: float = Field(default=0.05, ge=0, lt=1)
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"


class Items(Section):
    """Items as rows of their own beside the codes of their semantic IDs: what a SID shares, an item may keep apart."""

    input: Literal["none", "own", "vectors", "both"] = Field(
        default="own",
        description="added to an item of the history: a learned row, its item vector (projected), or both; "
        "published SIDs have no vectors",
    )
    mean: bool = Field(
        default=True, description="input: an item also gets the decaying mean of the rows up to it, decays are learned"
    )
    head: bool = Field(
        default=True,
        description="a second head scores every item by a learned row, from the state that predicts the first code",
    )
    score: Literal["cosine", "dot"] = Field(
        default="cosine", description="head: an item's logit is a learned scale times the cosine, or the product"
    )
    repeats: bool = Field(
        default=True,
        description="head: items of the history get a weight of their own, by how long ago they were, by their event "
        "type where prompts have it, and by the state",
    )
    dims: PositiveInt = Field(default=128, description="width of a row (at most policy.hidden)")
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="input, in training: share of the learned rows that are left out"
    )
    tokens: Literal["auto", "codes", "item"] = Field(
        default="auto",
        description="an item of the history is its L codes, the last with the item's row, or one position; auto: one "
        "position where the policy knows no text",
    )
    weight: float = Field(default=3.0, gt=0, description="of the head's cross-entropy, beside 1 for each code")
    negatives: PositiveInt = Field(
        default=1024, description="head, in training: items drawn per step for a catalogue of more than 20,000"
    )


class EventContext(Section):
    """What a prompt says of a history besides its items."""

    events: Literal["none", "history", "wanted"] = Field(
        default="none",
        description="a token with each item's event type: behind the item (history), or before it and also before the "
        "answer, as the event type that is asked for (wanted)",
    )
    gaps: bool = Field(default=False, description="a token behind each item: the time since the event before it")
    types: tuple[str, ...] = Field(
        default=(), description="events: types of the log with a token of their own; all others share one"
    )

    @property
    def is_on(self) -> bool:
        """Whether prompts have any of it."""
        return self.events != "none" or self.gaps


class PolicyConfig(Section):
    """The language model that writes semantic IDs."""

    kind: Literal["scratch", "pretrained"] = "scratch"
    arch: Literal["gpt2", "qwen3"] = Field(default="gpt2", description="scratch: architecture")
    hidden: PositiveInt = 128
    layers: PositiveInt = 2
    heads: PositiveInt = 4
    dropout: float = Field(default=0.3, ge=0, lt=1, description="scratch: of embeddings, attention and residuals")
    tokenizer: Literal["none", "bytes"] = Field(
        default="none", description="scratch: semantic IDs alone, or with the bytes of text, for tasks and chat (qwen3)"
    )
    path: UserPath = Field(default="smollm2", description="pretrained: 'smollm2' (packaged), or a model name or path")
    prompt: Literal["question", "sequence"] = Field(
        default="sequence",
        description="pretrained: the history stands in a question, or it is the model's own answer, which goes on: "
        "then example_format=dense learns all items of a sequence in one pass",
    )
    finetuning: Literal["full", "lora", "qlora"] = Field(
        default="lora", description="pretrained: train all of it, adapters, or adapters on 4-bit weights"
    )
    weights: Literal["pretrained", "random"] = Field(
        default="pretrained",
        description="pretrained: begin from the model's weights, or from random ones (finetuning=full), to see what "
        "its pretraining is worth",
    )
    lora: Lora = Lora()
    sid_tokens: Literal["letters", "numbered"] = Field(
        default="letters",
        description="SIDs in text: [[<a_1><b_2>]], or <|sid_start|><|sid_1|><|sid_258|><|sid_end|>: numbers go on "
        "through the levels, and start and end are tokens of their own",
    )
    sid_init: Literal["text", "mean", "random"] = Field(
        default="text",
        description="pretrained: SID rows start at the table's mean and go from there where their items' titles differ "
        "(text), or by noise (mean); or as noise alone",
    )
    items: Items = Items()
    context: EventContext = EventContext()
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of frozen weights and matrix products; what trains is kept in float32"
    )

    @property
    def knows_text(self) -> bool:
        """Whether it reads and writes more than semantic IDs."""
        return self.kind == "pretrained" or self.tokenizer != "none"

    @property
    def has_whole_items(self) -> bool:
        """Whether an item of the history is one position."""
        items = self.items
        return items.input != "none" and (items.tokens == "item" or (items.tokens == "auto" and not self.knows_text))
