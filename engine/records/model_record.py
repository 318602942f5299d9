"""What a manifest says of the model: where it was loaded from, and the hash of every part."""

import operator
from typing import Any, Self

from pydantic import Field

from ..api.choices import Precision, Prediction
from ..api.portable import Real
from ..api.request import GenerationRequest
from ..models.adapters import kept_name
from ..models.components import Components
from ..models.controls import PART
from ..models.lora import Adapter
from .record import Record, canonical, text_hash


def _is_none(value: object) -> bool:
    return value is None


class EmbeddingRecord(Record):
    """A textual inversion: its file, that file's SHA-256, and the word that prompts know it by."""

    path: str
    sha256: str
    token: str


class AdapterRecord(Record):
    """An adapter: its file, and that file's SHA-256. name: by which requests know it; weight: of one that was fused."""

    path: str
    sha256: str
    name: str | None = Field(default=None, exclude_if=_is_none)
    weight: Real | None = Field(default=None, exclude_if=_is_none)

    @classmethod
    def of(cls, adapter: Adapter, name: str | None = None, weight: float | None = None) -> Self:
        """Record an adapter."""
        return cls(path=str(adapter.path), sha256=adapter.sha256, name=name, weight=weight)


class ModelRecord(Record):
    """The model: what it was loaded from (None for the embedded one), the hash of each part, its device and dtype.

    controlnet, segmenter, vae, scheduler: what was named in the place of the model's own; preview_vae: beside it. What
    was handed over in memory is named by its class, and lies nowhere. controlnets: places of further ControlNets, by
    name. variant, revision, subfolder, prediction_type: of what was loaded, where they were named. embeddings: words
    that its text encoders were taught. lora: adapters that are a part of the weights; adapters: those that requests may
    name.
    """

    source: str | None = None
    controlnet: str | None = None
    controlnets: dict[str, str] = Field(default_factory=dict)
    segmenter: str | None = None
    vae: str | None = None
    preview_vae: str | None = None
    scheduler: str | None = None
    variant: str | None = None
    revision: str | None = None
    subfolder: str | None = None
    prediction_type: Prediction | None = None
    embeddings: tuple[EmbeddingRecord, ...] = Field(default=(), exclude_if=operator.not_)
    lora: tuple[AdapterRecord, ...] = Field(default=(), exclude_if=operator.not_)
    adapters: tuple[AdapterRecord, ...] = Field(default=(), exclude_if=operator.not_)
    hashes: dict[str, str]
    device: str
    dtype: Precision

    @classmethod
    def of(cls, components: Components) -> Self:
        """Record loaded components."""
        weight = next(components.unet.parameters())
        dtype = Precision(str(weight.dtype).removeprefix("torch."))
        further = {name: place for name, place in components.sources.items() if name.startswith(PART)}
        named: dict[str, Any] = {name: place for name, place in components.sources.items() if name not in further}
        named["controlnets"] = {name.removeprefix(PART): place for name, place in further.items()}
        named["embeddings"] = tuple(
            EmbeddingRecord(path=str(each.path), sha256=each.sha256, token=each.token) for each in components.embeddings
        )
        named["lora"] = tuple(AdapterRecord.of(adapter, weight=given) for adapter, given in components.fused)
        named["adapters"] = tuple(AdapterRecord.of(each, name=name) for name, each in components.adapters.items())
        return cls(**named, hashes=components.hashes, device=weight.device.type, dtype=dtype)

    def drawing(self, request: GenerationRequest) -> dict[str, str]:
        """Hashes of all that a picture of `request` depends on: every part, and the adapters that it names."""
        used = {*request.draft.lora, *request.final.lora}
        idle = {kept_name(each.name) for each in self.adapters if each.name is not None and each.name not in used}
        return {part: found for part, found in self.hashes.items() if part not in idle}

    @property
    def sha256(self) -> str:
        """One hash for all parts."""
        return text_hash(canonical(self.hashes))
