"""What a user would write who serves diffusers alone: a FastAPI application whose requests wait in one queue.

Requests of equal steps leave together, at most eight, by one call of a pipeline: its batch, steps and guidance are
fixed until it returns. Plain text to image, or with `--two-step` draft, segmentation, moved map and ControlNet as in
`contenders.DiffusersPipelines`, which measures the final against its draft and refuses nothing.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

import numpy as np
import torch
import typer
import uvicorn
from fastapi import FastAPI
from PIL import Image

from ...engine.api.request import GenerationRequest
from ...engine.api.settings import Stage
from ...engine.models.checkpoint import load
from ..contenders import DiffusersPipelines
from ..workloads import SAME_WORK
from .pictures import encoded

Draw = Callable[[Sequence[GenerationRequest]], Sequence[np.ndarray]]

_BATCH = 8


class Queue:
    """Requests that wait, and one worker that draws them."""

    def __init__(self, draw: Draw) -> None:
        self._draw = draw
        self._waiting: deque[tuple[GenerationRequest, asyncio.Future[np.ndarray]]] = deque()
        self._came = asyncio.Event()

    async def drawn(self, request: GenerationRequest) -> np.ndarray:
        """The picture of a request."""
        future: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        self._came.set()
        return await future

    async def work(self) -> None:
        """Draw what waits, for ever."""
        while True:
            await self._came.wait()
            batch = [each for each in self._waiting if each[0].final == self._waiting[0][0].final][:_BATCH]
            for each in batch:
                self._waiting.remove(each)
            if not self._waiting:
                self._came.clear()
            pictures = await asyncio.to_thread(self._draw, [request for request, _ in batch])
            for (_, future), picture in zip(batch, pictures, strict=True):
                if not future.cancelled():
                    future.set_result(picture)


def application(draw: Draw) -> FastAPI:
    """The application around a function that draws."""
    queue = Queue(draw)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        working = asyncio.create_task(queue.work())
        yield
        working.cancel()

    app = FastAPI(lifespan=lifespan)

    @app.get("/readyz")
    async def ready() -> dict[str, bool]:
        return {"ready": True}

    @app.post("/v1/images/generations")
    async def generate(body: dict[str, Any]) -> dict[str, Any]:
        own = body["twig"]
        stage = Stage(steps=own["steps"])
        request = GenerationRequest(
            prompt=body["prompt"], seed=own["seed"], draft=stage, final=stage, avoidance=SAME_WORK
        )
        return {"data": [{"b64_json": encoded(Image.fromarray(await queue.drawn(request)))}]}

    return app


def main(
    port: Annotated[int, typer.Option()],
    two_step: Annotated[
        bool, typer.Option("--two-step", help="Draft, mask and ControlNet in place of one run.")
    ] = False,
) -> None:
    """Serve the embedded model by diffusers' pipelines on a CPU."""
    torch.set_num_threads(1)
    pipelines = DiffusersPipelines(load())
    uvicorn.run(application(pipelines if two_step else pipelines.drafts), port=port, log_level="warning")


if __name__ == "__main__":
    typer.run(main)
