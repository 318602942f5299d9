import sys

import pytest

pytest.importorskip("onnx", reason="onnx is not installed")

from twig.benchmarks import backends, contenders
from twig.benchmarks.backends import BASELINE, REFERENCE, Plan

PLAN = Plan(batches=(1, 2), scales=(1,), rounds=1, jobs=(2,), steps=2, job_rounds=1, pictures=2)


@pytest.fixture
def two_variants(monkeypatch):
    """PyTorch twice; a process that starts warm is a few milliseconds."""
    monkeypatch.setattr(backends, "VARIANTS", (("torch", "fp32"), ("torch", "bf16"), ("tflite", "fp32")))
    return [sys.executable, "-c", "sum(range(100_000))"]


def test_every_variant_that_runs_is_measured_beside_its_pictures(setup, tiny_checkpoint, two_variants, capsys):
    rows = list(backends.measure(setup, PLAN, None, str(tiny_checkpoint), two_variants))
    assert "tflite fp32 is left out: there is no backend 'tflite'" in capsys.readouterr().out
    variants = [BASELINE, "torch bf16"]
    measured = [(row["workload"], row["batch"], row["variant"]) for row in rows]
    calls = [("unet+controlnet", batch, variant) for batch in (1, 2) for variant in variants]
    jobs = [("two-step job", 2, variant) for variant in (REFERENCE, *variants)]
    assert measured == [*calls, *jobs, *(("warm start", 1, variant) for variant in variants)]
    for row in rows:
        if row["variant"] == BASELINE and "ssim" in row:
            assert row["ssim"] == row["ssim_drafts"] == row["ssim_given_mask"] == pytest.approx(1)
        if row["variant"] == "torch bf16" and "ssim" in row:
            assert 0.5 < row["ssim_drafts"] < 1
        assert backends.line(row)
    bases = [row for row in rows if row["variant"] == (REFERENCE if row["workload"] == "two-step job" else BASELINE)]
    assert [row["ratio"] for row in bases if "ratio" in row] == [1.0] * 3
    assert all(row["cpu_seconds"] > 0 for row in rows if row["workload"] == "warm start")


def test_a_start_that_fails_says_why():
    with pytest.raises(RuntimeError, match=r"no picture from a new process of torch fp32: .*no such model"):
        backends.warm_start([sys.executable, "-c", "raise SystemExit('no such model')"], "torch fp32")


def test_nothing_is_timed_while_pictures_differ(setup, tiny_checkpoint, two_variants, monkeypatch):
    monkeypatch.setattr(contenders, "attempt_seed", lambda *_: 7)
    with pytest.raises(contenders.Disagreement, match="nothing is timed: a picture of torch fp32"):
        next(backends.measure(setup, PLAN, None, str(tiny_checkpoint), two_variants))
