"""`twig assess`: works, nearest works, limits from clean pairs, and a report that stands alone."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from twig.engine.api.errors import InvalidRequestError
from twig.engine.api.presets import BUNDLES, Preset
from twig.engine.api.request import SimilarityPolicy
from twig.engine.cli.main import run
from twig.engine.engine import Engine
from twig.engine.judging.works import Works
from twig.engine.study import assessment
from twig.engine.study.assessment import JUDGED, Assessment, Picture, Plan, read_prompts
from twig.engine.study.charts import chart
from twig.engine.study.findings import Findings
from twig.engine.study.limits import PAIRS_NEEDED, PROMPTS_NEEDED, pair_count
from twig.engine.study.report import PresetSummary, recommendation, recommended, render, rule, summaries


def picture(seed):
    """Blocks of colour, unlike those of another seed."""
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)).resize((64, 64), Image.Resampling.NEAREST)


@pytest.fixture(scope="module")
def study_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    (folder / "works/deep").mkdir(parents=True)
    for i in range(5):
        picture(i).save(folder / f"works/{'deep/' if i == 4 else ''}work{i}.png")
    (folder / "works/notes.txt").write_text("no picture")
    (folder / "prompts.txt").write_text("a red star\n\n# a comment\na blue <house>\na red star\n")
    return folder


@pytest.fixture(scope="module")
def works(study_folder):
    return Works.load(study_folder / "works", (64, 64), None)


def test_works_are_the_folders_pictures(works, tmp_path):
    assert works.names == ("deep/work4.png", "work0.png", "work1.png", "work2.png", "work3.png")
    assert works.pixels.shape == (5, 3, 64, 64)
    with pytest.raises(InvalidRequestError, match="holds no picture"):
        Works.load(tmp_path, (64, 64), None)


def test_the_nearest_work_is_found_even_mirrored(works):
    noisy = (works.pixels + 0.05 * torch.randn(works.pixels.shape)).clamp(0, 1)
    assert [work for work, _ in works.nearest(noisy)] == [0, 1, 2, 3, 4]
    found = works.nearest(works.pixels.flip(-1))
    assert [work for work, _ in found] == [0, 1, 2, 3, 4]
    assert all(values["ssim_aligned"] > 0.9 > values["ssim"] for _, values in found)


def test_prompts_are_lines_that_say_something(study_folder, tmp_path):
    assert read_prompts(study_folder / "prompts.txt") == ("a red star", "a blue <house>")
    (tmp_path / "empty.txt").write_text("\n# nothing\n")
    with pytest.raises(InvalidRequestError, match="holds no prompt"):
        read_prompts(tmp_path / "empty.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(InvalidRequestError, match="is no text"):
        read_prompts(tmp_path / "binary.txt")


@pytest.fixture(scope="module")
def reported(study_folder, tiny_checkpoint):
    out = study_folder / "out"
    code = run([
        "assess", "--prompts", str(study_folder / "prompts.txt"), "--sources", str(study_folder / "works"), "--out",
        str(out), "--seeds", "2", "--model", str(tiny_checkpoint), "--device", "cpu", "--hourly-price", "2",
        "--presets", "off,strict", "--steps", "4",
    ])  # fmt: skip
    return code, out


def test_every_picture_is_a_row(reported):
    code, out = reported
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert code == 0
    assert [(r["preset"], r["prompt"], r["seed"]) for r in rows] == [
        (preset, prompt, seed) for preset in ("off", "strict") for prompt in (0, 1) for seed in (0, 1)
    ]
    plain, avoided = rows[0], rows[4]
    assert plain["rows"] == 8 < avoided["rows"]
    assert {*JUDGED} <= plain["measures"].keys()
    assert plain["nearest"].endswith(".png")
    assert plain["seconds"] > 0


def test_the_report_opens_from_disk_with_nothing_beside_it(reported):
    page = (reported[1] / "report.html").read_text()
    assert not re.search(r"(?:src|href)\s*=\s*[\"'](?!data:)", page)
    assert "<script" not in page
    assert page.count("data:image/png;base64,") == 3 + 2 * 2 * 2
    assert "a blue &lt;house&gt;" in page
    assert "refuse if registry_ssim &gt;" in page
    assert (reported[1] / "report.html").stat().st_mode & 0o077 == 0


def test_the_numbers_of_the_report_are_beside_it_without_works_and_prompts(reported):
    path = reported[1] / "findings.json"
    found = Findings.load(reported[1])
    assert [one.name for one in found.presets] == ["off", "strict"]
    assert (found.prompts, found.seeds, found.steps, found.finished) == (2, 2, 4, True)
    assert all(one.count == 4 and 0 <= one.close <= 1 and one.seconds > 0 for one in found.presets)
    assert "house" not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0


def test_what_cannot_be_studied_is_one_line(study_folder, tmp_path, capsys):
    asked = ["assess", "--prompts", str(study_folder / "prompts.txt"), "--sources", str(study_folder / "works")]
    assert run([*asked, "--presets", "off,severe", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("twig: there is no preset 'severe'; there are plain, off")
    assert run([*asked[:4], str(tmp_path / "missing")]) == 2


def test_an_interrupted_study_reports_what_it_has(study_folder, tiny_checkpoint, tmp_path, monkeypatch, capsys):
    kept = []
    as_row = Picture.as_row

    def stopping(self):
        kept.append(self)
        if len(kept) == 3:
            raise KeyboardInterrupt
        return as_row(self)

    monkeypatch.setattr(Picture, "as_row", stopping)
    code = run([
        "assess", "--prompts", str(study_folder / "prompts.txt"), "--sources", str(study_folder / "works"), "--out",
        str(tmp_path), "--seeds", "2", "--model", str(tiny_checkpoint), "--device", "cpu", "--presets", "off",
    ])  # fmt: skip
    assert code == 130
    assert "The study was interrupted" in (tmp_path / "report.html").read_text()
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 2
    assert "interrupted" in capsys.readouterr().err


def test_limits_keep_clean_pairs_and_catch_copies(works, tiny_checkpoint, monkeypatch):
    engine = Engine.from_pretrained(tiny_checkpoint)
    study = Assessment(engine, works, Plan(("a red star",), {"off": BUNDLES[Preset.OFF]}, seeds=1))
    monkeypatch.setattr(assessment, "PAIRS_NEEDED", 10)
    found = study.limits()
    assert (found.pairs, found.own) == (5 * 4 // 2, True)
    assert found.calibration.count == found.pairs
    assert set(found.limits) == set(JUDGED)
    assert "found on 10 clean pairs" in found.source
    _, copy = works.nearest(works.pixels[:1])[0]
    assert copy["ssim_masked"] > found.limits["ssim_masked"]
    assert SimilarityPolicy(rule=rule(found.limits)).retries == 2
    assert "Recommended limits" in render(study, found, None, True)


def test_limits_need_as_many_pairs_as_put_the_closest_beyond_the_percentile():
    assert 0.999**PAIRS_NEEDED <= 0.05 < 0.999 ** (PAIRS_NEEDED - 1)
    assert 2 / 2**PROMPTS_NEEDED <= 0.05 < 2 / 2 ** (PROMPTS_NEEDED - 1)
    assert pair_count(range(78)) >= PAIRS_NEEDED > pair_count(range(77))
    assert pair_count([prompt for prompt in range(20) for _ in range(4)]) >= PAIRS_NEEDED
    assert pair_count([0, 0, 0, 1]) == 3


def test_with_few_pairs_the_models_own_limits_are_used_and_the_report_says_so(reported, capsys):
    page = (reported[1] / "report.html").read_text()
    assert "No preset is recommended:" in page
    assert "Recommended limits" not in page
    assert "This study has 14 clean pairs" in page, "ten of works, four of pictures of different prompts"
    assert "it takes 2,995" in page
    assert "The limits below are the model's own" in page
    assert "at most 0.9<" in page
    assert "4 steps" in page


def test_the_terminal_says_what_it_will_take_and_whose_limits_judge(study_folder, tiny_checkpoint, tmp_path, capsys):
    assert run([
        "assess", "--prompts", str(study_folder / "prompts.txt"), "--sources", str(study_folder / "works"), "--out",
        str(tmp_path), "--seeds", "1", "--model", str(tiny_checkpoint), "--device", "cpu", "--presets", "off",
        "--steps", "2",
    ]) == 0  # fmt: skip
    out, err = capsys.readouterr()
    assert "2 pictures, at most 16 rows of the UNet" in err
    assert re.search(r"rows a second, about \d+:\d\d:\d\d to draw", err)
    assert "11 clean pairs of works and prompts, 2,995 are needed" in err
    assert "the model's own, calibrated before: this study has 11 clean pairs and needs 2,995" in out
    assert "none: too few prompts to tell presets apart with 95 % confidence: 2 of at least 6" in out


def test_without_any_limits_no_picture_is_called_too_close(works, tiny_checkpoint):
    engine = Engine.from_pretrained(tiny_checkpoint)
    engine.components = replace(engine.components, calibration=None)
    study = Assessment(engine, works, Plan(("a red star",), {"off": BUNDLES[Preset.OFF]}, seeds=1, steps=2))
    study.run(lambda _: None, lambda _: None)
    found = summaries(study.pictures, study.limits().limits, hourly_price=2.0)
    assert math.isnan(found[0].close)
    assert found[0].price is None
    assert recommendation(study, found)[0] is None
    page = render(study, study.limits(), 2.0, True)
    assert "no picture is called too close here" in page
    assert "nan" not in re.sub(r"base64,[^\"]*", "", page)


def summary(name, close, kept, rows=40.0, seconds=1.0):
    return PresetSummary(name, 10, close, 0, 1, 0.5, 0.9, kept, 1.0, rows, seconds, None)


def test_the_preset_with_fewest_close_pictures_is_recommended_unless_another_is_as_good_and_kinder():
    plain, gentle, strict = summary("off", 0.9, 1.0), summary("gentle", 0.02, 0.97), summary("strict", 0.01, 0.8)
    assert recommended([plain, gentle, strict]).name == "gentle"
    assert recommended([plain, summary("gentle", 0.2, 0.97), strict]).name == "strict"
    unknown = [summary("a", 0, float("nan"), rows=80), summary("b", 0, float("nan"), rows=40)]
    assert recommended(unknown).name == "b"


def test_the_price_is_of_pictures_that_pass(works, tiny_checkpoint, reported):
    rows = [json.loads(line) for line in (reported[1] / "rows.jsonl").read_text().splitlines()]
    pictures = [Picture(**row | {"seconds": 3.6}) for row in rows]
    half = sorted(p.measures["ssim"] for p in pictures if p.preset == "off")[1]
    plain = summaries(pictures, {"ssim": half}, hourly_price=2.0)[0]
    assert plain.close == 0.5
    assert plain.price == pytest.approx(3.6 / 3600 * 2.0 * 1000 / 0.5)
    assert summaries(pictures, {"ssim": -2.0}, hourly_price=2.0)[0].price is None


def test_a_chart_shows_its_points_and_leaves_out_what_is_not_finite():
    blank = np.asarray(chart({"a": []}, "x", "y"))
    drawn = np.asarray(chart({"a": [(0, 1), (2, 3), (float("nan"), 1)]}, "x", "y"))
    blue = (0x45, 0x75, 0xB4)
    assert (drawn == blue).all(-1).sum() > (blank == blue).all(-1).sum() + 100
    assert chart({"flat": [(1, 1)]}, "x", "y").size == (1040, 640)
