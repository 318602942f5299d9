import json

import numpy as np
import pytest

from twig.engine.api.errors import CheckpointError
from twig.engine.api.rules import Decision, limits_rule
from twig.engine.judging.similarity import Calibration, calibrate, judge


@pytest.fixture
def scores():
    rng = np.random.default_rng(0)
    return {"ssim": rng.normal(0.2, 0.05, 2000), "tile_l2": rng.normal(0.5, 0.05, 2000)}


def test_limits_leave_a_thousandth_out(scores):
    calibration = calibrate(scores, "2000 pictures of captions without sources")
    assert 0.0005 <= np.mean(scores["ssim"] > calibration.limits["ssim"]) <= 0.001
    assert 0.0005 <= np.mean(scores["tile_l2"] < calibration.limits["tile_l2"]) <= 0.001
    assert calibration.count == 2000
    assert calibration.quantile == 0.999


def test_every_clean_picture_of_a_small_population_passes():
    values = {"ssim": [0.1, 0.3, 0.2], "phash": [20.0, 12.0, 31.0]}
    calibration = calibrate(values, "three pictures")
    assert dict(calibration.limits) == {"ssim": 0.3, "phash": 12.0}
    for ssim, phash in zip(*values.values(), strict=True):
        rule = limits_rule(calibration.limits, {"ssim": "similarity", "phash": "distance"})
        assert judge({"ssim": ssim, "phash": phash}, rule).decision is Decision.ACCEPT


def test_saved_and_loaded_alike(scores, tmp_path):
    calibration = calibrate(scores, "clean pictures", quantile=0.99)
    calibration.save(tmp_path / "calibration.json")
    assert Calibration.load(tmp_path / "calibration.json") == calibration
    assert [path.name for path in tmp_path.iterdir()] == ["calibration.json"]


def test_version_follows_the_limits_and_the_population(scores):
    version = calibrate(scores, "a").version
    assert calibrate(scores, "a").version == version
    assert calibrate(scores, "b").version != version
    assert calibrate(scores | {"ssim": scores["ssim"] + 0.1}, "a").version != version
    assert calibrate(scores, "a", quantile=0.99).version != version


def test_a_users_own_metric_needs_its_direction(tmp_path):
    values = {"mine": np.arange(10.0)}
    with pytest.raises(ValueError, match="'mine' is not built in"):
        calibrate(values, "ten")
    calibration = calibrate(values, "ten", directions={"mine": "distance"})
    assert calibration.limits["mine"] == 0
    calibration.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json").directions == {"mine": "distance"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "as many values for each metric, got none"),
        ({"ssim": []}, "as many values"),
        ({"ssim": [0.1], "ms_ssim": [0.1, 0.2]}, r"ssim: \(1,\), ms_ssim: \(2,\)"),
        ({"ssim": [0.1, float("nan")]}, "1 scores of ssim are not finite"),
    ],
)
def test_scores_without_a_limit_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        calibrate(values, "none")


def written(**changes):
    values = {"version": "1", "limits": {"ssim": 0.4}, "population": "p", "quantile": 0.999, "count": 100}
    return json.dumps(values | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no calibration"),
        ("[]", "expected an object, got list"),
        (written(limit=3), "unknown field 'limit'; known: version"),
        (json.dumps({"version": "1"}), "field 'count' is missing"),
        (written(limits={"sim": 0.4}), "unknown metric 'sim'; known: arrangement, background, classes_kept"),
        (written(limits={"ssim": "low"}), "limit of ssim must be a number, got 'low'"),
        (written(limits={"ssim": float("nan")}), "limit of ssim must be finite"),
        (written(limits={"ssim": 1.5}), r"ssim lies in -1..1, got 1.5"),
        (written(limits={"tile_l2": -0.5}), r"tile_l2 lies in 0..1, got -0.5"),
        (written(limits={}), "at least one limit"),
        (written(quantile=1.5), "quantile must lie in 0..1"),
        (written(count=0), "count be positive"),
        (written(count="many"), "count must be int, got 'many'"),
    ],
)
def test_files_that_are_no_calibration_are_refused(tmp_path, text, message):
    path = tmp_path / "calibration.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=message) as error:
        Calibration.load(path)
    assert str(path) in str(error.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no calibration"):
        Calibration.load(tmp_path / "absent.json")


def test_a_whole_number_is_a_limit_too(tmp_path):
    path = tmp_path / "calibration.json"
    path.write_text(written(limits={"phash": 12}))
    assert Calibration.load(path).limits["phash"] == 12


def test_a_version_names_what_is_held_whatever_the_file_claims(tmp_path):
    path = tmp_path / "calibration.json"
    base = json.loads(written())
    versions = set()
    changes = [
        {}, {"limits": {"ssim": 0.3}}, {"gate": {"guidance": 1.0}}, {"population": "q"}, {"count": 101},
        {"quantile": 0.99}, {"population_sha256": "ab"},
        {"limits": {"ssim": 0.4, "mine": 1}, "directions": {"mine": "distance"}},
        {"limits": {"ssim": 0.4, "mine": 1}, "directions": {"mine": "similarity"}},
    ]  # fmt: skip
    for change in changes:
        path.write_text(json.dumps(base | change))
        versions.add(Calibration.load(path).version)
    assert len(versions) == len(changes), "each keeps the claim of the first"
    assert {len(version) for version in versions} == {32}
    path.write_text(json.dumps(base | {"version": "another"}))
    assert Calibration.load(path).version in versions


def test_a_whole_number_and_its_float_have_one_version(tmp_path):
    path = tmp_path / "calibration.json"
    path.write_text(written(limits={"phash": 12}))
    first = Calibration.load(path)
    first.save(path)
    assert Calibration.load(path).version == first.version == Calibration({"phash": 12.0}, "p", 0.999, 100).version
