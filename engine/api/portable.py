"""Values that travel: to JSON and back without loss, compared and hashed by what they hold, pixels included."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, Literal, Self

import numpy as np
from PIL import Image
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from .errors import InvalidRequestError
from .pixels import upright_rgb

_NO_NUMBERS = ("NaN", "Infinity", "-Infinity")
_ADAPTERS: dict[type, TypeAdapter[Any]] = {}


def _number(value: Any) -> Any:
    if isinstance(value, bool) or (isinstance(value, str | bytes) and value not in _NO_NUMBERS):
        raise ValueError("must be a number")
    return value


Real = Annotated[float, Field(strict=False), BeforeValidator(_number)]
"""A number that need not be finite, for fields of what is strict: JSON has texts for what is no number in it."""


def finite(value: Any) -> Any:
    """A value as strict JSON has it: infinity and what is no number are null, at any depth."""
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Portable:
    """What goes to JSON and back as an equal value.

    Two are equal that hold the same: arrays by dtype, shape and values, pictures by their pixels as they are seen (a
    path is equal to the same path alone), NaN to NaN. Equal ones have equal hashes.
    """

    def to_json(self, *, pictures: bool = True, indent: int | None = None) -> str:
        """Return it as JSON, pictures and masks as PNG in base64; without `pictures` null stands in their places.

        A picture that is given by its path is read; raises InvalidRequestError where it cannot be.
        """
        context = {"pictures": pictures}
        return _adapter(type(self)).dump_json(self, indent=indent, context=context).decode()

    @classmethod
    def from_json(cls, data: str | bytes | Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote, or that parsed.

        Nothing is opened for it: a text in a picture's place is the picture's own data, never a path. Raises
        InvalidRequestError naming the first value that is wrong.
        """
        try:
            text = json.dumps(data) if isinstance(data, Mapping) else data
            value: Self = _adapter(cls).validate_json(text)
        except ValidationError as error:
            raise InvalidRequestError(f"this is no {cls.__name__}: {first_problem(error)}") from error
        except (TypeError, RecursionError) as error:
            raise InvalidRequestError(f"this is no {cls.__name__}: it holds what JSON cannot: {error}") from error
        return value

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self is other or _content(self) == _content(other)

    def __hash__(self) -> int:
        return hash(_content(self))


class Value(Portable):
    """A dataclass that is portable, and shows its JSON schema as pydantic's models do.

    In JSON no text and no switch stands for a number, and no number for a switch. It is declared with `eq=False`, for
    it is compared and hashed as it says here.
    """

    # Distances to an empty mask are infinite, which JSON has no number for.
    __pydantic_config__ = ConfigDict(extra="forbid", strict=True, ser_json_inf_nan="strings")

    @classmethod
    def model_json_schema(cls, *, mode: Literal["validation", "serialization"] = "validation") -> dict[str, Any]:
        """Return the JSON schema of what `from_json` takes, or of what `to_json` gives."""
        return _adapter(cls).json_schema(mode=mode)


def first_problem(error: ValidationError) -> str:
    """Where the first value lies that is wrong, and what is wrong with it. The value itself is not repeated."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the whole'}: {first['msg']}"


def _adapter(cls: type) -> TypeAdapter[Any]:
    if cls not in _ADAPTERS:
        _ADAPTERS[cls] = TypeAdapter(cls)
    return _ADAPTERS[cls]


def _content(value: Any) -> Any:
    """Something hashable that is equal for equal values."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, Image.Image):
        return value.size, upright_rgb(value).tobytes()
    if isinstance(value, BaseModel):
        return type(value), *(_content(getattr(value, name)) for name in type(value).model_fields)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value), *(_content(getattr(value, each.name)) for each in fields(value) if each.compare)
    if isinstance(value, Mapping):
        return frozenset((name, _content(each)) for name, each in value.items())
    if isinstance(value, list | tuple):
        return tuple(map(_content, value))
    return "NaN" if isinstance(value, float) and math.isnan(value) else value
