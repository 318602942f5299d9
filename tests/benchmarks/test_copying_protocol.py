"""The comparison of methods: what each asks for and costs, how cells are drawn once, and what rows are summed up to."""

import json
import weakref
from dataclasses import replace

import numpy as np
import pytest

from twig.benchmarks.copying import measures, protocol
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
from twig.benchmarks.copying.measures import (  # fmt: skip
    ALIGNED,
    ARRANGEMENT,
    BACKGROUND,
    DECORATION,
    PRIMARY,
    REPORTED,
    copied,
    copy_limits,
    sharpness,
    similarities,
)
from twig.benchmarks.copying.methods import Bed, Drawing, Method
from twig.benchmarks.copying.protocol import PROFILES, Cell, Study, comparison, recited, tuning
from twig.benchmarks.copying.quality import diversity, frechet_distance
from twig.benchmarks.copying.report import report
from twig.benchmarks.copying.scenes import render
from twig.benchmarks.copying.summary import Rate, delivered_counts, dominated, summarise
from twig.engine.api.mechanisms import Avoidance
from twig.engine.api.presets import BUNDLES, Preset
from twig.engine.study.intervals import bootstrap

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


# --- cells ---


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


# --- measures ---


def test_a_moved_copy_counts_as_one_by_the_aligned_measure_alone(source, tmp_path):
    moved = np.roll(source.pixels, 7, axis=1)
    labels = np.stack([np.roll(render(source.scene)[1], 7, axis=1), render(source.scene)[1]])
    values = similarities([moved, source.pixels], labels, source)
    assert values[PRIMARY][0] < 0.6 < 0.99 < values[PRIMARY][1]
    assert values[ALIGNED][0] > values[PRIMARY][0] + 0.2
    limits = dict.fromkeys(REPORTED, 0.9)
    assert copied(values, limits)[PRIMARY].tolist() == [False, True]


def test_a_layout_is_the_sources_wherever_it_stands_and_a_background_only_where_it_is(source):
    labels = render(source.scene)[1]
    moved, bare = np.roll(source.pixels, 5, axis=1), np.full_like(source.pixels, 128)
    shapes = np.stack([labels, np.roll(labels, 5, axis=1), labels[:, ::-1], np.zeros_like(labels)])
    values = similarities([source.pixels, moved, bare, bare], shapes, source)
    assert values[ARRANGEMENT][:3] == pytest.approx([1, 1, 1], abs=1e-3)
    assert values[ARRANGEMENT][3] == 0
    assert values[BACKGROUND][0] == pytest.approx(1)
    assert values[BACKGROUND][2] < 0.9
    assert values[DECORATION][0] == pytest.approx(1)
    assert values[DECORATION][3] < 0.9
    full = similarities([source.pixels], np.ones_like(shapes[:1]), source)
    assert np.isnan(full[DECORATION][0]), "objects hide all of it"
    assert not copied(full, dict.fromkeys(REPORTED, -1.0))[DECORATION][0]


def test_limits_of_an_older_study_are_found_again(source, tmp_path, monkeypatch):
    limited(tmp_path, [source])
    path = tmp_path / f"limits/{source.index}.json"
    path.write_text(json.dumps({PRIMARY: 0.5}))
    monkeypatch.setattr(measures, "_copy_limits", lambda _: dict.fromkeys(REPORTED, 0.7))
    assert copy_limits(source, tmp_path / "limits")[PRIMARY] == 0.7
    assert json.loads(path.read_text())[ARRANGEMENT] == 0.7


def test_limits_are_found_once(source, tmp_path, monkeypatch):
    limited(tmp_path, [source])
    assert copy_limits(source, tmp_path / "limits")[PRIMARY] == 0.5


def test_blur_lowers_sharpness(source):
    blurred = (source.pixels.astype(int) + np.roll(source.pixels, 1, 0) + np.roll(source.pixels, 1, 1)) // 3
    sharp, soft = sharpness([source.pixels, blurred.astype(np.uint8)])
    assert soft < 0.8 * sharp


