"""Requests as anybody may write them, and a user's own measures: refused at the door, never in the loop."""

import math
import sys

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from twig.engine.api.calibration import Calibration
from twig.engine.api.errors import CheckpointError, InvalidRequestError
from twig.engine.api.event import Event
from twig.engine.api.mechanisms import Avoidance, DelayedGuidance, MaskedAttention, MovedControl, Repulsion
from twig.engine.api.request import Framing, Gate, GenerationRequest, SimilarityPolicy
from twig.engine.api.result import Attempt, Score, Verdict
from twig.engine.api.settings import Solver, Stage
from twig.engine.engine import Engine
from twig.engine.models.checkpoint import load
from twig.engine.models.fitting import check_dtypes

pytestmark = pytest.mark.slow

NUMBERS = [
    (Stage, "steps"), (Stage, "guidance_scale"), (GenerationRequest, "seed"), (GenerationRequest, "width"),
    (GenerationRequest, "height"), (GenerationRequest, "num_images"), (GenerationRequest, "priority"),
    (GenerationRequest, "timeout"), (GenerationRequest, "preview"), (SimilarityPolicy, "retries"),
    (Gate, "witnesses"), (DelayedGuidance, "start"), (DelayedGuidance, "stop"), (MovedControl, "scale"),
    (MaskedAttention, "bias"), (MaskedAttention, "outside_bias"), (Repulsion, "radius"), (Repulsion, "strength"),
]  # fmt: skip
LISTS = [
    (SimilarityPolicy, "limits", lambda value: {"ssim": value}), (SimilarityPolicy, "early", lambda value: (value,)),
    (Gate, "limits", lambda value: {"guidance": value}), (Framing, "crop", lambda value: (0, value)),
    (Framing, "original", lambda value: [value, 8]), (MaskedAttention, "tokens", lambda value: (value,)),
]  # fmt: skip
SWITCHES = [
    (GenerationRequest, "explain"), (SimilarityPolicy, "early_stops"), (Gate, "deliver_draft"),
    (DelayedGuidance, "detect"),
]  # fmt: skip
STRANGE = [True, False, math.nan, math.inf, -math.inf, 10**400, "many", "20", "0.5", b"1", None, [], {}]


def made(kind, **values):
    return kind(**({"prompt": "a star"} if kind is GenerationRequest else {}) | values)


@pytest.mark.parametrize(("kind", "field"), NUMBERS)
@pytest.mark.parametrize("value", STRANGE, ids=lambda value: str(value)[:8])
def test_a_field_of_a_number_takes_finite_numbers_alone(kind, field, value):
    if value is None and kind.model_fields[field].default is None:
        assert getattr(made(kind, **{field: None}), field) is None
        return
    with pytest.raises(ValidationError):
        made(kind, **{field: value})


@pytest.mark.parametrize(("kind", "field", "within"), LISTS)
@pytest.mark.parametrize("value", STRANGE, ids=lambda value: str(value)[:8])
def test_so_do_fields_of_several(kind, field, within, value):
    with pytest.raises(ValidationError):
        made(kind, **{field: within(value)})


@pytest.mark.parametrize(("kind", "field"), SWITCHES)
@pytest.mark.parametrize("value", [0, 1, 1.0, "yes", "true", None, [], math.nan])
def test_a_switch_is_on_or_off(kind, field, value):
    with pytest.raises(ValidationError, match="true or false"):
        made(kind, **{field: value})


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
@pytest.mark.parametrize("text", ["a\0b", "\ud800", "star \udcff", 7, None])
def test_a_prompt_is_text(field, text):
    with pytest.raises(ValidationError):
        GenerationRequest(**{"prompt": "a star", field: text})


def test_numbers_are_as_json_and_numpy_have_them():
    """One kind of number, whole or not; no text of one, wherever it comes from."""
    assert Stage(steps=20.0, guidance_scale=5) == Stage(steps=np.int64(20), guidance_scale=np.float32(5))
    assert GenerationRequest.from_json('{"prompt": "a", "draft": {"steps": 20.0, "solver": "euler"}}').draft.steps == 20
    for field in ("seed", "timeout", "width"):
        with pytest.raises(InvalidRequestError, match=f"{field}: .*must be a number, not a text"):
            GenerationRequest.from_json({"prompt": "a", field: "64"})
    with pytest.raises(ValidationError, match="retries is True and the rule says 1"):
        SimilarityPolicy(rule="refuse if ssim > 0.4; retry 1", retries=True)


