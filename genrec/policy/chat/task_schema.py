"""What the templates of each instruction task must say: their lines, and the fields that each line may and must have.

Aligning semantic IDs with text by a mixture of such tasks follows LC-Rec (Zheng et al. 2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Source = Literal["queries", "items", "windows"]
AnyOf = tuple[str, ...]


@dataclass(frozen=True)
class TaskSchema:
    """The rules for a task's templates.

    ``source``: the kind of row that an example is about: a train query (history and next item), an item, or a window of
    a user's sequence. ``lines``: the names of the lines; the line ``text`` is a passage without turns, and alone.
    ``needs``: per line, or ``*`` for all lines together, groups of fields; of each group at least one must occur.
    ``order``: fields that must follow each other in the assistant's line.
    """

    source: Source
    lines: tuple[str, ...]
    needs: Mapping[str, tuple[AnyOf, ...]]
    order: tuple[str, ...] = ()

    @property
    def is_passage(self) -> bool:
        """Whether an example is running text, of which every token is learned."""
        return self.lines == PASSAGE


PAIR, PASSAGE = ("user", "assistant"), ("text",)
SEEN: AnyOf = ("history", "titled", "titles", "mixed")
LIST: AnyOf = ("list", "titled_list")
RECORD: tuple[AnyOf, ...] = (
    ("record", "details", "title"),
    ("record", "details", "path", "category"),
    ("record", "details", "description"),
)
"""Title, categories and synopsis: those that an item has, as ``{record}``, or all three by name."""

HISTORY = frozenset(SEEN)
FIELDS: dict[Source, frozenset[str]] = {
    "queries": HISTORY
    | {"target", "target_title", "target_description", "category", "list", "titled_list"}
    | {"interests", "categories", "brands", "taste", "reason"},
    "items": frozenset(["sid", "title", "category", "path", "brand", "description", "record", "details", "document"]),
    "windows": HISTORY | {"frequent"},
}
"""The fields that the lines of a task over a source may have; ``genrec.learning.tasks`` says what each holds."""

TASKS: dict[str, TaskSchema] = {
    "sequence_prediction": TaskSchema("queries", PAIR, {"user": (SEEN,), "assistant": (("target",),)}),
    "category_analysis": TaskSchema("windows", PAIR, {"user": (SEEN,), "assistant": (("frequent",),)}),
    "category_based_recommendation": TaskSchema(
        "queries", PAIR, {"user": (("category", "target_description"),), "assistant": (LIST,)}
    ),
    "multi_turn_dialogue_category": TaskSchema(
        "queries",
        (*PAIR, "other"),
        {"user": (("category",),), "assistant": (("titled_list",),), "other": (("category",),)},
    ),
    "multi_turn_dialogue_sequence": TaskSchema(
        "queries", (*PAIR, "like", "dislike"), {"user": (SEEN,), "assistant": (("target",), ("category",))}
    ),
    "preference_analysis": TaskSchema("queries", PAIR, {"user": (SEEN,), "assistant": (("taste",),)}),
    "recommendation_reasoning": TaskSchema(
        "queries", PAIR, {"user": (SEEN,), "assistant": (("target",), ("reason",))}, order=("target", "reason")
    ),
    "semantic_anchoring": TaskSchema(
        "items", PAIR, {"*": (("sid",), *(("details", one) for one in ("title", "path", "brand", "description")))}
    ),
    "attribute_mapping": TaskSchema(
        "items", PAIR, {"user": (("sid",),), "assistant": (("title", "category", "path", "description"),)}
    ),
    "semantic_recovery": TaskSchema("items", PAIR, {"user": RECORD, "assistant": (("sid",),)}),
    "running_text": TaskSchema("items", PASSAGE, {"text": (("sid",), *RECORD)}),
    "document_to_id": TaskSchema("items", PAIR, {"user": (("document",),), "assistant": (("sid",),)}),
    "id_to_document": TaskSchema("items", PAIR, {"user": (("sid",),), "assistant": (("document",),)}),
}

PHRASES: dict[str, tuple[str, ...]] = {
    "separator": (),
    "list_separator": (),
    "titled": ("sid", "title"),
    "counted": ("name", "count"),
    "path": (),
    "sentences": (),
    "record_separator": (),
    "record_title": ("title",),
    "record_path": ("path",),
    "record_brand": ("brand",),
    "record_description": ("description",),
    "taste_categories": ("categories",),
    "taste_brands": ("brands",),
    "taste_lately": ("interests",),
    "same_category": ("category", "other"),
    "same_brand": ("brand", "other"),
    "same_words": ("words", "other"),
    "nothing_shared": (),
    "teacher": ("titles", "target_title"),
    "teacher_taste": ("titles",),
}
"""The short texts from which fields are made, and the fields that each must contain."""
