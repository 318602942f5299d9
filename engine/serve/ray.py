"""Ray Serve: one replica a device, as many of them as the queued rows take.

`serve run twig.engine.serve.ray:app config=serve.yaml` starts it. What a replica serves is the application of
`twig serve`, streams, cancellation and records included; Ray's proxy passes requests on.
"""

import math
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import Field
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy

from ..api.settings import Settings
from .app import application
from .config import ServeConfig
from .server import check_drawing, load_all, on_cpu
from .service import Service

QUEUED, RATE = "queued_rows", "rows_per_second"
"""What each replica tells the autoscaler."""


class Options(Settings):
    """What `serve run` and a config file's `args` may say.

    config: the operator's file, on this machine; the paths in it are the same on every other. least, most: replicas.
    seconds: that what is queued may take, beyond which replicas are added. cpus: cores that each reserves. patience:
    seconds for which fewer must be enough before one goes.
    """

    config: Path | None = None
    least: int = Field(default=1, ge=1)
    most: int = Field(default=1, ge=1)
    seconds: float = Field(default=10.0, gt=0)
    cpus: float = Field(default=1.0, gt=0)
    patience: float = Field(default=120.0, ge=0)


class Wanted:
    """An autoscaling policy of Ray's: as many replicas as work off what is queued in `seconds`.

    They are taken to be as fast as the running ones were lately; before anything was measured, nothing changes.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """How many replicas are wanted, and nothing to remember."""
        told = context.aggregated_metrics or {}
        rates = [rate for rate in told.get(RATE, {}).values() if rate > 0]
        if not rates:
            return context.target_num_replicas, {}
        rows, rate = sum(told.get(QUEUED, {}).values()), sum(rates) / len(rates)
        wanted = math.ceil(rows / (rate * self.seconds))
        return max(context.capacity_adjusted_min_replicas, min(context.capacity_adjusted_max_replicas, wanted)), {}


class Replica:
    """The engines of one device, and the application over them."""

    def __init__(self, config: ServeConfig) -> None:
        self._app = application(load_all(config), config)
        self._service: Service = self._app.state.service
        check_drawing(self._service)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """What Ray serves; its lifespan starts the engine and lets it finish."""
        return self._app

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What Ray asks each replica for."""
        load = self._service.load
        return {QUEUED: float(load.rows), RATE: load.rate}

    def check_health(self) -> None:
        """Raise where an engine's thread died, and Ray starts another replica."""
        if self._service.warm and not (self._service.alive or self._service.draining):
            raise RuntimeError("an engine does not run any more")


_DEPLOYMENT: Any = serve.deployment(name="twig")(serve.ingress()(Replica))


def app(options: Options) -> Application:
    """The application for `serve run` and config files. Raises what reading the operator's file raises."""
    config = ServeConfig() if options.config is None else ServeConfig.load(options.config.absolute())
    policy = AutoscalingPolicy(policy_function=Wanted, policy_kwargs={"seconds": options.seconds})
    return _DEPLOYMENT.options(
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": 0 if on_cpu(config) else 1},
        autoscaling_config=AutoscalingConfig(
            min_replicas=options.least,
            max_replicas=max(options.least, options.most),
            upscale_delay_s=2.0,
            downscale_delay_s=options.patience,
            policy=policy,
        ),
        max_ongoing_requests=sum(view.model.waiting for view in config.views),
        graceful_shutdown_timeout_s=config.drain.deadline,
    ).bind(config)
