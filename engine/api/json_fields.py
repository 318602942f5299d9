"""Pixels and numbers as JSON holds them: types for fields of what travels (`api/portable.py`).

In Python the fields hold what they always held; in JSON pictures, masks and label maps are PNG data in base64 and
arrays say their dtype and shape. A text is never a path, in neither mode of validation, for web frameworks parse JSON
first and validate what they parsed. A dump with the context `{"pictures": False}` has null where pictures, masks and
label maps would be.
"""

import base64
import binascii
import io
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, NonNegativeInt
from pydantic_core import core_schema

from .errors import InvalidRequestError
from .pixels import load_picture, opened

MAX_TEXT = 2**27
"""Longest text of a picture or of numbers, in characters; three quarters of it in bytes."""

FORMATS = ("JPEG", "PNG", "WEBP")
"""Formats that a picture in JSON may have."""

_DATA_URL = re.compile(r"data:[\w./+-]*;base64,")
_DTYPES = Literal["bool", "uint8", "uint16", "int32", "int64", "float16", "float32", "float64"]


def data_of(text: str) -> bytes:
    """The bytes that a text in base64, or a data URL of it, stands for."""
    start = _DATA_URL.match(text[:64])
    try:
        return base64.b64decode(text[start.end() :] if start else text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(
            "a text here is a picture's own data in base64 (PNG, JPEG or WebP), never a path or an address; "
            "in Python a picture that lies on the disk is given as a pathlib.Path"
        ) from error


@contextmanager
def _embedded(text: str) -> Iterator[Image.Image]:
    with opened(io.BytesIO(data_of(text)), "the data in base64", FORMATS) as image:
        yield image


def _picture_of(text: str) -> Image.Image:
    with _embedded(text) as image:
        return load_picture(image)


def _mask_of(text: str) -> np.ndarray:
    return np.asarray(_picture_of(text).convert("L")) > 127


def _labels_of(text: str) -> np.ndarray:
    with _embedded(text) as image:
        if image.mode not in ("I;16", "L"):
            raise InvalidRequestError(f"a label map is a grey PNG of 16 bits, got mode {image.mode}")
        return np.array(image, dtype=np.uint16)


def _text_of(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", icc_profile=None)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _picture_text(picture: Image.Image | Path) -> str:
    return _text_of(load_picture(picture))


def _mask_text(mask: np.ndarray) -> str:
    return _text_of(Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).convert("1"))


def _labels_text(labels: np.ndarray) -> str:
    return _text_of(Image.fromarray(labels.astype(np.uint16)))


@dataclass(frozen=True)
class _AsText:
    """How pydantic takes and gives pixels of `kinds`: as they are in Python, as a text in JSON."""

    kinds: tuple[type, ...]
    read: Callable[[str], Any]
    write: Callable[[Any], str]
    about: str

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Validate a text in both modes, and what is no text in Python alone."""
        text = core_schema.no_info_after_validator_function(self.read, core_schema.str_schema(max_length=MAX_TEXT))
        given: list[core_schema.CoreSchema] = [core_schema.is_instance_schema(kind) for kind in self.kinds]
        chosen = core_schema.tagged_union_schema(
            {"text": text, "given": core_schema.union_schema([*given])},
            lambda value: "text" if isinstance(value, str) else "given",
        )
        return core_schema.json_or_python_schema(
            text,
            chosen,
            serialization=core_schema.plain_serializer_function_ser_schema(
                self._written, info_arg=True, when_used="json"
            ),
        )

    def _written(self, value: Any, info: core_schema.SerializationInfo) -> str | None:
        return self.write(value) if (info.context or {}).get("pictures", True) else None

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Say what the text is."""
        return {
            "type": "string",
            "contentEncoding": "base64",
            "contentMediaType": "image/png",
            "maxLength": MAX_TEXT,
            "description": self.about,
        }


# --- numbers in JSON ---


class _Array(BaseModel):
    """An array of numbers: its dtype and shape, and its values in row order, little-endian, in base64."""

    model_config = ConfigDict(extra="forbid")

    dtype: _DTYPES
    shape: tuple[NonNegativeInt, ...] = Field(max_length=8)
    data: str = Field(max_length=MAX_TEXT, json_schema_extra={"contentEncoding": "base64"})

    @classmethod
    def of(cls, array: np.ndarray) -> dict[str, Any]:
        """Return an array as JSON holds it."""
        little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        data = base64.b64encode(little.tobytes()).decode("ascii")
        return {"dtype": array.dtype.name, "shape": list(array.shape), "data": data}

    def array(self) -> np.ndarray:
        """The array; raises ValueError where the data does not fill its shape."""
        dtype, data = np.dtype(self.dtype), base64.b64decode(self.data, validate=True)
        if len(data) != math.prod(self.shape) * dtype.itemsize:
            raise ValueError(f"{len(data)} bytes of data are no {self.dtype} array of shape {self.shape}")
        return np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype).reshape(self.shape)


class _AsArray:
    """How pydantic takes and gives an array: as it is in Python, as an `_Array` in JSON."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        """Validate an object of dtype, shape and data in both modes, an array in Python alone."""
        read = core_schema.no_info_after_validator_function(_Array.array, handler.generate_schema(_Array))
        return core_schema.json_or_python_schema(
            read,
            core_schema.union_schema([core_schema.is_instance_schema(np.ndarray), read], mode="left_to_right"),
            serialization=core_schema.plain_serializer_function_ser_schema(
                _Array.of, return_schema=handler.generate_schema(dict[str, Any]), when_used="json"
            ),
        )

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Describe the object, which is the same in and out."""
        return _Array.model_json_schema()


Pixels = Annotated[
    Image.Image, _AsText((Image.Image,), _picture_of, _picture_text, "A picture: PNG, JPEG or WebP data in base64.")
]
"""A picture, RGB in JSON."""

Brought = Annotated[
    Image.Image | Path,
    _AsText((Image.Image, Path), _picture_of, _picture_text, "A picture: PNG, JPEG or WebP data in base64."),
]
"""A picture that a user brings, in Python also the path where it lies."""

Mask = Annotated[
    np.ndarray, _AsText((np.ndarray,), _mask_of, _mask_text, "A mask, true where it is white: a PNG in base64.")
]
"""A mask (H, W) bool."""

Labels = Annotated[
    np.ndarray, _AsText((np.ndarray,), _labels_of, _labels_text, "A label map: a grey PNG of 16 bits in base64.")
]
"""A label map (H, W) uint16."""

Numbers = Annotated[np.ndarray, _AsArray()]
"""An array of any shape, to the last bit."""
