"""What every section of the config is, and which of its fields change a result."""

from __future__ import annotations

from typing import Any, ClassVar, Final, Literal, cast

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo

Effect = Literal["result", "speed"]

SPEED: Final[dict[str, Any]] = {"effect": "speed"}
"""``json_schema_extra`` of a field that changes time, memory or rounding, but not what is computed.

It is no part of a stage's key, so lowering ``micro_batch`` after an out-of-memory error continues the stage.
"""


class Section(BaseModel):
    """Base of every section: unknown keys are refused, values cannot change after loading.

    A field changes the result unless it is marked ``json_schema_extra=SPEED``, or its section's ``default_effect`` is
    "speed".
    """

    default_effect: ClassVar[Effect] = "result"

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def result_settings(self) -> dict[str, Any]:
        """The fields that change a result, JSON-able, inner sections included: what a stage's key is made of."""
        settings = self.model_dump(mode="json")
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if self.effect_of(field) == "speed":
                del settings[name]
            elif isinstance(value, Section):
                settings[name] = value.result_settings()
        return settings

    @classmethod
    def effect_of(cls, field: FieldInfo) -> Effect:
        """Whether a field of this section changes the result or only the speed."""
        extra = field.json_schema_extra
        marks = cast("dict[str, Any]", extra) if isinstance(extra, dict) else {}
        return marks.get("effect", cls.default_effect)
