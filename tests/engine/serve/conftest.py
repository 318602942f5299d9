"""A real server on loopback, made once for all tests of it, and the real client that talks to it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("httpx2", reason="servers and their clients need httpx2")
pytest.importorskip("openai", reason="servers and their clients need openai")
pytest.importorskip("fastapi", reason="servers and their clients need fastapi")

from certificates import signing  # noqa: F401 - a fixture
from small_adapters import save_adapter

from servers import Running, running
from twig.engine.batching.scheduler import Limits
from twig.engine.engine import Engine
from twig.engine.models.checkpoint import load
from twig.engine.serve.config import ServeConfig

STEPS = 1


@pytest.fixture(scope="session")
def ink(tiny_checkpoint, tmp_path_factory) -> Path:
    """File of an adapter."""
    path = tmp_path_factory.mktemp("adapters") / "ink.safetensors"
    return save_adapter(path, load(tiny_checkpoint), 1, taken=lambda name: "unet" in name)


@pytest.fixture(scope="session")
def served_engine(tiny_checkpoint, ink) -> Engine:
    """A tiny model with an adapter, for every server of these tests."""
    return Engine.from_pretrained(tiny_checkpoint, adapters={"ink": ink}, limits=Limits(slots=8, rows=8))


@pytest.fixture(scope="session")
def turbo_engine(tiny_xl_checkpoint) -> Engine:
    """A tiny model of another kind, for servers of several."""
    return Engine.from_pretrained(tiny_xl_checkpoint, limits=Limits(slots=4, rows=4))


@pytest.fixture(scope="session")
def plain_config(tmp_path_factory, ink) -> ServeConfig:
    """Two steps, nothing refused, and no waiting at the end."""
    folder = tmp_path_factory.mktemp("served")
    return ServeConfig(
        model={"aliases": ["gpt-image-1"], "adapters": {"ink": str(ink)}},
        drawing={"steps": STEPS, "rule": "refuse if ssim > 1", "preset": "gentle"},
        records={"folder": folder},
        drain={"grace": 0, "deadline": 5},
    )


@pytest.fixture(scope="session")
def served(served_engine, plain_config) -> Iterator[Running]:
    """The server that most tests share."""
    with running(served_engine, plain_config) as server:
        yield server


@pytest.fixture(scope="session")
def client(served):
    """Its client."""
    return served.client()
