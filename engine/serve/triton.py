"""A model of NVIDIA Triton Inference Server: a decoupled Python backend over a server's engines.

A model repository's `model.py`, as `twig export --to triton-repository` writes it, hands over the module that Triton
brings for its Python backend; nothing here imports it. A request holds a body of the images API as JSON; its answers
are events of a stream, or the whole answer alone, as a server over HTTP gives them.
"""

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..api.errors import TwigError
from .bodies import ImageBody, from_json
from .config import ServeConfig
from .errors import ApiError, told
from .images import GENERATION
from .keys import LOCAL
from .running import Told
from .server import load_all
from .service import Service
from .streaming import Pictures

CONFIG = "serve.yaml"
"""The operator's file, beside `model.py`."""

REQUEST, EVENT = "request", "event"
"""Names of the one input and the one output, each a text of JSON."""

_WATCH = 0.05
"""Seconds between two looks whether a client has left, for Triton tells nobody."""

_CODES = {400: "INVALID_ARG", 403: "INVALID_ARG", 404: "NOT_FOUND", 429: "UNAVAILABLE", 503: "UNAVAILABLE"}


class TwigModel:
    """What Triton calls. utils: its module `triton_python_backend_utils`."""

    def __init__(self, utils: Any) -> None:
        self._utils = utils
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="twig-triton", daemon=True)

    def initialize(self, args: dict[str, str]) -> None:
        """Load what the file beside `model.py` names, on the GPU of this instance where it is one's."""
        folder = Path(args["model_repository"]) / args["model_version"]
        config = ServeConfig.load(folder / CONFIG)
        if args.get("model_instance_kind") == "GPU":
            config = config.on(f"cuda:{args['model_instance_device_id']}")
        self.service = Service.over(load_all(config), config)
        self.service.prepare()
        self.service.warm_up()
        self._thread.start()
        self._wait(self.service.start())

    def execute(self, requests: list[Any]) -> None:
        """Begin to answer requests, and return."""
        for request in requests:
            text = self._utils.get_input_tensor_by_name(request, REQUEST).as_numpy().reshape(-1)[0]
            answering = self._answer(bytes(text), request.get_response_sender())
            asyncio.run_coroutine_threadsafe(answering, self._loop)

    def finalize(self) -> None:
        """Finish what runs, within the operator's deadline."""
        self._wait(self.service.close(self.service.config.drain.deadline))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _wait(self, work: Coroutine[Any, Any, Any]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _answer(self, text: bytes, sender: Any) -> None:
        """Send every event of one request, then that there are no more."""
        utils = self._utils
        drawing = asyncio.ensure_future(self._draw(text, sender))
        watching = asyncio.ensure_future(_cancelled(sender))
        try:
            await asyncio.wait({drawing, watching}, return_when=asyncio.FIRST_COMPLETED)
            if not drawing.done():
                drawing.cancel()
            await drawing
        except asyncio.CancelledError:
            pass
        except (ApiError, TwigError) as error:
            self._refuse(sender, error if isinstance(error, ApiError) else told(error))
        except Exception as error:  # whatever it is, the client is not left waiting
            self._refuse(sender, told(TwigError(str(error))))
        finally:
            watching.cancel()
            with suppress(Exception):  # the client may have left, and nobody hears of it
                sender.send(flags=utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    async def _draw(self, text: bytes, sender: Any) -> None:
        body = from_json(text, ImageBody)
        if body.twig.background:
            message = "twig.background: a stream of Triton's is answered while it is open; leave it out"
            raise ApiError(400, "unsupported_parameter", message, param="twig.background")
        served = self.service.of(body)
        wanted = served.asking.request(body, LOCAL)
        answers = served.answers(body, wanted)
        async with aclosing(served.runner.events(wanted, LOCAL)) as heard:
            if body.stream:
                async for event in _events(heard, Pictures(answers, GENERATION)):
                    await asyncio.to_thread(self._send, sender, event)
            else:
                finished = [one.answer async for one in heard if one.answer is not None]
                await asyncio.to_thread(lambda: self._send(sender, answers.whole(finished)))

    def _send(self, sender: Any, event: dict[str, Any]) -> None:
        data = json.dumps(event, allow_nan=False).encode()
        sender.send(self._utils.InferenceResponse([self._utils.Tensor(EVENT, np.array([data], dtype=np.object_))]))

    def _refuse(self, sender: Any, error: ApiError) -> None:
        """Answer with an error whose message is the API's own, evidence included, as JSON."""
        codes = self._utils.TritonError
        code = getattr(codes, _CODES.get(error.status, "INTERNAL"))
        with suppress(Exception):
            sender.send(self._utils.InferenceResponse(error=codes(json.dumps(error.body["error"]), code)))


async def _events(heard: AsyncGenerator[Told], pictures: Pictures) -> AsyncGenerator[dict[str, Any]]:
    """The API's events of what is heard, those alone that there are."""
    async for one in heard:
        for event in await pictures.hear(one):
            yield event


async def _cancelled(sender: Any) -> None:
    """Return once the client has left."""
    while not sender.is_cancelled():
        await asyncio.sleep(_WATCH)
