"""A study's numbers, for what shows them."""

from datetime import UTC, datetime

from twig.engine.study.findings import Findings, PresetFindings


def findings(close=0.25, model="a-model"):
    """Of three presets; `close`: share of the first one's pictures that were too close."""
    return Findings(
        made=datetime(2026, 3, 1, tzinfo=UTC),
        twig="0",
        model=model,
        prompts=24,
        seeds=4,
        works=16,
        steps=20,
        finished=True,
        limits={"ssim": 0.7},
        limits_from="found on clean pairs",
        recommended="default",
        undecided=None,
        presets=(
            _preset("gentle", close, 1.1),
            _preset("default", 0.05, 1.4),
            _preset("strict", 0.0, 1.9),
        ),
    )


def _preset(name, close, seconds):
    return PresetFindings(
        name=name,
        count=96,
        close=close,
        low=0.0,
        high=0.4,
        p95=0.5,
        largest=0.9,
        kept=0.9,
        sharpness=1.0,
        rows=50.0,
        seconds=seconds,
        price=None,
    )
