"""The comparison of methods: what each asks for and costs, and how cells are drawn once."""

import json
import weakref
from dataclasses import replace

import numpy as np
import pytest

from twig.benchmarks.copying import protocol
from twig.benchmarks.copying.catalogue import (
    bank_candidates,
    followed_mask,
    han,
    jain,
    low_guidance,
    main_methods,
    nothing,
    other_methods,
    prompt_noise,
    random_shape,
    rejection,
    ren,
    reseed,
    wen,
)
from twig.benchmarks.copying.measures import REPORTED
from twig.benchmarks.copying.methods import Bed, Drawing, Method
from twig.benchmarks.copying.protocol import PROFILES, Cell, Study, comparison, recited, tuning
from twig.benchmarks.copying.report import report
from twig.engine.api.mechanisms import Avoidance
from twig.engine.api.presets import BUNDLES, Preset

NOTHING = nothing()


@pytest.fixture(scope="module")
def bed(tiny_checkpoint):
    return Bed(tiny_checkpoint, slots=8)


@pytest.fixture(scope="module")
def source():
    return recited(held_out=True)[0]


def draw(bed, method, source, seeds=2):
    return Cell(method, seeds, source).draw(bed)


@pytest.mark.parametrize(
    ("method", "rows"),
    [
        (NOTHING, 40),
        (reseed(), 80),
        (low_guidance(2.0), 41),
        (jain(0.6), 29),
        (han(7.0), 49),
        (ren(1.25), 41),
        (followed_mask(), 80),
        (random_shape(Avoidance()), 32),
    ],
    ids=lambda value: value.key if isinstance(value, Method) else str(value),
)
def test_methods_are_billed_what_they_run(bed, source, method, rows):
    drawing = draw(bed, method, source, seeds=1)
    assert drawing.pictures.shape == (1, 64, 64, 3)
    assert drawing.rows.tolist() == [rows]
    if method not in (NOTHING, reseed()):
        assert not np.array_equal(drawing.pictures, draw(bed, NOTHING, source, seeds=1).pictures)


def test_a_bed_keeps_plain_engines_and_the_last_of_the_others(bed):
    plain = bed.engine()
    first = weakref.ref(bed.engine(ren(1.1).kind, start_scale=1.1))
    assert bed.engine(ren(1.1).kind, start_scale=1.1) is first()
    bed.engine(ren(1.2).kind, start_scale=1.2)
    assert first() is None
    assert bed.engine() is plain


def test_descent_makes_first_step_guidance_small_and_is_billed(bed, source):
    engine = bed.engine(wen(6).kind, descent_steps=6)
    sizes = []
    encoding = engine.stages.encoding
    predict = encoding._predict

    def watched(noise, states):
        found = predict(noise, states)
        sizes.append(found.detach())
        return found

    encoding._predict = watched
    drawing = draw(bed, wen(6), source, seeds=1)
    nothing, first, *_, last = sizes
    assert (last - nothing).square().mean() < (first - nothing).square().mean()
    assert 41 + 1 < drawing.rows[0] <= 41 + 1 + 3 * 6


def test_rejection_delivers_less_with_fewer_attempts(bed, source):
    method = rejection(2)
    drawing = Drawing(
        np.zeros((3, 64, 64, 3), np.uint8), np.array([True, True, False]), np.full(3, 40),
        np.array([[40, 0, 0], [40, 40, 0], [40, 40, 40]]), np.array([1, 2, 3]), np.ones(3, bool),
    )  # fmt: skip
    views = dict(method.views(drawing))
    assert views[1].delivered.tolist() == [True, False, False]
    assert views[1].rows.tolist() == [80, 80, 80]
    assert views[3].delivered.tolist() == [True, True, False]
    assert views[3].rows.tolist() == [80, 120, 160]


def test_noisy_prompts_hold_the_caption_and_that_many_words_more(source):
    asked = prompt_noise(3).request("a red star", source.scene, 5).prompt.split()
    assert len(asked) == 6
    assert [word for word in asked if word in ("a", "red", "star")][:1]
    assert asked == prompt_noise(3).request("a red star", source.scene, 5).prompt.split()


def test_the_random_shape_shows_the_captions_classes_elsewhere(source):
    request = random_shape(Avoidance()).request(source.caption, source.scene, 3)
    assert request.avoidance.moved_control.warp == "none"
    assert not np.array_equal(np.asarray(request.source), source.pixels)


def test_each_curve_has_five_strengths():
    methods = [*main_methods(), *other_methods()]
    counts = {name: sum(m.name == name for m in methods) for name in ("ours", "Jain", "Han")}
    assert min(counts.values()) >= 5
    assert max(len(m.attempts) for m in methods if m.name == "rejection") >= 5
    assert len({m.key for m in methods}) == len(methods)


def test_candidates_differ_in_their_drafts_and_limits_and_in_how_long_prompts_are_restated():
    requests = [method.request("a red star", None, 1) for method in bank_candidates()]
    assert {each.draft.steps for each in requests} == {4, 6, 8, 10}
    assert {each.final.steps for each in requests} == {each.redraft for each in requests} == {20}
    assert len({each.model_dump_json() for each in requests}) == len(requests)
    assert {each.avoidance.restated_prompt.stop for each in requests if each.avoidance.restated_prompt} > {0.8, 1}
    assert all(each.avoidance.moved_control.warp == "bank" and each.gate is None for each in requests)


