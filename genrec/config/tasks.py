"""The sections of instruction tuning: which tasks, in which words, in which stages."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from genrec.config.judge import ChatServer
from genrec.config.section import Section, UserPath


class TaskWeight(Section):
    """One task's place in a mixture; a weight of 0 leaves it out."""

    weight: float = Field(default=0.0, ge=0, description="share of the loss, after division by the sum of all weights")
    repeat: PositiveInt = Field(default=1, description="examples per row and epoch, each in other words")


class Tasks(Section):
    """The tasks by name. A row is a train query, an item, or a window of a user's train sequence."""

    next_item: TaskWeight = Field(
        default=TaskWeight(), description="queries; the very prompt of rollouts and evaluation"
    )
    sequence_prediction: TaskWeight = Field(default=TaskWeight(), description="queries; next_item in many words")
    category_analysis: TaskWeight = Field(
        default=TaskWeight(), description="windows; the most frequent categories of a window of a sequence"
    )
    category_based_recommendation: TaskWeight = Field(
        default=TaskWeight(), description="queries; a list of items for a category or a description, without a history"
    )
    multi_turn_dialogue_category: TaskWeight = Field(
        default=TaskWeight(), description="queries; a list of items for one kind, then for another"
    )
    multi_turn_dialogue_sequence: TaskWeight = Field(
        default=TaskWeight(), description="queries; recommend, hear that it is liked or not, recommend again"
    )
    preference_analysis: TaskWeight = Field(default=TaskWeight(), description="queries; sentences on tastes")
    recommendation_reasoning: TaskWeight = Field(
        default=TaskWeight(), description="queries; an item, then the reason for it"
    )
    semantic_anchoring: TaskWeight = Field(default=TaskWeight(), description="items; SID to all details and back")
    attribute_mapping: TaskWeight = Field(default=TaskWeight(), description="items; SID to title, category or synopsis")
    semantic_recovery: TaskWeight = Field(
        default=TaskWeight(), description="items; title, categories and synopsis to SID"
    )
    running_text: TaskWeight = Field(
        default=TaskWeight(),
        description="items; a passage with SID, title, categories and synopsis, every token learned",
    )
    document_to_id: TaskWeight = Field(default=TaskWeight(), description="items; all of the text to SID (indexing)")
    id_to_document: TaskWeight = Field(default=TaskWeight(), description="items; SID to all of the text (indexing)")

    @property
    def chosen(self) -> dict[str, TaskWeight]:
        """Those with a weight."""
        return {name: task for name in type(self).model_fields if (task := getattr(self, name)).weight > 0}


class Teacher(ChatServer):
    """A larger model that writes reasons and tastes; null as url leaves them to templates."""

    key_variable: str = Field(default="GENREC_TEACHER_KEY", description="environment variable that holds the key")
    examples: PositiveInt = Field(default=1000, description="train queries that get a text from it, per task")
    temperature: float = Field(default=0.7, ge=0)
    max_tokens: PositiveInt = 160


class Instruction(Section):
    """The words of the tasks, and what they are about."""

    languages: tuple[UserPath, ...] = Field(
        default=("en", "zh"), min_length=1, description="packaged templates, or paths of YAML files of the same form"
    )
    balance: Literal["weights", "examples"] = Field(
        default="weights",
        description="a task's share of the loss: its weight, or its share of the examples, so that all count alike",
    )
    window: PositiveInt = Field(default=10, description="items of a window, of category_analysis and of lately")
    stride: PositiveInt = Field(default=5, description="items from one window of a sequence to the next")
    interests: PositiveInt = Field(default=3, description="categories, or brands, that are named at most")
    turns: int = Field(default=3, ge=2, description="answers of a dialogue, at most")
    list_items: int = Field(default=5, ge=2, description="category_based_recommendation: items of its list")
    dialogue_items: int = Field(default=3, ge=2, description="multi_turn_dialogue_category: items of each list")
    text_words: PositiveInt = Field(default=48, description="words of a description, at most (or signs, in Chinese)")
    teacher: Teacher = Teacher()


class StageSettings(Section):
    """A stage before the last one; with neither steps nor epochs it is left out."""

    steps: int = Field(default=0, ge=0, description="optimizer steps; 0 = all epochs")
    epochs: int = Field(default=0, ge=0, description="with steps: 0 = as many as the steps take")
    lr: float = Field(default=2e-5, gt=0)
    min_lr: float = Field(default=0.0, ge=0)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    tasks: Tasks = Tasks(running_text=TaskWeight(weight=0.5), attribute_mapping=TaskWeight(weight=0.5))

    @property
    def is_on(self) -> bool:
        """Whether it runs."""
        return self.steps > 0 or self.epochs > 0


class Stages(Section):
    """What comes before learning.sft: first the new SID rows alone, then all that trains, both on text and SIDs."""

    sid_embeddings: StageSettings = StageSettings(lr=1e-3)
    pretraining: StageSettings = StageSettings()

    def on(self) -> dict[Literal["sid_embeddings", "pretraining"], StageSettings]:
        """Those that run, in their order."""
        named: dict[Literal["sid_embeddings", "pretraining"], StageSettings] = {
            "sid_embeddings": self.sid_embeddings,
            "pretraining": self.pretraining,
        }
        return {name: stage for name, stage in named.items() if stage.is_on}
