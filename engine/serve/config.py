"""The operator's file: what is served, under which rule, within which limits, to whom, and what is kept of it."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from ..api.choices import Backend, Compute, Precision, Prediction, Preset, Sigmas, Solver, Spacing
from ..api.errors import InvalidRequestError
from ..api.reading import MAX_JSON, MEBIBYTE, first_problem, read_text, shown
from ..api.rules import Rule
from ..api.settings import Fraction, Settings
from .places import metric_from, told_from

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class _YamlLoader(yaml.SafeLoader):
    """Safe YAML in which a name stands once in its section, as in TOML: no limit is dropped in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for place, key in enumerate(names):
            if key.value in (before.value for before in names[:place]):
                said = f"{shown(repr(key.value), 80)} is given twice"
                raise yaml.constructor.ConstructorError(None, None, said, key.start_mark)
        return super().construct_mapping(node, deep=deep)


class Listen(Settings):
    """Where clients find it. keys: file of API keys; without one only this machine is listened to.

    connections: the most that are kept; beyond them, one over which nothing is asked is closed. patience: seconds in
    which a request must have come, body included, and in any of which something of an answer must be read.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    keys: Path | None = None
    connections: int = Field(default=2048, ge=1)
    patience: float = Field(default=120.0, gt=0)


class Model(Settings):
    """What is served, as `Engine.from_pretrained` takes it, under `name`; `aliases` are other names for it.

    controlnets: further ControlNets, by the names that clients know them by. lora: FILE or FILE:WEIGHT of adapters that
    are fused. adapters: files of those that clients may choose, by name. metrics: further measures, as `twig generate
    --metric` names them. slots, rows, company, waiting: see `Limits` of the engine; by the device where they
    are left out. backend, precision: what runs the networks, and what they compute in where they are compiled.
    program_budget: bytes that OpenVINO's programs may have, as the engine takes it; any where it is left out.
    prompt_chunks: the engine's `max_prompt_chunks`; where it is named, long prompts are prepared for
    at the start.
    """

    name: str = "twig"
    aliases: tuple[str, ...] = ()
    path: str | None = None
    controlnet: str | None = None
    controlnets: dict[str, str] = Field(default_factory=dict)
    segmenter: str | None = None
    vae: str | None = None
    preview_vae: str | None = None
    embeddings: tuple[str, ...] = ()
    lora: tuple[str, ...] = ()
    adapters: dict[str, str] = Field(default={})
    variant: str | None = None
    revision: str | None = None
    prediction_type: Prediction | None = None
    device: str | None = None
    dtype: Precision = Precision.FLOAT32
    backend: Backend = Backend.TORCH
    precision: Compute = Compute.FP32
    calibration: Path | None = None
    bank: Path | None = None
    registry: Path | None = None
    metrics: tuple[str, ...] = ()
    slots: int | None = Field(default=None, ge=1)
    rows: int | None = Field(default=None, ge=1)
    company: int | None = Field(default=None, ge=0)
    program_budget: int | None = Field(default=None, ge=0)
    waiting: int = Field(default=256, ge=1)
    prompt_chunks: int | None = Field(default=None, ge=1, le=8)


class Drawing(Settings):
    """How is drawn and judged. Clients may choose another number of steps, guidance and solver, and tighten the rest.

    preset: the lightest that clients may ask for, and what they get who ask for none. rule: in the language of
    `twig.engine.api.rules`; without one the model's calibrated limits hold. review: whether a picture that the rule
    leaves to a person is delivered, marked so, or withheld until one has looked. solver, spacing, sigmas: the model's
    own if None.
    """

    preset: Preset = Preset.DEFAULT
    rule: str | None = None
    steps: int = Field(default=20, ge=1, le=1000)
    guidance: float = Field(default=5.0, ge=0, le=50)
    guidance_rescale: Fraction = 0.0
    solver: Solver | None = None
    spacing: Spacing | None = None
    sigmas: Sigmas | None = None
    review: Literal["deliver", "withhold"] = "withhold"

    @field_validator("rule")
    @classmethod
    def _readable(cls, rule: str | None) -> str | None:
        return None if rule is None else str(Rule.parse(rule))


class Further(Model):
    """A further model of the same server.

    drawing: how its pictures are drawn, that of the others where it has none. study: folder of a `twig assess` of it.
    """

    drawing: Drawing | None = None
    study: Path | None = None


_Model = TypeVar("_Model", bound=Model)


class Bounds(Settings):
    """The most that one request may ask for.

    pixels: of a picture. steps: of each stage. images: `n`. body, upload: bytes of a JSON body and of a form with its
    pictures. upload_pixels: of a picture that is sent. deadline: seconds, also of those who name none. wait: seconds
    that what is queued may take; who comes when it takes longer is sent away. drafts: whether clients may see drafts
    and previews, which can be the very copies that finals keep away from. controls: whether clients may send control
    images for further ControlNets, which say where things are drawn.
    """

    pixels: int = Field(default=2**20, ge=64)
    steps: int = Field(default=50, ge=1, le=1000)
    images: int = Field(default=4, ge=1, le=10)
    body: int = Field(default=MEBIBYTE, ge=1024)
    upload: int = Field(default=16 * MEBIBYTE, ge=1024)
    upload_pixels: int = Field(default=2**24, ge=64, le=2**26)
    deadline: float = Field(default=600.0, gt=0)
    wait: float = Field(default=60.0, gt=0)
    drafts: bool = True
    controls: bool = False


class Records(Settings):
    """What is kept. folder: of manifests and, where `log` is none, of the audit log. log: a path, or a database's URL.

    prompts: whether the log holds them. pictures: whether pictures are kept beside their manifests. sign: certificate
    and private key, PEM files that all pictures get content credentials by, those of answers too.
    """

    folder: Path = Path("records")
    log: str | None = None
    sign: tuple[Path, Path] | None = None
    prompts: bool = False
    pictures: bool = False


class Page(Settings):
    """The page at `/`. shown: whether there is one. study: folder of a `twig assess` of `model`, which it shows."""

    shown: bool = True
    study: Path | None = None


class Jobs(Settings):
    """Jobs in the background, and answers that are given again to the same key of idempotency.

    store: URL of a database, SQLite or PostgreSQL, which several servers may share; a file in the folder of the records
    unless given. artefacts: a folder, or s3://bucket/prefix at `endpoint`, of requests and answers; beside it unless
    given. running: jobs at a time. waiting: jobs that may wait; each: of one key, where there are keys. lease: seconds
    after which the jobs of a server that died are run by another. keep: hours that answers are kept.
    """

    store: str | None = None
    artefacts: str | None = None
    endpoint: str | None = None
    running: int = Field(default=4, ge=1)
    waiting: int = Field(default=1000, ge=1)
    each: int = Field(default=100, ge=1)
    lease: float = Field(default=30.0, ge=0.5)
    keep: float = Field(default=24.0, gt=0)


class Drain(Settings):
    """How it ends on SIGTERM. grace: seconds that it is unready and still listens; deadline: seconds to finish in."""

    grace: float = Field(default=5.0, ge=0)
    deadline: float = Field(default=120.0, ge=0)


class ServeConfig(Settings):
    """The whole file. model: what is drawn by where nobody says; models: what clients may name besides."""

    listen: Listen = Listen()
    model: Model = Model()
    models: tuple[Further, ...] = ()
    drawing: Drawing = Drawing()
    bounds: Bounds = Bounds()
    records: Records = Records()
    page: Page = Page()
    jobs: Jobs = Jobs()
    drain: Drain = Drain()

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the file, YAML or TOML by its name; paths in it are told from its folder.

        Raises ForeignFileError for what cannot be read, InvalidRequestError naming the first value that is wrong.
        """
        text = read_text(path, MAX_JSON)
        try:
            values = tomllib.loads(text) if path.suffix == ".toml" else yaml.load(text, _YamlLoader)
        except (tomllib.TOMLDecodeError, yaml.YAMLError, RecursionError) as error:
            raise InvalidRequestError(f"{shown(path)}: no {_language(path)}: {shown(error)}") from error
        if not isinstance(values, Mapping):
            raise InvalidRequestError(f"{shown(path)}: sections are expected, such as `model:`")
        try:
            return cls(**{str(name): value for name, value in values.items()})._told_from(path.parent)
        except ValidationError as error:
            raise InvalidRequestError(f"{shown(path)}: {first_problem(error)}") from error

    @model_validator(mode="before")
    @classmethod
    def _drawn_as_the_first(cls, values: dict[str, Any]) -> dict[str, Any]:
        """What the `drawing` of a further model leaves out is as the file's own, so that no rule is lost."""
        models, usual = values.get("models"), values.get("drawing")
        if not (isinstance(models, list | tuple) and isinstance(usual, Mapping | Drawing)):
            return values
        return {**values, "models": [_drawn_as(dict(usual), each) for each in models]}

    @model_validator(mode="after")
    def _each_by_its_name(self) -> Self:
        seen = set[str]()
        for served in (self.model, *self.models):
            for name in (served.name, *served.aliases):
                if name in seen:
                    raise ValueError(
                        f"models: the name {shown(repr(name), 80)} is given twice; give each model its own"
                    )
                seen.add(name)
        return self

    @property
    def views(self) -> "tuple[Self, ...]":
        """The file as it would be for each model alone, that of `model` first."""
        return self.model_copy(update={"models": ()}), *map(self._view, self.models)

    def _view(self, model: Further) -> Self:
        page = self.page.model_copy(update={"study": model.study})
        own = {"model": model, "drawing": model.drawing or self.drawing, "page": page}
        return self.model_copy(update={"models": (), **own})

    def with_(self, section: str, **changes: Any) -> Self:
        """The same with other values in one section, checked as those of the file are."""
        held: Settings = getattr(self, section)
        return self.model_copy(update={section: type(held)(**{**held.model_dump(), **changes})})

    def on(self, device: str) -> Self:
        """The same with every model on one device."""
        models = (type(each)(**{**each.model_dump(), "device": device}) for each in (self.model, *self.models))
        first, *further = models
        return self.model_copy(update={"model": first, "models": tuple(further)})

    def _told_from(self, folder: Path) -> Self:
        """Paths of the file as paths of this process; a model that is no folder there stays what it is, a hub id."""
        told = {section: told_from(folder, getattr(self, section), names) for section, names in _PATHS.items()}
        further = tuple(_model_from(folder, each, *_PLACES, "study") for each in self.models)
        return self.model_copy(update={**told, "model": _model_from(folder, self.model, *_PLACES), "models": further})


_FILES = (
    "controlnet", "segmenter", "vae", "preview_vae", "embeddings", "lora", "adapters", "calibration", "bank",
    "registry",
)  # fmt: skip
PARTS = (*_FILES, "variant", "revision", "prediction_type", "metrics")
"""What `Model` says in the words of `Engine.from_pretrained`, besides the model itself."""

_PLACES = ("path", "controlnets", *_FILES)
_PATHS = {
    "listen": ("keys",),
    "records": ("folder", "log", "sign"),
    "page": ("study",),
}


def _model_from(folder: Path, model: _Model, *places: str) -> _Model:
    metrics = tuple(metric_from(folder, spec) for spec in model.metrics)
    return told_from(folder, model, places, metrics=metrics)


def _drawn_as(usual: dict[str, Any], model: Any) -> Any:
    """A further model as it is written, with what its own `drawing` leaves out."""
    own = model.get("drawing") if isinstance(model, Mapping) else None
    return {**model, "drawing": usual | dict(own)} if isinstance(own, Mapping) else model


def _language(path: Path) -> str:
    return "TOML" if path.suffix == ".toml" else "YAML"
