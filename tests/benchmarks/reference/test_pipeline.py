from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionControlNetPipeline, StableDiffusionPipeline
from PIL import Image

from twig.benchmarks.reference import pipeline as reference
from twig.benchmarks.reference.solvers import make_scheduler, masked_noise
from twig.engine.api.mechanisms import Avoidance, DelayedGuidance, MaskedAttention, MaskedNoise, MovedControl
from twig.engine.api.request import GenerationRequest
from twig.engine.api.settings import Solver, Stage
from twig.engine.models.checkpoint import load

DETERMINISTIC = (Solver.DDIM, Solver.EULER, Solver.DPMPP_2M)
NOISE_SEED = 77


@pytest.fixture(scope="module")
def components(tiny_checkpoint):
    return load(tiny_checkpoint)


@pytest.fixture(scope="module")
def drafted(components):
    return reference.draft(components, request())


def request(solver=Solver.DDIM, steps=5, scale=5.0, **options):
    policy = {"delayed_guidance": None, "masked_noise": None, "masked_attention": None, "moved_control": None}
    avoidance = Avoidance(**policy | {name: options.pop(name) for name in list(options) if name in policy})
    return GenerationRequest(
        **{"prompt": "a red star", "negative_prompt": "blue", "seed": 3} | options,
        draft=Stage(steps=steps, guidance_scale=scale, solver=solver),
        final=Stage(steps=steps, guidance_scale=scale, solver=solver),
        avoidance=avoidance,
    )


@pytest.fixture(scope="module")
def plain(components, drafted):
    """The final without any avoidance."""
    return final(components, drafted)


def final(components, drafted, noise_seed=NOISE_SEED, attempt=0, **options):
    return reference.final(components, request(**options), drafted, noise_seed, attempt)


def pipeline(cls, components, **parts):
    made = cls(
        vae=components.vae, text_encoder=components.text_encoder, tokenizer=components.tokenizer, unet=components.unet,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False, **parts,
    )  # fmt: skip
    made.set_progress_bar_config(disable=True)
    return made


def rows_of_each_step(components, run):
    """Rows of every UNet call while `run()` runs."""
    rows = []
    hook = components.unet.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    try:
        run()
    finally:
        hook.remove()
    return rows


# --- equal to diffusers' own pipelines ---


