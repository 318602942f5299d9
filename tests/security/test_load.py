"""More than an engine can take: it is bounded, refused before it costs anything, and seen at once where it ends all."""

import asyncio
import base64
import io
import resource
import struct
import threading
import time
import zlib

import pytest
from PIL import Image

from twig.engine.aio import AsyncEngine
from twig.engine.api.errors import EngineBusyError, EngineClosedError, InvalidRequestError
from twig.engine.api.mechanisms import Avoidance
from twig.engine.api.pixels import load_picture
from twig.engine.api.request import GenerationRequest, SimilarityPolicy
from twig.engine.api.rules import Rule
from twig.engine.api.settings import Stage
from twig.engine.batching.scheduler import Limits
from twig.engine.engine import Engine

pytestmark = pytest.mark.slow

MEMORY = 2**17
"""What refusing may take, in KiB: 128 MiB, where a bomb's pixels would take gigabytes."""


def request(steps=2, **changes):
    plain = {"avoidance": Avoidance.off(), "similarity": SimilarityPolicy(limits={})}
    return GenerationRequest(prompt="a red star", draft=Stage(steps=2), final=Stage(steps=steps), **plain | changes)


@pytest.fixture
def engine(tiny_checkpoint):
    return Engine.from_pretrained(tiny_checkpoint, limits=Limits(slots=2, rows=4, waiting=3))


# --- pictures ---


def png(width, height):
    """A PNG that claims a size and holds a line of it."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(999))) + chunk(b"IEND", b"")
    )


def bmp(width, height):
    return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def gif(width, height):
    return (
        b"GIF89a" + struct.pack("<HHBBB", width, height, 0, 0, 0) + b",\0\0\0\0" + struct.pack("<HHB", width, height, 0)
    )


BOMBS = {
    "PNG": png(60_000, 60_000), "a long PNG": png(2**31 - 1, 2**31 - 1), "BMP": bmp(60_000, 60_000),
    "GIF": gif(65_535, 65_535), "a thin PNG": png(1, 2**31 - 1),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
@pytest.mark.parametrize("door", ["path", "stream", "json", "mask"])
def test_a_picture_is_refused_by_the_size_that_it_claims(tmp_path, bomb, door):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    text = base64.b64encode(bomb).decode()
    (tmp_path / "a").write_bytes(bomb)

    def opened():
        Image.MAX_IMAGE_PIXELS, most = None, Image.MAX_IMAGE_PIXELS
        try:
            return Image.open(io.BytesIO(bomb))
        except Exception as error:  # Pillow's own refusal comes before any of ours
            raise InvalidRequestError(str(error)) from error
        finally:
            Image.MAX_IMAGE_PIXELS = most

    doors = {
        "path": lambda: load_picture(tmp_path / "a"),
        "stream": lambda: load_picture(opened()),
        "json": lambda: GenerationRequest.from_json({"prompt": "a", "source": text}),
        "mask": lambda: GenerationRequest.from_json({"prompt": "a", "mask": text}),
    }
    began = time.process_time()
    with pytest.raises(InvalidRequestError):
        doors[door]()
    assert time.process_time() - began < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY


def test_a_photograph_is_decoded_beside_the_event_loop(engine, tmp_path):
    """24 megapixels take a while; whoever else is served by the loop goes on meanwhile."""
    Image.effect_noise((6000, 4000), 50).convert("RGB").save(tmp_path / "a.jpg")

    async def main():
        async with AsyncEngine(engine) as served:
            task = asyncio.create_task(served.generate(request(source=tmp_path / "a.jpg")))
            turns = 0
            while engine.stats().waiting + engine.stats().resident == 0 and not task.done():
                turns += 1
                await asyncio.sleep(0.01)
            await task
            return turns

    assert asyncio.run(main()) > 3


# --- requests ---


def test_more_than_may_wait_is_refused_at_once_and_the_rest_is_served(engine):
    taken, refused = [], 0
    for seed in range(50):
        try:
            taken.append(engine.submit(request(seed=seed)))
        except EngineBusyError:
            refused += 1
    assert refused
    assert 3 <= len(taken) <= 5
    engine.drain()
    assert engine.pending == 0


def test_what_a_reader_does_not_read_is_bounded(engine):
    """A stream of 140 previews whose reader sleeps holds no more than a few, and its result."""

    async def main():
        async with AsyncEngine(engine) as served:
            stream = served.stream(request(steps=140, preview=1))
            seen = [await anext(stream)]
            while engine.pending:
                await asyncio.sleep(0.01)
            return seen + [event async for event in stream]

    seen = asyncio.run(main())
    assert sum(event.picture is not None for event in seen) < 50
    assert seen[-1].result is not None


@pytest.mark.parametrize("error", [RuntimeError("broke"), SystemExit(3), MemoryError()])
def test_a_dead_thread_is_seen_by_all_who_wait_and_by_whoever_asks(engine, monkeypatch, error):
    async def main():
        async with AsyncEngine(engine) as served:
            assert served.alive
            waiting = [asyncio.create_task(served.generate(request(steps=100, seed=seed))) for seed in range(2)]
            await asyncio.sleep(0)

            def step():
                raise error

            monkeypatch.setattr(engine._loop, "step", step)
            outcomes = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 30)
            assert not served.alive
            return outcomes

    assert all(isinstance(outcome, EngineClosedError) for outcome in asyncio.run(main()))
    assert not [thread for thread in threading.enumerate() if "twig" in thread.name.lower()]


# --- rules ---


@pytest.mark.parametrize("clause", ["refuse if ssim > 0.4", "review if (ssim > 0.4 and tile_l2 < 0.1) or phash < 4"])
def test_a_rule_six_times_as_long_takes_about_six_times_as_long(clause):
    def seconds(length):
        text = "; ".join([clause] * (length // len(clause)))
        began = time.process_time()
        Rule.parse(text)
        return time.process_time() - began

    assert seconds(360_000) < 18 * seconds(60_000), "and not 36 times as long"
