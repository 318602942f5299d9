"""The few-step adapter: its recipe's arithmetic against diffusers', and pictures of the one that ships."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file

pytest.importorskip("peft", reason="peft is not installed")

from twig.benchmarks.copying.checker import check
from twig.benchmarks.copying.diffusion import noise_schedule
from twig.benchmarks.copying.distil import SOLVER_STEPS, Solver, adapted, write_adapter
from twig.benchmarks.copying.few_step import ADAPTER, WAYS, Drawer, copy_rows, recited
from twig.benchmarks.copying.few_step import adapted as under_adapter
from twig.benchmarks.copying.measures import find_labels
from twig.benchmarks.copying.scenes import random_scene
from twig.engine.models.checkpoint import load


@pytest.fixture(scope="module")
def components():
    return load()


def draw(seed):
    return torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_the_teacher_steps_as_diffusers_ddim_does():
    solver = Solver.build("cpu")
    scheduler = DDIMScheduler.from_config(noise_schedule().config, timestep_spacing="trailing")
    scheduler.set_timesteps(SOLVER_STEPS)
    assert scheduler.timesteps.flip(0).tolist() == solver.timesteps.tolist()
    for index in (0, 1, SOLVER_STEPS - 1):
        x, eps = draw(1), draw(2)
        wanted = scheduler.step(eps, int(solver.timesteps[index]), x).prev_sample
        assert torch.allclose(solver.step(x, eps, torch.tensor([index])), wanted, atol=1e-5)


def test_a_latent_at_the_end_is_its_own_clean_one():
    solver, x = Solver.build("cpu"), draw(1)
    assert torch.equal(solver.consistent(x, draw(2), torch.tensor([0])), x)
    last, eps = torch.tensor([999]), draw(2)
    assert torch.allclose(solver.consistent(x, eps, last), solver.clean(x, eps, last), atol=1e-4)


def test_what_is_written_is_what_diffusers_reads(components, tmp_path):
    student = adapted(components.unet)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    write_adapter(student, tmp_path / "lcm.safetensors")
    inputs = draw(0), torch.tensor([500]), torch.randn(1, 77, 128, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        wanted, plain = student(*inputs).sample, components.unet(*inputs).sample
        found = under_adapter(components.unet, tmp_path / "lcm.safetensors")(*inputs).sample
    assert torch.allclose(found, wanted, atol=2e-2)
    assert not torch.allclose(found, plain, atol=1e-1)


def test_the_shipped_adapter_is_small_and_draws_in_four_rows(components):
    assert ADAPTER.stat().st_size < 1.5 * 2**20
    assert {tensor.dtype for tensor in load_file(ADAPTER).values()} == {torch.float16}
    drawer, way = Drawer(components, under_adapter(components.unet)), WAYS[1]
    assert (way.name, way.rows) == ("lcm 4", 4)
    rng = np.random.default_rng(3)
    scenes = [random_scene(rng, num_objects=1) for _ in range(8)]
    pictures = drawer.pictures(way, [scene.caption for scene in scenes], range(8))
    labels = find_labels(pictures, components.segmenter)
    right = [check(*each).classes for each in zip(pictures, labels, scenes, strict=True)]
    assert sum(right) >= 6
    (row,) = copy_rows(drawer, way, recited()[:1], 2)
    assert row["copies"] == 2  # what the teacher recites, its drafts show
