import pytest

from twig.engine.api.choices import PURPOSES, Warp
from twig.engine.api.mechanisms import Avoidance
from twig.engine.api.presets import BUNDLES, Preset
from twig.engine.api.request import GenerationRequest
from twig.engine.api.result import Verdict
from twig.engine.api.settings import Stage
from twig.engine.engine import Engine


def test_presets_grow_heavier_from_plain_to_strict():
    assert list(BUNDLES) == list(PURPOSES) == list(Preset)
    plain, off, gentle, fast, default, strict = (BUNDLES[preset].avoidance for preset in Preset)
    assert plain == off == Avoidance.off()
    assert BUNDLES[Preset.PLAIN].gate.shut
    assert BUNDLES[Preset.OFF].gate is None, "whose finals are measured"
    assert fast.moved_control.model_copy(update={"stop": 1.0}) == default.moved_control
    assert gentle.moved_control.scale < default.moved_control.scale < strict.moved_control.scale
    assert gentle.delayed_guidance.stop < default.delayed_guidance.stop
    assert gentle.restated_prompt.stop < default.restated_prompt.stop < strict.restated_prompt.stop
    assert {policy.moved_control.warp for policy in (gentle, default, strict)} == {Warp.BANK}
    assert BUNDLES[Preset.GENTLE].gate is not None, "who is gentle leaves what is not recalled as it is"
    assert BUNDLES[Preset.DEFAULT].gate is BUNDLES[Preset.STRICT].gate is None, "and the others trust no detector"


def test_a_preset_may_draft_in_fewer_steps_than_its_final_and_again_in_as_many():
    gated, brief = BUNDLES[Preset.GENTLE], BUNDLES[Preset.DEFAULT]
    final = Stage(steps=20, guidance_scale=3.0)
    assert gated.stages(final) == {"draft": final, "final": final, "redraft": None}, "it may be the picture"
    assert "draft" not in gated.settings
    assert brief.stages(final) == {"draft": Stage(steps=4, guidance_scale=3.0), "final": final, "redraft": 20}
    assert brief.stages(Stage(steps=3)) == {"draft": Stage(steps=3), "final": Stage(steps=3), "redraft": None}
    assert GenerationRequest(prompt="a star", **brief.settings).redraft == 20


def test_the_fast_preset_spares_steps_where_there_are_many_and_nothing_else_was_said():
    fast, spared = BUNDLES[Preset.FAST], {"steps": 12, "solver": "dpmpp_2m", "guidance_stop": 0.8, "cache_interval": 2}
    assert fast.stages(Stage()) == {"draft": Stage(steps=4), "final": Stage(**spared), "redraft": 12}
    assert fast.settings["final"] == Stage(**spared)
    told = {"steps": 30, "cache_interval": 1}
    assert fast.stages(Stage(**told))["final"] == Stage(**spared | told)
    assert fast.stages(Stage(steps=30), said=())["final"] == Stage(**spared)
    assert fast.stages(Stage(steps=8))["final"] == Stage(steps=8), "as of a model that was distilled for few"


@pytest.mark.parametrize("preset", list(Preset))
def test_every_preset_runs(tiny_checkpoint, preset):
    stages = BUNDLES[preset].stages(Stage(steps=2))
    (result,) = Engine.from_pretrained(tiny_checkpoint).generate(
        GenerationRequest(prompt="a red star", **preset.settings | stages)
    )
    assert result.verdict is not Verdict.FAILED
    assert result.attempts[0].avoidance == BUNDLES[preset].avoidance
