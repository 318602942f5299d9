"""The manifest of an image: everything that is needed to account for it and to make it again."""

import hashlib
import operator
import platform
import re
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal, Protocol, Self

import numpy as np
import torch
from PIL import Image
from pydantic import Field, field_validator, model_validator

from ..api.pixels import Picture, load_picture
from ..api.portable import Real
from ..api.prompts import parsed
from ..api.reading import is_text, read_model, reading
from ..api.request import PICTURES, GenerationRequest
from ..api.result import Attempt, GateDecision, GenerationResult, Verdict
from ..api.rules import Rule
from ..api.writing import write_new
from ..models.components import Components
from .model_record import ModelRecord
from .record import Record, canonical, text_hash

DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's term for media made by a trained model."""

_NAME = re.compile(r"(?!\.{1,2}$)[^/\0]{1,255}")

LIBRARIES = ("twig-engine", "torch", "diffusers", "transformers", "safetensors", "numpy", "pillow")


def _is_none(value: object) -> bool:
    return value is None


class InputRecord(Record):
    """A picture or mask the user brought: where it lay and its pixels' hash.

    path: None if it was handed over in memory, or lay under a name that is no text, which no record can hold.
    """

    path: Path | None
    sha256: str

    @classmethod
    def of(cls, given: Picture | np.ndarray | None, pixels: Image.Image | np.ndarray) -> Self:
        """Record `pixels`, read from `given` if that is a path."""
        path = Path(given).resolve() if isinstance(given, str | Path) else None
        if path is not None and not is_text(str(path)):
            path = None
        return cls(path=path, sha256=pixel_hash(pixels))

    @classmethod
    def source_of(cls, request: GenerationRequest) -> Self | None:
        """Record the source that a request brings; one given by its path is read again."""
        return None if request.source is None else cls.of(request.source, load_picture(request.source))

    @classmethod
    def mask_of(cls, request: GenerationRequest) -> Self | None:
        """Record the mask that a request brings."""
        return None if request.mask is None else cls.of(None, request.mask)

    @classmethod
    def controls_of(cls, request: GenerationRequest) -> dict[str, Self]:
        """Record the control images that a request brings, by ControlNet."""
        return {
            control.name: cls.of(control.image, load_picture(control.image))
            for control in request.controls
            if control.image is not None
        }


class Modelled(Protocol):
    """What has a model: an engine."""

    components: Components


class Machine(Record):
    """What an image's last bits depend on besides the model: processor, device, threads."""

    system: str
    processor: str
    device: str
    threads: int

    @classmethod
    def here(cls, device: str) -> Self:
        """Describe this machine and its `device` ("cpu" or "cuda")."""
        name = torch.cuda.get_device_name() if device == "cuda" else f"CPU {torch.backends.cpu.get_cpu_capability()}"
        return cls(system=platform.system(), processor=platform.machine(), device=name, threads=torch.get_num_threads())


class Hashes(Record):
    """SHA-256 of the pixels of each picture of a result, by `pixel_hash`."""

    draft: str | None
    mask: str | None
    label_map: str | None
    control_map: str | None
    image: str | None

    @classmethod
    def of(cls, result: GenerationResult) -> Self:
        """Hash the pictures of `result`."""
        pictures = {name: getattr(result, name) for name in cls.model_fields}
        return cls(**{name: None if pixels is None else pixel_hash(pixels) for name, pixels in pictures.items()})


class PromptRecord(Record):
    """How prompts were read: what stands between breaks as (text, weight), and the chunks that they were encoded as."""

    prompt: tuple[tuple[tuple[str, Real], ...], ...]
    negative_prompt: tuple[tuple[tuple[str, Real], ...], ...]
    chunks: int

    @classmethod
    def of(cls, result: GenerationResult) -> Self:
        """Read the prompts of a result again."""
        request = result.request
        prompt, negative = (parsed(each, request.prompt_syntax) for each in (request.prompt, request.negative_prompt))
        return cls(prompt=prompt, negative_prompt=negative, chunks=result.chunks)


Ran = Annotated[str, Field(pattern=r"^(onnxruntime|openvino|tensorrt) (fp32|fp16|bf16)$")]
"""A backend, and what it computed in."""


