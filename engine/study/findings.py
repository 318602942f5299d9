"""What a study found, for programs: the numbers of its report, without a work, a prompt or a picture."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ..api.portable import finite
from ..api.reading import read_model

FILE = "findings.json"
"""Name of the file in a study's folder."""


Known = Annotated[float | None, BeforeValidator(finite)]
Share = Annotated[Annotated[float, Field(ge=0, le=1)] | None, BeforeValidator(finite)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PresetFindings(_Record):
    """One preset: what `report.PresetSummary` says of it; None for what is not known."""

    name: str = Field(max_length=64)
    count: int = Field(ge=0)
    close: Share
    low: Share
    high: Share
    p95: Known
    largest: Known
    kept: Share
    sharpness: Known
    rows: Known
    seconds: Known
    price: Known


class Findings(_Record):
    """The whole study. limits: by measure, empty where there are none. recommended: a preset, None with the reason."""

    made: datetime
    twig: str
    model: str
    prompts: int = Field(ge=0)
    seeds: int = Field(ge=0)
    works: int = Field(ge=0)
    steps: int = Field(ge=1)
    finished: bool
    limits: dict[str, float]
    limits_from: str
    recommended: str | None
    undecided: str | None
    presets: tuple[PresetFindings, ...] = Field(max_length=16)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what a study wrote, the file itself or its folder. Raises ForeignFileError for what is none."""
        return read_model(path / FILE if path.is_dir() else path, cls)