def test_the_distance_is_zero_to_itself_and_that_of_gaussians():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(4000, 3))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    # |m|^2 + sum (s - s')^2 for independent features
    assert frechet_distance(a, 2 * a + 1) == pytest.approx(3 + 3, rel=0.1)


def test_diversity_is_the_mean_distance_within_a_caption():
    assert diversity([np.array([[0.0, 0], [3, 4]]), np.array([[1.0, 1], [1, 1]])]) == pytest.approx(2.5)


# --- summary ---


def row(method="ours", strength=1.0, source=13, copies=(0, 1), delivered=(1, 1), objects=None, classes=(1, 1), **more):
    similar = {name: [0.1] * len(copies) for name in REPORTED}
    flags = {name: list(copies) for name in REPORTED}
    about = {"objects": objects} if objects else {"source": source, "copies": flags, "similarity": similar}
    return {
        "cell": f"{method}-{strength:g}/x{source}{objects}", "method": method, "strength": strength, "held_out": True,
        "pictures": len(copies), "delivered": list(delivered), "avoided": 1.0, "classes": list(classes),
        "colours": list(classes),
        "sharpness": 1.0, "rows": 40.0, "seconds": 0.1, "duplicates": 128, "caption": "ordinary",
    } | about | more  # fmt: skip


def test_a_refused_picture_is_neither_a_copy_nor_right():
    rows = [row(copies=(1, 1), delivered=(1, 0)), row(objects=1, classes=(1, 1), delivered=(1, 0)), row(objects=2)]
    (one,) = summarise(rows, lambda _: True)
    assert one.copies.value == 0.5
    assert one.refused == 0.5
    assert one.one_object.value == 0.5
    assert one.adherence == 0.75


def test_pictures_of_each_source_are_counted_as_delivered():
    rows = [
        row(copies=(1, 1), delivered=(1, 0)),
        row(copies=(1, 0, 0), delivered=(1, 1, 1), classes=(1, 1, 1)),
        row(source=16),
    ]
    assert delivered_counts(rows, PRIMARY) == {("ours", 1.0): {13: (1, 3), 16: (1, 2)}}
    (one,) = summarise(rows, lambda _: True)
    assert str(one.arrangement).endswith(" of 7")


def test_rows_that_are_older_than_a_measure_say_nothing_of_it():
    old = row()
    del old["copies"][ARRANGEMENT]
    (one,) = summarise([old], lambda _: True)
    assert one.arrangement is None
    assert one.copies.value == 0.5
    assert delivered_counts([old], ARRANGEMENT) == {}


def test_the_interval_is_of_sources_not_of_pictures():
    alike = [np.ones(50), np.zeros(50), np.ones(50), np.zeros(50)]
    mixed = [np.tile([0.0, 1.0], 25)] * 4
    low, high = bootstrap(alike)
    assert (low, high) == (0, 1)
    assert bootstrap(mixed) == (0.5, 0.5)
    assert 0 < bootstrap([np.tile([0.0, 1.0], 25)])[0] < 0.5


def test_methods_are_compared_on_the_same_captions():
    many = row(objects=1) | {"pictures": 4, "classes": [1, 0, 1, 1], "delivered": [1] * 4, "colours": [1] * 4}
    (all_of_them,), (first,) = (summarise([many], lambda _: True, captions=n) for n in (None, 2))
    assert all_of_them.one_object.value == 0.75
    assert first.one_object.value == 0.5


def test_a_point_is_dominated_by_one_that_copies_no_more_and_adheres_no_less():
    (best,) = summarise([row(copies=(0, 0)), row(objects=1), row(objects=2)], lambda _: True)
    worse = replace(best, copies=Rate(0.5, 0.4, 0.6, 2))
    assert dominated([worse, best], [best]) == [worse]
    assert dominated([best], [worse]) == []
