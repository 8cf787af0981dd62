"""What every section of the config is, and which of its fields change a result."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from genrec.errors import InputError

Effect = Literal["result", "speed"]

SPEED: Final[dict[str, Any]] = {"effect": "speed"}
"""``json_schema_extra`` of a field that changes time, memory or rounding, but not what is computed.

It is no part of a stage's key, so lowering ``micro_batch`` after an out-of-memory error continues the stage.
"""


def _expanded(path: str) -> str:
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError as error:  # There is no such user.
        raise ValueError(f"{path}: {error}; give the whole path") from None


UserPath = Annotated[str, AfterValidator(_expanded)]
"""A path, or a name in its place; ``~`` is the user's home."""


class Section(BaseModel):
    """Base of every section: unknown keys are refused, values cannot change after loading.

    A field changes the result unless it is marked ``json_schema_extra=SPEED``, or its section's ``default_effect`` is
    "speed".
    """

    default_effect: ClassVar[Effect] = "result"

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def replace(self, changes: Mapping[str, Any] | None = None, /, **fields: Any) -> Self:
        """A copy with other values, checked like any config: ``config.replace({"learning.rl.steps": 5}, seed=1)``.

        Keys are dotted where they reach into sections; a value may be a whole section.

        Raises:
            InputError: an unknown key, a value out of range, or values that do not fit together.
        """
        plain = self.model_dump()
        for key, value in {**(changes or {}), **fields}.items():
            *sections, name = key.split(".")
            place = plain
            for section in sections:
                place = place.setdefault(section, {})
            place[name] = value.model_dump() if isinstance(value, BaseModel) else value
        try:
            return type(self).model_validate(plain)
        except ValidationError as error:
            raise InputError(describe(error)) from None

    def value_at(self, key: str) -> Any:
        """The value at a dotted key, such as ``"learning.rl.steps"``, or the section there.

        Raises:
            AttributeError: no section has such a field.
            KeyError: a field of free names, such as ``rewards.custom``, has no such one.
        """
        found: Any = self
        for name in key.split("."):
            found = found[name] if isinstance(found, dict) else getattr(found, name)
        return found

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


def dotted_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a section and of those in it, sections included."""
    for name, field in model.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from dotted_keys(field.annotation, f"{prefix}{name}.")


def sections_of(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The dotted keys of a section that are sections themselves."""
    inner = {name: field.annotation for name, field in model.model_fields.items()}
    for name, kind in inner.items():
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield prefix + name
            yield from sections_of(kind, f"{prefix}{name}.")


def nearest_key(name: str, known: Sequence[str]) -> str:
    """The known key that is most like ``name``: of those with the same last part, if there are some."""
    leaf = name.rsplit(".", 1)[-1]
    same = [key for key in known if key.rsplit(".", 1)[-1] == leaf]
    return difflib.get_close_matches(name, same or list(known), n=1, cutoff=0.0)[0]


def describe(error: ValidationError) -> str:
    """All that is wrong with a config, a line per value."""
    return "invalid config:\n  " + "\n  ".join(_line(e["loc"], e["msg"], e["input"]) for e in error.errors())


def _line(location: tuple[int | str, ...], message: str, value: object) -> str:
    named = f"{'.'.join(map(str, location))}: {message}" if location else message
    return named if isinstance(value, dict) else f"{named} (got {value!r})"
