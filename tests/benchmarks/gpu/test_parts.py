import pytest
import torch
import typer
from typer.testing import CliRunner

from twig.benchmarks.gpu.__main__ import main
from twig.benchmarks.gpu.parts import PARTS, measure
from twig.benchmarks.gpu.parts.operators import poisoned

_SHORT = ("machine", "operators", "layers", "attention")

app = typer.Typer()
app.command()(main)


@pytest.mark.parametrize("name", [n if n in _SHORT else pytest.param(n, marks=pytest.mark.slow) for n in PARTS])
def test_every_part_runs_and_what_it_checks_holds_on_a_cpu(bench, name):
    rows = list(measure(name, bench))
    assert rows
    assert [row for row in rows if row.get("ok") is False] == []


def test_fresh_memory_is_poisoned():
    with poisoned():
        assert torch.empty(1000).isnan().all()
    assert not torch.are_deterministic_algorithms_enabled()


def test_without_a_device_the_command_says_so_and_models_one(tmp_path):
    result = CliRunner().invoke(app, ["--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "no CUDA device" in result.output
    assert "class=convolution" in result.output
    assert not list(tmp_path.iterdir())


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