TRAVELLERS = [
    (Score, {"value": 0.5, "limit": None, "passed": True}, {"value": ["0.5", True], "passed": [1, "true"]}),
    (Attempt, {"seed": 1, "avoidance": {}, "scores": {}, "rows": 2, "steps": 3},
     {"seed": ["1", True, 1.5], "rows": ["2"], "early": [[["1", True]], [[1, "yes"]]]}),
    (Event, {"id": 1, "index": 0, "state": "queued"}, {"id": ["1", True], "step": ["0"], "state": [0]}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "whole", "wrong"), TRAVELLERS)
def test_nor_does_a_text_or_a_switch_stand_for_a_number_in_what_else_travels(kind, whole, wrong):
    assert kind.from_json(kind.from_json(whole).to_json()) == kind.from_json(whole)
    for field, values in wrong.items():
        for value in values:
            with pytest.raises(InvalidRequestError, match=rf"this is no {kind.__name__}: {field}"):
                kind.from_json(whole | {field: value})


def test_what_is_no_number_in_json_has_its_three_texts():
    for text in ("NaN", "Infinity", "-Infinity"):
        assert repr(Score.from_json({"value": text, "limit": None, "passed": True}).value) == repr(float(text))
    for text in ("nan", "inf", "1e999", " 1", ""):
        with pytest.raises(InvalidRequestError):
            Score.from_json({"value": text, "limit": None, "passed": True})


# --- against a model ---


@pytest.fixture(scope="module")
def components(tiny_checkpoint):
    return load(tiny_checkpoint)


def request(steps=2, **changes):
    stage = Stage(steps=steps, guidance_scale=2.0)
    plain = {"draft": stage, "final": stage, "avoidance": Avoidance.off(), "similarity": SimilarityPolicy(limits={})}
    return GenerationRequest(prompt="a red star", **plain | changes)


@pytest.mark.parametrize("stage", ["draft", "final"])
@pytest.mark.parametrize("steps", [61, 103, 121, 122])
def test_a_count_of_steps_without_a_table_is_refused_at_the_door(tiny_checkpoint, stage, steps):
    components = load(tiny_checkpoint)
    components.scheduler.register_to_config(timestep_spacing="trailing")
    engine = Engine(components)
    with pytest.raises(InvalidRequestError, match=rf"{stage}: {steps} steps of ddim.*ask for fewer steps"):
        engine.submit(request(**{stage: Stage(steps=steps)}))
    assert engine.pending == 0


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_whatever_count_of_steps_enters_has_a_table(tiny_checkpoint, spacing):
    components = load(tiny_checkpoint)
    components.scheduler.register_to_config(timestep_spacing=spacing)
    engine = Engine(components, max_steps=1000)
    entered = 0
    for steps in range(1, 200):
        for solver in Solver:
            stage = Stage(steps=steps, solver=solver)
            try:
                engine._door.admit(request(draft=stage, final=stage))
            except InvalidRequestError:
                continue
            assert engine.stages.starting._table(stage).num_steps == stage.evaluations
            entered += 1
    assert entered > 700


def test_parts_in_another_dtype_than_the_engines_are_refused(tiny_checkpoint, components):
    check_dtypes(components, torch.float32)
    half = load(tiny_checkpoint, dtype=torch.bfloat16)
    check_dtypes(half, torch.bfloat16)
    with pytest.raises(CheckpointError, match=r"the unet is in torch.bfloat16, the engine computes in torch.float32"):
        check_dtypes(half, torch.float32)
    half.segmenter.model.float()
    with pytest.raises(CheckpointError, match=r"the segmenter is in torch.float32"):
        check_dtypes(half, torch.bfloat16)


def test_positions_beyond_the_text_are_refused_at_the_door(components):
    engine = Engine(components)
    for position in (0, 77, 1000):
        rule = Avoidance(moved_control=None, masked_attention=MaskedAttention(tokens=(1, position)))
        with pytest.raises(InvalidRequestError, match=f"position {position} is no word's"):
            engine.submit(request(avoidance=rule))
    assert engine.pending == 0


@pytest.mark.parametrize(
    ("name", "limit", "fits"),
    [
        ("ssim", -1.0, True), ("ssim", 1.0, True), ("ssim", 1.01, False), ("ssim_masked_aligned", -1.5, False),
        ("tile_l2", -0.1, False), ("tile_l2", 1.1, False), ("phash", 64, True), ("phash", 64.5, False),
        ("mask_iou", 2, False), ("hausdorff", 1e300, False), ("classes_kept", -1, False),
    ],
)  # fmt: skip
def test_a_limit_lies_where_its_measure_can(components, name, limit, fits):
    engine = Engine(components)
    asked = request(similarity=SimilarityPolicy(limits={name: limit}))
    if fits:
        engine._door.admit(asked)
        return
    with pytest.raises(InvalidRequestError, match=f"{name} lies in"):
        engine.submit(asked)
    with pytest.raises(ValueError, match=f"{name} lies in"):
        Calibration({name: limit}, "any", 0.9, 1)