@pytest.mark.parametrize("solver", DETERMINISTIC)
@pytest.mark.parametrize(("scale", "steps"), [(1.0, 4), (7.5, 12)])
def test_draft_is_stable_diffusion_pipelines_picture(components, solver, scale, steps):
    asked = request(solver, steps=steps, scale=scale)
    diffusers = pipeline(StableDiffusionPipeline, components, scheduler=make_scheduler(solver, components.scheduler))
    expected = diffusers(
        asked.prompt, negative_prompt=asked.negative_prompt, num_inference_steps=steps, guidance_scale=scale, height=64,
        width=64, generator=torch.Generator().manual_seed(asked.seed), output_type="pt",
    ).images  # fmt: skip
    drafted = reference.draft(components, asked)
    assert drafted.pixels.std() > 0.1
    torch.testing.assert_close(drafted.pixels, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("solver", DETERMINISTIC)
@pytest.mark.parametrize("stop", [0.4, 1.0])
def test_final_under_unmoved_control_is_controlnet_pipelines_picture(components, drafted, solver, stop):
    asked = request(solver, moved_control=MovedControl(warp="none", scale=1.3, stop=stop, rows="both"))
    diffusers = pipeline(
        StableDiffusionControlNetPipeline, components, controlnet=components.controlnet,
        scheduler=make_scheduler(solver, components.scheduler),
    )  # fmt: skip
    hint = torch.from_numpy(components.segmenter.palette[drafted.labels]).permute(2, 0, 1)[None] / 255
    expected = diffusers(
        asked.prompt, image=hint, negative_prompt=asked.negative_prompt, num_inference_steps=5, guidance_scale=5.0,
        controlnet_conditioning_scale=1.3, control_guidance_end=stop,
        generator=torch.Generator().manual_seed(NOISE_SEED), output_type="pt",
    ).images  # fmt: skip
    made = reference.final(components, asked, drafted, NOISE_SEED)
    assert np.array_equal(made.control_labels, drafted.labels)
    torch.testing.assert_close(made.pixels, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("solver", [Solver.DDIM, Solver.EULER, Solver.EULER_ANCESTRAL, Solver.DPMPP_2M])
def test_final_without_avoidance_is_a_draft_from_other_noise(components, drafted, solver):
    again = reference.draft(components, request(solver, seed=NOISE_SEED))
    made = final(components, drafted, solver=solver)
    assert torch.equal(made.latent, again.latent)
    assert made.control_labels is None


# --- noise belongs to the run ---


def test_ancestral_noise_comes_from_the_seed_alone(components, drafted):
    torch.manual_seed(0)
    first = final(components, drafted, solver=Solver.EULER_ANCESTRAL).latent
    torch.manual_seed(1)
    assert torch.equal(final(components, drafted, solver=Solver.EULER_ANCESTRAL).latent, first)
    other = final(components, drafted, noise_seed=NOISE_SEED + 1, solver=Solver.EULER_ANCESTRAL).latent
    assert not torch.allclose(other, first, atol=0.1)


# --- the mechanisms ---


def test_delayed_guidance_spends_one_row_on_its_steps(components, drafted):
    delayed = DelayedGuidance(stop=0.4)
    rows = rows_of_each_step(components, lambda: final(components, drafted, delayed_guidance=delayed))
    assert rows == [1, 1, 2, 2, 2]


@pytest.mark.parametrize("branch", ["conditional", "unconditional"])
def test_delayed_guidance_changes_nothing_where_both_prompts_are_one(components, drafted, plain, branch):
    same = {"negative_prompt": "a red star"}
    guided = final(components, drafted, **same)
    delayed = final(components, drafted, **same, delayed_guidance=DelayedGuidance(stop=0.4, branch=branch))
    torch.testing.assert_close(delayed.latent, guided.latent, atol=1e-4, rtol=0)
    assert not torch.allclose(guided.latent, plain.latent, atol=1e-3)


def test_delayed_guidance_follows_the_branch_it_names(components, drafted):
    unguided = {"steps": 4, "scale": 1.0}
    conditional = final(components, drafted, **unguided).latent
    for branch in ("conditional", "unconditional"):
        delayed = DelayedGuidance(stop=0.4, branch=branch)
        latent = final(components, drafted, delayed_guidance=delayed, **unguided).latent
        assert torch.equal(latent, conditional) == (branch == "conditional")


def test_moved_control_is_steered_by_other_labels_and_changes_the_picture(components, drafted, plain):
    flipped = final(components, drafted, moved_control=MovedControl(warp="flip"))
    assert not np.array_equal(flipped.control_labels, drafted.labels)
    assert not torch.allclose(flipped.pixels, plain.pixels, atol=1e-2)


def test_control_of_the_conditional_branch_leaves_the_other_alone(components, drafted):
    both = MovedControl(warp="none", stop=1.0, rows="both")
    one = MovedControl(warp="none", stop=1.0, rows="conditional")
    results = [final(components, drafted, moved_control=policy).latent for policy in (both, one)]
    assert not torch.allclose(*results, atol=1e-3)
    unguided = {"scale": 1.0, "steps": 4}
    results = [final(components, drafted, moved_control=policy, **unguided).latent for policy in (both, one)]
    assert torch.equal(*results)


def test_masked_noise_spares_what_is_outside_when_it_acts_last(components, drafted, plain):
    last = MaskedNoise(start=0.8, stop=1.0, strength=1.0)
    noised = final(components, drafted, masked_noise=last)
    mask = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(drafted.mask).float()[None], (16, 16))[0]
    changed = (noised.latent - plain.latent).abs().amax(dim=(0, 1))
    assert 0 < float((mask == 0).float().mean()) < 1
    assert changed[mask == 0].max() == 0
    assert changed[mask == 1].min() > 0


def test_masked_noise_at_the_last_step_of_euler_returns_the_prediction(components, drafted):
    noise = MaskedNoise(start=0.8, stop=1.0, strength=1.0)
    options = {"solver": Solver.EULER}
    noised = final(components, drafted, masked_noise=noise, **options)
    torch.testing.assert_close(noised.latent, final(components, drafted, **options).latent, atol=1e-5, rtol=0)


@pytest.mark.parametrize("solver", [Solver.DDIM, Solver.EULER, Solver.EULER_ANCESTRAL, Solver.DPMPP_2M])
def test_masked_noise_keeps_the_latent_at_the_noise_level_of_its_step(components, drafted, solver):
    scheduler = make_scheduler(solver, components.scheduler)
    scheduler.set_timesteps(10)
    everywhere = torch.ones(64, 64)
    x0 = torch.zeros(1, 4, 64, 64)
    x = masked_noise(scheduler, 4, x0, x0, everywhere, MaskedNoise(strength=1.0), 5)
    clean = scheduler.alphas_cumprod[scheduler.timesteps[5].long()]
    expected = (1 - clean) / clean if solver in (Solver.EULER, Solver.EULER_ANCESTRAL) else 1 - clean
    assert float(x.std()) == pytest.approx(float(expected) ** 0.5, rel=0.03)


def test_empty_mask_switches_masked_mechanisms_off(components, plain):
    empty = request(
        mask=np.zeros((64, 64), bool), masked_noise=MaskedNoise(), masked_attention=MaskedAttention(outside_bias=0.0)
    )
    redrafted = reference.draft(components, empty)
    made = reference.final(components, empty, redrafted, NOISE_SEED)
    torch.testing.assert_close(made.latent, plain.latent, atol=1e-4, rtol=0)


@pytest.mark.parametrize("rule", [{"bias": 0.0}, {"bias": -5.0, "layers": ()}, {"bias": -5.0, "stop": 0.0}])
def test_neutral_attention_rule_changes_nothing(components, drafted, plain, rule):
    ruled = final(components, drafted, masked_attention=MaskedAttention(**rule))
    torch.testing.assert_close(ruled.latent, plain.latent, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "rule",
    [{"bias": -4.0}, {"scale": 0.0}, {"gain": 0.0}, {"gain": 0.0, "renormalise": 0.0}, {"damping": 1.0}],
)
def test_each_attention_term_changes_the_picture(components, drafted, plain, rule):
    policy = MaskedAttention(**{"bias": 0.0, "layers": ("down", "mid", "up")} | rule)
    ruled = final(components, drafted, masked_attention=policy)
    assert float((ruled.latent - plain.latent).abs().max()) > 1e-3


def test_attention_rule_leaves_the_unet_as_it_was(components, drafted):
    before = components.unet.attn_processors
    final(components, drafted, masked_attention=MaskedAttention())
    assert components.unet.attn_processors == before


def test_hidden_words_are_forgotten(components, drafted):
    """With words and padding hidden everywhere, and no guidance, one prompt of a length is as good as another."""
    everywhere = np.ones((64, 64), bool)
    hidden = MaskedAttention(bias=-1e4, stop=1.0, layers=("down", "mid", "up"))
    options = {"scale": 1.0, "steps": 4, "mask": everywhere, "masked_attention": hidden}
    latents = []
    for prompt in ("a red star", "the blue house"):
        asked = request(prompt=prompt, **options)
        latents.append(reference.final(components, asked, reference.draft(components, asked), NOISE_SEED).latent)
    torch.testing.assert_close(*latents, atol=1e-5, rtol=0)


# --- requests ---


def test_source_takes_the_drafts_place(components, tmp_path, drafted):
    pixels = (drafted.pixels[0].permute(1, 2, 0) * 255).round().byte().numpy()
    path = tmp_path / "source.png"
    Image.fromarray(pixels).save(path)
    found = reference.draft(components, request(source=path))
    assert found.latent is None
    assert float((found.pixels - drafted.pixels).abs().max()) <= 0.5 / 255 + 1e-6
    assert float((found.mask == drafted.mask).mean()) > 0.98


def test_retry_runs_under_the_escalated_policy(components, drafted):
    delayed = DelayedGuidance(stop=0.1)
    spent = [
        rows_of_each_step(components, lambda a=a: final(components, drafted, attempt=a, delayed_guidance=delayed))
        for a in (0, 2)
    ]
    assert spent == [[1, 2, 2, 2, 2], [1, 1, 2, 2, 2]]


def test_both_steps_of_the_default_policy(components):
    asked = GenerationRequest(prompt="a red star and a blue house", draft=Stage(steps=6), final=Stage(steps=6))
    drafted, made = reference.generate(components, asked, NOISE_SEED)
    assert drafted.mask.shape == (64, 64)
    assert drafted.mask.dtype == bool
    assert made.pixels.shape == (1, 3, 64, 64)
    assert float(made.pixels.min()) >= 0
    assert float(made.pixels.max()) <= 1
    assert -1 <= made.ssim <= 1
    assert reference.ssim(made.pixels, made.pixels) == pytest.approx(1)


def test_users_mask_needs_no_segmenter(components):
    mask = np.zeros((64, 64), bool)
    mask[16:48, 16:48] = True
    asked = request(mask=mask, steps=2, masked_noise=MaskedNoise())
    drafted, made = reference.generate(replace(components, segmenter=None), asked, NOISE_SEED)
    assert drafted.labels is None
    assert np.array_equal(drafted.mask, mask)
    with_segmenter = reference.generate(components, asked, NOISE_SEED)[1]
    assert torch.equal(made.pixels, with_segmenter.pixels)


def test_other_sizes_than_the_models_own(components):
    asked = request(steps=3, width=96, height=40, moved_control=MovedControl(), masked_attention=MaskedAttention())
    drafted, made = reference.generate(components, asked, NOISE_SEED)
    assert drafted.pixels.shape == made.pixels.shape == (1, 3, 40, 96)
