"""What every test may use: complete tiny models, made once a worker, and a folder that all workers share."""

import gc
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports PyTorch: a worker is one of as many as there are cores.
os.environ["OMP_NUM_THREADS"] = "1"
# Beside a PyTorch for the processor too: what compiles kernels, and what a GPU would run, is tested without one.
os.environ["TWIG_TRITON"] = "1"


def pytest_collection_finish() -> None:
    """What is imported by now stays, so the collector need not walk it time and again."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say of each area of `tests/security` how many attacks held, wherever they ran."""
    counts: dict[str, Counter[str]] = {}
    for outcome, held in (("passed", "held"), ("failed", "broken"), ("error", "broken"), ("skipped", "not tried")):
        for report in terminalreporter.stats.get(outcome, ()):
            path = Path(report.nodeid.partition("::")[0])
            if path.parent.name == "security":
                area = path.stem.removeprefix("test_").replace("_", " ")
                counts.setdefault(area, Counter())[held] += 1
    if counts:
        terminalreporter.section("attacks by area")
    for area, found in sorted(counts.items()):
        tried = f"{found['held']} held / {found['broken']} broken"
        skipped = f" / {found['not tried']} not tried" if found["not tried"] else ""
        terminalreporter.write_line(f"{area}: {tried}{skipped}")


@pytest.fixture(scope="session", autouse=True)
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An installation of the tests' own, so that they leave the user's secret alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TWIG_SECRET", str(tmp_path_factory.mktemp("installation") / "secret"))
        yield


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder of this run that all its workers see. What is made there takes a lock, and is made once."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if hasattr(request.config, "workerinput") else folder


@pytest.fixture(scope="session")
def postgresql():
    """URL of a database on a server of this run's own."""
    pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed")
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    from databases import CannotStartError, server

    try:
        with server() as url:
            yield url
    except CannotStartError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def builder(shared_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """What builds the artifacts of the tiny models, whose weights are the same in every worker, into one store."""
    from shared_graphs import SharedGraphs
    from twig.export.store import ArtifactStore

    return SharedGraphs(ArtifactStore(shared_folder / "artifacts"), tmp_path_factory.mktemp("programs"))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a complete tiny random model: 64x64 pictures, 16x16x4 latents. Copy it to change it."""
    from tiny_models import save_checkpoint

    folder = tmp_path_factory.mktemp("tiny")
    save_checkpoint(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_xl_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a complete tiny random model in SDXL's layout: sizes as in `tiny_checkpoint`. Copy it to change it."""
    from tiny_models import save_xl_checkpoint

    folder = tmp_path_factory.mktemp("tiny_xl")
    save_xl_checkpoint(folder)
    return folder


@pytest.fixture
def skip_without_bf16():
    """Return a function that skips what computes in bf16 where this CPU has no instructions for it."""

    def skip():
        core = pytest.importorskip("twig.engine.backends.openvino", exc_type=ImportError).process_core()
        if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            pytest.skip("this CPU has no bf16 instructions")

    return skip