# --- a user's own measures ---


def ones(finals, references):
    return torch.ones(len(finals))


def directed(direction):
    def metric(finals, references):
        return ones(finals, references)

    metric.direction = direction
    return metric


@pytest.mark.parametrize(
    ("name", "metric", "message"),
    [
        ("ssim", ones, "'ssim' would take the name of a built-in one"),
        ("classes_kept", ones, "would take the name"),
        ("l2_ratio", ones, "would take the name"),
        ("registry_mine", ones, "would take the name"),
        ("", ones, "cannot be named in a rule"),
        ("my metric", ones, "cannot be named in a rule"),
        ("a\nb", ones, "cannot be named in a rule"),
        ("1st", ones, "cannot be named in a rule"),
        ("any", ones, "cannot be named in a rule"),
        ("OR", ones, "cannot be named in a rule"),
        (7, ones, "cannot be named in a rule"),
        ("mine", "no function", "must be callable"),
        ("mine", directed("upwards"), "direction 'upwards'"),
        ("mine", directed(None), "direction None"),
        ("mine", directed([]), r"direction \[\]"),
    ],
)
def test_a_measure_that_a_rule_could_not_name_is_refused_at_the_start(components, name, metric, message):
    with pytest.raises(InvalidRequestError, match=message):
        Engine(components, extra_metrics={name: metric})


def ends(finals, references):
    sys.exit("goodbye")


def fails(finals, references):
    raise RuntimeError("no weights\x1b[2J")


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda f, r: torch.ones(len(f) + 1), "must return a tensor of scores"),
        (lambda f, r: torch.ones(len(f), 1), "must return a tensor of scores"),
        (lambda f, r: torch.tensor(1.0), "must return a tensor of scores"),
        (lambda f, r: [1.0] * len(f), "must return a tensor of scores .*got list"),
        (lambda f, r: np.ones(len(f)), "must return a tensor of scores"),
        (lambda f, r: None, "must return a tensor of scores"),
        (lambda f, r: torch.full((len(f),), torch.nan), "must return finite scores"),
        (lambda f, r: torch.full((len(f),), torch.inf), "must return finite scores"),
        (lambda f, r: torch.ones(len(f), dtype=torch.complex64), "must return a tensor of scores"),
        (ends, "failed with SystemExit: goodbye"),
        (fails, "failed with RuntimeError: no weights"),
    ],
)
def test_a_measure_that_returns_no_scores_fails_its_picture_and_no_more(components, metric, message):
    engine = Engine(components, extra_metrics={"mine": metric})
    (result,) = engine.generate(request())
    assert result.verdict is Verdict.FAILED
    assert "metric 'mine'" in result.error
    assert message.partition(" .*")[0] in result.error
    assert result.error.isprintable()
    assert engine.pending == 0


def test_a_measure_cannot_write_into_the_picture_or_another_measures(components):
    seen = []

    def writes(finals, references):
        finals.zero_()
        references.fill_(1)
        return torch.ones(len(finals))

    def looks(finals, references):
        seen.append((finals.clone(), references.clone()))
        return torch.ones(len(finals))

    (plain,) = Engine(components).generate(request())
    (watched,) = Engine(components, extra_metrics={"a": writes, "b": looks}).generate(request())
    assert watched.image.tobytes() == plain.image.tobytes()
    assert watched.draft.tobytes() == plain.draft.tobytes()
    assert watched.scores["ssim"] == plain.scores["ssim"]
    assert seen[0][0].any()
    assert not (seen[0][1] == 1).all()


def test_a_measure_of_whole_numbers_or_with_gradients_is_read(components):
    weight = torch.ones((), requires_grad=True)
    metrics = {
        "whole": lambda f, r: torch.full((len(f),), 3),
        "graded": lambda f, r: f.mean((1, 2, 3)) * weight,
        "half": lambda f, r: torch.full((len(f),), 0.5, dtype=torch.float16),
    }
    (result,) = Engine(components, extra_metrics=metrics).generate(request())
    assert result.error is None
    assert (result.scores["whole"].value, result.scores["half"].value) == (3.0, 0.5)
