"""One model of a server: its engine, how bodies become its requests, and how those are run and worded."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from ..aio import AsyncEngine
from ..api.presets import BUNDLES
from ..api.reading import shown
from ..api.request import GenerationRequest
from ..engine import Engine
from ..records.model_record import ModelRecord
from .admission import Admission
from .answers import Answers
from .asking import Asking
from .bodies import ImageBody
from .config import ServeConfig
from .errors import ApiError
from .keeping import Keeper, Kept
from .running import Runner
from .tenants import Tenants

Named = TypeVar("Named")


@dataclass(frozen=True, eq=False)
class Served:
    """A model and what is made over it. config: the operator's file as it would be for this model alone."""

    config: ServeConfig
    engine: AsyncEngine
    asking: Asking
    runner: Runner

    @classmethod
    def over(cls, engine: Engine, config: ServeConfig, tenants: Tenants, keeper: Keeper) -> "Served":
        """Put the parts together around an engine; tenants and records are those of the whole server."""
        running = AsyncEngine(engine)
        admission = Admission(engine, config.bounds.wait, tenants)
        return cls(config, running, Asking.over(engine, config), Runner(running, admission, keeper))

    @property
    def name(self) -> str:
        """The model's own name."""
        return self.config.model.name

    def warm_up(self) -> None:
        """Make the engine ready for first requests, and go on in the background with what more of them need.

        Also for long prompts and cached steps where the file or its preset has them.
        """
        cached = "cache_interval" in BUNDLES[self.config.drawing.preset].final
        long = (self.config.model.prompt_chunks or 1) > 1
        self.engine.engine.warmup(long_prompts=long, cached_steps=cached, background=True)

    def answers(self, body: ImageBody, request: GenerationRequest) -> Answers:
        """What words the answer to a body, of which `request` was made."""
        engine, signer = self.engine.engine, self.runner.keeper.signer
        tokens, delivering = engine.prompt_tokens(request), self.config.drawing.review == "deliver"
        if signer is None:
            return Answers(body, request, delivering, tokens)

        def sign(picture: bytes, kept: Kept) -> bytes:
            return signer.sign(picture, kept.sha256, ModelRecord.of(engine.components).sha256)

        return Answers(body, request, delivering, tokens, sign)


class Load(NamedTuple):
    """What several engines have before them. rows: of the UNet. rate: rows a second at which they work them off."""

    rows: int
    rate: float


def load_of(engines: Sequence[Engine]) -> Load:
    """The load of engines that share a device: what each has takes its own time, one after the other."""
    measured = [(engine.queued_rows, engine.rows_per_second) for engine in engines]
    rows = sum(queued for queued, _ in measured)
    seconds = sum(queued / rate for queued, rate in measured if rate)
    if seconds:
        return Load(rows, sum(queued for queued, rate in measured if rate) / seconds)
    rates = [rate for _, rate in measured if rate]
    return Load(rows, sum(rates) / len(rates) if rates else 0.0)


def names_of(config: ServeConfig) -> Iterator[str]:
    """The names that a model of this view answers to, its own first."""
    yield config.model.name
    yield from config.model.aliases


def picked(models: Mapping[str, Named], name: str | None) -> Named:
    """The model that a body names, the first where it names none. Raises ApiError (404) for one that there is not.

    models: by every name, aliases included.
    """
    if name is None:
        return next(iter(models.values()))
    if name not in models:
        own = dict[int, str]()
        for each, model in models.items():
            own.setdefault(id(model), each)
        known = ", ".join(map(repr, own.values()))
        message = f"the model {shown(repr(name))} does not exist here; there is {known}"
        raise ApiError(404, "model_not_found", message, param="model")
    return models[name]
