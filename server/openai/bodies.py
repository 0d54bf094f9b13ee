"""What the bodies of all requests have in common: strict types, one error for one fault, and what may be left out."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from ropebend.server.openai.neutral import Rule


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the text holds half of a surrogate pair, which is not Unicode") from None
    return text


def _whole(value: Any) -> Any:
    # JSON has one kind of number; some clients write 10 as 10.0
    return int(value) if isinstance(value, float) and value.is_integer() else value


Text = Annotated[str, AfterValidator(_encodable)]
Int = Annotated[int, BeforeValidator(_whole)]

T = TypeVar("T")
# One error is enough: a million of them would hold up every other request and take a gigabyte.
ListOf = Annotated[list[T], Field(fail_fast=True)]


class Body(BaseModel):
    """A JSON object of a request.  What it does not name is refused, unless it is null or `neutral` lets it pass."""

    # strict: "5" is no number and true is no 1; a field may be called model_… or schema
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    #: Parameters of other servers, with the values that ask for nothing.
    neutral: ClassVar[Mapping[str, Rule]] = {}

    #: Other names of fields.
    other_names: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _take(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.keys() <= (known := _names(cls)):
            return value
        taken: dict[str, Any] = {}
        for key, given in value.items():
            if key in known:
                taken[key] = given
            elif given is None:  # asks for nothing
                continue
            elif key in cls.other_names:
                if value.get(cls.other_names[key]) is None:
                    taken[cls.other_names[key]] = given
            elif key in cls.neutral:
                rule = cls.neutral[key]
                if not rule.lets_pass(given, value):
                    context = {"param": key, "expected": rule.expected}
                    raise PydanticCustomError("not_neutral", "{param}: only {expected} is supported", context)
            elif cls.model_config.get("extra") != "forbid":
                taken[key] = given
            else:
                return {**taken, key: given}  # one unknown is enough
        return taken


@functools.cache
def _names(model: type[BaseModel]) -> frozenset[str]:
    """What the fields of a model are called in JSON."""
    return frozenset(field.alias or name for name, field in model.model_fields.items())