def test_main_cells_come_first_and_hold_512_pictures_of_held_out_sources():
    cells = comparison(main_methods(), other_methods(), PROFILES["full"])
    names = [m.name for m in main_methods()]
    first = cells[: 10 * len(names)]
    assert {cell.method.name for cell in first} == set(names)
    for name in names:
        drawn = [c for c in cells if c.method.name == name and c.method.strength in (0, 1, 2) and c.seeds == 64]
        assert sum(c.seeds for c in drawn if c.source) >= 512
        assert all(c.source.held_out for c in drawn if c.source)
    assert len({cell.name for cell in cells}) == len(cells)


def test_the_small_profile_draws_each_method_once_and_little_of_it():
    cells = comparison(main_methods(), other_methods(), PROFILES["small"])
    assert {cell.method.name for cell in cells} == {m.name for m in [*main_methods(), *other_methods()]}
    assert len({cell.method.key for cell in cells}) == len({cell.method.name for cell in cells})
    assert sum(cell.seeds for cell in cells) <= 500


def test_a_method_is_drawn_half_as_often_at_its_further_strengths():
    cells = comparison([], [jain(0.4), jain(0.2)], replace(PROFILES["medium"], strengths=True))
    first, further = ([cell.seeds for cell in cells if cell.method.strength == strength] for strength in (0.4, 0.2))
    assert further == [seeds // 2 for seeds in first]
    assert comparison([], [jain(0.4), jain(0.2)], PROFILES["medium"]) == cells[: len(first)]


def test_settings_cannot_be_chosen_by_what_is_held_out():
    cells = tuning([NOTHING], seeds=2, fresh=4)
    assert not any(cell.source.held_out for cell in cells if cell.source)
    fresh = Cell(NOTHING, 4, objects=1)
    assert not {s.caption for c in cells if not c.source for s in c.scenes()} & {s.caption for s in fresh.scenes()[:1]}


def test_presets_may_not_change_once_the_held_out_half_was_drawn(bed, tmp_path, monkeypatch):
    Study(tmp_path, bed).freeze()
    Study(tmp_path, bed).freeze()
    monkeypatch.setattr(protocol, "BUNDLES", {Preset.OFF: BUNDLES[Preset.OFF]})
    with pytest.raises(ValueError, match="the presets differ"):
        Study(tmp_path, bed).freeze()


def limited(folder, chosen):
    """Limits without drawing hundreds of scenes for each."""
    (folder / "limits").mkdir(parents=True, exist_ok=True)
    values = dict.fromkeys(REPORTED, 0.5)
    for each in chosen:
        (folder / f"limits/{each.index}.json").write_text(json.dumps(values))


def test_cells_are_drawn_once_and_shards_share_them(bed, source, tmp_path):
    limited(tmp_path, [source])
    methods = [NOTHING, low_guidance(1.0)]
    cells = [cell for m in methods for cell in (Cell(m, 2, source), Cell(m, 2, objects=1))]
    first = [cell.name for cell in Study(tmp_path, bed).run(cells, (0, 2))]
    (tmp_path / "rows.jsonl").open("a").write('{"cell": "half a li')
    other = [cell.name for cell in Study(tmp_path, bed).run(cells, (1, 2))]
    assert first + other == [cell.name for cell in cells[::2] + cells[1::2]]
    assert list(Study(tmp_path, bed).run(cells)) == []
    rows = Study(tmp_path, bed).rows()
    assert {row["cell"] for row in rows} == {cell.name for cell in cells}
    assert Study(tmp_path, bed).pictures(cells[0].name).pictures.shape == (2, 64, 64, 3)
    assert all(row["rows"] > 0 and row["seconds"] > 0 for row in rows)


def lines_of(text, title):
    """Lines of the table under a title, without its head."""
    part = text.split(title)[1].split("###")[0]
    return [line for line in part.splitlines() if line.startswith("|")][2:]


def test_a_study_is_reported_in_tables_and_pictures(bed, tmp_path):
    held_out = recited(held_out=True)
    limited(tmp_path, held_out)
    cells = [Cell(NOTHING, 1, s) for s in held_out] + [Cell(NOTHING, 3, objects=n) for n in (1, 2)]
    study = Study(tmp_path, bed)
    assert len(list(study.run(cells))) == len(cells)
    text = report(study, references=64)
    assert "| nothing | 0 |" in text
    for about in ("Copies", "Aligned", "Arrangement", "Background", "Decoration"):
        (line,) = lines_of(text, f"### {about} of each source")
        assert line.startswith("| nothing 0 |")
        assert line.count(" of 1 ") == len(held_out)
    assert (tmp_path / "sheet.png").is_file()
    kept = (tmp_path / "quality.jsonl").read_text()
    assert json.loads(kept)["run"] == "nothing-0"
    assert report(study, references=64) == text
    assert (tmp_path / "quality.jsonl").read_text() == kept