class Manifest(Record):
    """Everything that is needed to account for one image and to make it again.

    image: file name of the picture beside the manifest. request: without the pictures it brought, of which source, mask
    and controls hold the hashes. parsed: how its prompts were read, None in a record from before they had a syntax.
    gate: whether avoidance was switched on, and by what. registry: version of the registered works that the picture was
    compared with. metrics: SHA-256 of the weights of further measures, by what named them. bank: version of the shapes
    that control maps were composed of. attempts: noise seed, mechanisms, scores with their limits, shapes and UNet rows
    of each final. backends: what ran networks that PyTorch did not, with what it computed in. rule: what they were
    judged by, in numbers. timings: seconds by stage.
    """

    version: Literal[1] = 1
    created: datetime = Field(default_factory=lambda: datetime.now(UTC))
    image: str | None
    verdict: Verdict
    error: str | None
    index: int
    request: GenerationRequest
    request_sha256: str
    parsed: PromptRecord | None = None
    source: InputRecord | None
    mask: InputRecord | None
    controls: dict[str, InputRecord] = Field(default_factory=dict)
    model: ModelRecord
    hashes: Hashes
    gate: GateDecision | None
    registry: str | None
    metrics: dict[str, str] = Field(default_factory=dict)
    backends: dict[str, Ran] = Field(default_factory=dict, exclude_if=operator.not_)
    attempts: tuple[Attempt, ...]
    rule: str
    calibration: str | None
    bank: str | None = None
    draft_rows: int
    rows: int
    timings: dict[str, Real]
    machine: Machine
    libraries: dict[str, str]
    python: str
    digital_source_type: str = DIGITAL_SOURCE_TYPE

    @field_validator("request")
    @classmethod
    def _without_pictures(cls, request: GenerationRequest) -> GenerationRequest:
        controls = tuple(control.model_copy(update={"image": None}) for control in request.controls)
        return request.model_copy(update={"source": None, "mask": None, "controls": controls})

    @property
    def brought(self) -> list[str | None]:
        """SHA-256 of source and mask, and of each control image, by the names of their ControlNets."""
        inputs = [self.source, self.mask, *(self.controls[name] for name in sorted(self.controls))]
        return [None if record is None else record.sha256 for record in inputs]

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not 0 <= self.index < self.request.num_images:
            raise ValueError(f"index {self.index} is none of the request's {self.request.num_images} images")
        if self.image is not None and not _NAME.fullmatch(self.image):
            raise ValueError(f"image must be the name of a file beside the manifest, got {self.image!r}")
        if self.rule:
            Rule.parse(self.rule)
        return self

    @classmethod
    def of(
        cls,
        result: GenerationResult,
        model: ModelRecord,
        image: str | None = None,
        source: InputRecord | None = None,
        mask: InputRecord | None = None,
    ) -> Self:
        """Account for `result`.

        source, mask: records of what the user brought, where more is known of it than the request says. Raises
        InvalidRequestError for a source that no longer lies where it lay.
        """
        return cls(
            image=image,
            verdict=result.verdict,
            error=result.error,
            index=result.index,
            request=result.request,
            request_sha256=request_hash(result.request),
            parsed=PromptRecord.of(result),
            source=source or InputRecord.source_of(result.request),
            mask=mask or InputRecord.mask_of(result.request),
            controls=InputRecord.controls_of(result.request),
            model=model,
            hashes=Hashes.of(result),
            gate=result.gate,
            registry=result.registry,
            metrics=dict(result.metrics),
            backends=dict(result.backends),
            attempts=result.attempts,
            rule=result.rule,
            calibration=result.calibration,
            bank=result.bank,
            draft_rows=result.draft_rows,
            rows=result.rows,
            timings=result.timings,
            machine=Machine.here(model.device),
            libraries=libraries(),
            python=platform.python_version(),
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a manifest; raises ForeignFileError, an InvalidRequestError, if the file is none."""
        with reading(path, "not a manifest of Twig"):
            return read_model(path, cls)

    def save(self, path: Path) -> None:
        """Write the manifest whole, readable by its owner alone, for it holds the prompt.

        Raises FileExistsError for anything that is there: a record is never replaced.
        """
        write_new(path, self.model_dump_json(indent=1).encode() + b"\n", private=True)


def libraries() -> dict[str, str]:
    """Versions of what computes a picture, by name."""
    return {name: _version(name) for name in LIBRARIES}


@cache
def _version(name: str) -> str:
    """A package's version, looked up once: each look parses the whole of its metadata."""
    return version(name)


def pixel_hash(pixels: Image.Image | np.ndarray) -> str:
    """SHA-256 of a picture: its dtype and shape as NumPy writes them, then its values in row order."""
    array = np.ascontiguousarray(pixels)
    return hashlib.sha256(f"{array.dtype.str}{array.shape}".encode() + array.tobytes()).hexdigest()


def request_hash(request: GenerationRequest) -> str:
    """SHA-256 of a request's settings and prompts, without the pictures it brings."""
    return text_hash(canonical(request.model_dump(mode="json", exclude=PICTURES)))
