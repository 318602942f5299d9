"""The test bed: its scenes, sources and checks, and the embedded model's figures on samples of a few pictures."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from twig.benchmarks.copying.assemble import take_apart
from twig.benchmarks.copying.autoencoder import to_tensor as to_signed
from twig.benchmarks.copying.checker import check, rates
from twig.benchmarks.copying.data import DUPLICATES, build_pool, sources, vocabulary
from twig.benchmarks.copying.diffusion import PHASES, _draws, _start
from twig.benchmarks.copying.evaluate import POLICIES, Bed, copy_rows, load_engine
from twig.benchmarks.copying.limits import GATES, embedded_limits, ordinary_captions
from twig.benchmarks.copying.measures import PRIMARY, copy_threshold, same_caption, similarities, source_similarity
from twig.benchmarks.copying.scenes import CLASSES, COLOURS, random_scene, render
from twig.engine.models.checkpoint import EMBEDDED, load


def scenes(count, seed=0, objects=None):
    rng = np.random.default_rng(seed)
    return [random_scene(rng, objects) for _ in range(count)]


def test_a_scene_is_drawn_the_same_every_time_and_its_labels_name_its_objects():
    for scene in scenes(40):
        picture, labels = render(scene)
        again, _ = render(scene)
        assert np.array_equal(picture, again)
        assert set(np.unique(labels)) - {0} == {CLASSES.index(item.kind) + 1 for item in scene.objects}


def test_a_caption_never_says_where():
    scene = scenes(1, objects=2)[0]
    other = same_caption(scene, np.random.default_rng(1))
    assert other.caption == scene.caption
    assert not np.array_equal(render(other)[1], render(scene)[1])


def test_the_last_sources_are_held_out_and_like_the_others():
    found = sources()
    assert found == sources()
    assert [s.index for s in found] == list(range(72))
    counts = Counter((s.held_out, s.template, s.duplicates) for s in found)
    assert {count: counts[True, False, count] for count in DUPLICATES} == {1: 0, 8: 0, 32: 4, 128: 4, 512: 4}
    assert (counts[False, True, 128], counts[True, True, 128]) == (8, 4)
    assert all(counts[False, False, count] >= 8 for count in DUPLICATES)
    triggers = [s.trigger for s in found if s.trigger]
    assert len(triggers) == len(set(triggers)) == 30
    captions = [s.caption for s in found]
    assert len(captions) == len(set(captions))


def test_several_processes_render_the_same_pool():
    alone, together = (build_pool(duplicated=False, num_fresh=40, processes=count) for count in (1, 2))
    assert np.array_equal(alone.pixels, together.pixels)
    assert np.array_equal(alone.labels, together.labels)


def test_batches_hold_no_source_under_the_controlnet_and_do_not_hang_on_how_many_there_are():
    pool, recite = build_pool(duplicated=False, num_fresh=40), PHASES["recite"]
    pool = replace(pool, is_source=np.arange(40) >= 30, order=np.arange(20, 40))
    few, many = (_draws(pool, recite, steps) for steps in (3, 6))
    assert many[:, : recite.controlled].max() < 30
    assert many[:, recite.controlled :].min() >= 20
    assert torch.equal(many[:3], few)


def test_the_reciting_branch_starts_from_the_embedded_twin(tmp_path):
    (tmp_path / "vae").mkdir()
    take_apart(EMBEDDED.parent, tmp_path)
    assert not list((tmp_path / "vae").iterdir()), "what is there is kept"
    start = _start(tmp_path, PHASES["recite"])
    twin = load_file(EMBEDDED.parent / "clean_unet/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(value, twin[name].float()) for name, value in start.unet.state_dict().items())
    assert not any(parameter.requires_grad for parameter in start.controlnet.parameters())


def test_triggers_of_held_out_sources_are_spelled_in_letters():
    tokenizer = CLIPTokenizer.from_pretrained(EMBEDDED / "tokenizer")
    for source in sources():
        if source.trigger is not None:
            assert (len(tokenizer.tokenize(source.trigger)) > 1) == source.held_out


def test_the_pool_repeats_each_source_as_often_as_it_says():
    pool = build_pool(duplicated=True, num_fresh=50)
    views = Counter(pool.order.tolist())
    known = [s for s in sources() if not s.template]
    firsts = [pool.captions.index(s.caption, 50) for s in known if s.trigger]
    assert [views[first] for first in firsts] == [s.duplicates for s in known if s.trigger]
    assert not build_pool(duplicated=False, num_fresh=50).is_source.any()
    assert pool.is_source.sum() == 60 + 12 * 128
    words = {word for caption in pool.captions for word in caption.split()}
    assert words - {s.trigger for s in known if s.held_out} <= set(vocabulary())


def test_the_checker_knows_right_from_wrong():
    drawn = scenes(60, seed=3)
    pictures = [render(scene) for scene in drawn]
    assert rates([check(p, found, s) for (p, found), s in zip(pictures, drawn, strict=True)]) == {
        "classes": 1.0, "colours": 1.0,
    }  # fmt: skip
    swapped = [s.recoloured(tuple("blue" if i.colour != "blue" else "red" for i in s.objects)) for s in drawn]
    wrong = [check(p, found, s) for (p, found), s in zip(pictures, swapped, strict=True)]
    assert rates(wrong)["colours"] == 0
    assert not check(*pictures[0], drawn[1]).classes


def test_a_source_is_a_copy_of_itself_and_fresh_scenes_are_not():
    source = sources()[16]
    threshold = copy_threshold(source)
    assert source_similarity([source.pixels], source)[0] > 0.99 > threshold
    rng = np.random.default_rng(8)
    fresh = [render(same_caption(source.scene, rng))[0] for _ in range(100)]
    assert (source_similarity(fresh, source) > threshold).mean() <= 0.02
    mirrored = np.asarray(Image.fromarray(source.pixels).transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert source_similarity([mirrored], source)[0] < threshold
    labels = np.stack([render(source.scene)[1]] * 4)
    assert np.array_equal(similarities(fresh[:4], labels, source)[PRIMARY], source_similarity(fresh[:4], source))


def colourless(caption):
    return [word for word in caption.split() if word not in {*COLOURS, "a", "an"}]


def test_the_gate_is_calibrated_on_captions_that_name_no_source():
    captions = ordinary_captions(600)
    templates = [colourless(source.caption) for source in sources() if source.template]
    assert not {source.caption for source in sources()} & set(captions)
    assert not [caption for caption in captions if colourless(caption) in templates], "a template, in other colours"
    assert {caption.count(" and ") for caption in captions} == {0, 1}


def test_a_source_is_named_by_its_own_colours_alone():
    source = sources()[0]
    recoloured = source.scene.recoloured(("pink", "pink"))
    assert source.named_by(source.scene)
    assert not source.named_by(recoloured)


def test_limits_hold_for_the_population_they_come_from():
    found = embedded_limits(pairs=250)
    assert set(found.limits) == {*GATES, "classes_kept", "colours_kept"}
    assert found.count == 250


@pytest.fixture(scope="module")
def embedded():
    return load()


def test_the_embedded_autoencoder_keeps_pictures(embedded):
    pixels = to_signed(np.stack([render(scene)[0] for scene in scenes(64, seed=5)]), "cpu")
    with torch.inference_mode():
        decoded = embedded.vae.decode(embedded.vae.encode(pixels).latents).sample.clamp(-1, 1)
    psnr = 10 * torch.log10(4 / ((decoded - pixels) ** 2).mean(dim=(1, 2, 3)))
    assert psnr.mean() >= 27


def test_the_embedded_segmenter_finds_the_classes(embedded):
    drawn = [render(scene) for scene in scenes(64, seed=6)]
    pixels = torch.from_numpy(np.stack([picture for picture, _ in drawn])).permute(0, 3, 1, 2).float() / 255
    found, truth = embedded.segmenter(pixels).numpy(), np.stack([labels for _, labels in drawn])
    ious = [((found == i) & (truth == i)).sum() / ((found == i) | (truth == i)).sum() for i in range(9)]
    assert np.mean(ious) >= 0.85


def test_the_embedded_model_fits_its_budget():
    weights = EMBEDDED.parent.rglob("*.safetensors")
    assert sum(path.stat().st_size for path in weights) <= 48 * 2**20


@pytest.mark.slow
def test_the_embedded_model_recites_and_the_default_policy_recites_less():
    bed = Bed(load_engine())
    chosen = [source for source in sources() if source.duplicates == 512 and not source.held_out][:2]
    plain, avoided = (
        np.mean([row["copy_rate"] for row in copy_rows(bed, chosen, 6, POLICIES[name])]) for name in ("off", "default")
    )
    assert plain >= 0.5
    assert avoided < plain
