import pytest
import torch
import typer
from typer.testing import CliRunner

from twig.benchmarks.gpu import __main__ as command
from twig.benchmarks.gpu import pretending
from twig.benchmarks.gpu.models import SMALL
from twig.benchmarks.gpu.parts import PARTS, measure
from twig.benchmarks.gpu.parts.operators import poisoned

_SHORT = ("machine", "operators", "layers", "attention")

app = typer.Typer()
app.command()(command.main)


@pytest.mark.parametrize("name", [n if n in _SHORT else pytest.param(n, marks=pytest.mark.slow) for n in PARTS])
def test_every_part_runs_and_what_it_checks_holds_on_a_cpu(bench, name):
    rows = list(measure(name, bench))
    assert rows
    assert [row for row in rows if row.get("ok") is False] == []


def test_fresh_memory_is_poisoned():
    with poisoned():
        assert torch.empty(1000).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.fixture
def without_device(monkeypatch):
    """No GPU, whatever the machine has; a small model to be modelled."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(command, "SD15", SMALL)


def test_without_a_device_the_command_says_so_and_models_one(without_device, monkeypatch, tmp_path):
    monkeypatch.setattr(pretending, "_HELPERS", tmp_path)
    result = CliRunner().invoke(app, ["--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "no CUDA device" in result.output
    assert "class=convolution" in result.output
    assert "No device was pretended: the project's tests" in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(not (pretending._HELPERS / "pretend").is_dir(), reason="the tests hold no pretended device")
def test_without_a_device_one_is_pretended(without_device, tmp_path):
    result = CliRunner().invoke(app, ["--out", str(tmp_path)])
    if "No device was pretended" in result.output:
        pytest.skip(result.output.splitlines()[-1])
    assert result.exit_code == 0, result.output
    assert "What was checked on a pretended device held" in result.output
    assert (tmp_path / "gpu_pretended.jsonl").exists()


def test_a_part_that_there_is_not_is_refused_by_name(tmp_path):
    result = CliRunner().invoke(app, ["--only", "spede", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "spede" in result.output


def test_parts_whose_rows_are_there_are_not_run_again(tmp_path):
    arguments = ["--quick", "--here", "--only", "machine", "--out", str(tmp_path)]
    for _ in range(2):
        assert CliRunner().invoke(app, arguments).exit_code == 0
    (file,) = tmp_path.iterdir()
    once = file.read_text()
    CliRunner().invoke(app, [*arguments, "--again"])
    assert len(file.read_text().splitlines()) == 2 * len(once.splitlines())
