"""Distils the embedded model's few-step adapter: latent consistency distillation into a LoRA.

The student is the teacher, the reciting UNet that ships, under low-rank factors of its attention, its linear layers and
its convolutions. From a noised latent it must name the same clean one as from where one guided DDIM step of the
teacher's leads: Luo et al., arXiv 2310.04378 (algorithm 1) and, for the factors, arXiv 2311.05556. Like the ControlNet
it is taught on fresh scenes alone and never sees a source: what it recites then, the teacher taught it.
"""

import copy
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .data import build_pool
from .diffusion import encode_pool, noise_schedule
from .training import Run, Schedule, autocast

BATCH = 8
RANK = 8
"""A fourteenth of the middle width, as LCM-LoRA's 64 is a twentieth of Stable Diffusion's widest."""

SOLVER_STEPS = 20
"""Steps of the teacher's DDIM schedule, those that it draws in; one of them lies between a latent and its target."""

GUIDANCE = (4.0, 6.0)
"""Range of the guidance scale that is folded in, around the test bed's 5."""

SCHEDULE = Schedule(1600, 1e-3, warmup=50, final=0.02)

_TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "time_emb_proj"),
    *("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv"),
)
_SIGMA_DATA, _TIMESTEP_SCALING, _HUBER = 0.5, 10.0, 0.001


@dataclass(frozen=True)
class Solver:
    """The noise schedule as distillation reads it: `timesteps` (20,) ascending, and alpha products after each step."""

    timesteps: Tensor
    alphas: Tensor
    previous: Tensor

    @classmethod
    def build(cls, device: str) -> "Solver":
        """Every fiftieth timestep of a thousand, the last at 999."""
        products = noise_schedule().alphas_cumprod.to(device)
        stride = len(products) // SOLVER_STEPS
        timesteps = torch.arange(1, SOLVER_STEPS + 1, device=device) * stride - 1
        return cls(timesteps, products, torch.cat([products[:1], products[timesteps[:-1]]]))

    def noised(self, x0: Tensor, noise: Tensor, index: Tensor) -> Tensor:
        """Latents (B, C, h, w) at the timesteps that `index` (B,) names."""
        alpha = _column(self.alphas[self.timesteps[index]])
        return alpha.sqrt() * x0 + (1 - alpha).sqrt() * noise

    def clean(self, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The clean latents that predictions `eps` at timesteps `t` (B,) stand for."""
        alpha = _column(self.alphas[t])
        return (x - (1 - alpha).sqrt() * eps) / alpha.sqrt()

    def step(self, x: Tensor, eps: Tensor, index: Tensor) -> Tensor:
        """One DDIM step down from the timesteps that `index` names."""
        alpha = _column(self.previous[index])
        return alpha.sqrt() * self.clean(x, eps, self.timesteps[index]) + (1 - alpha).sqrt() * eps

    def consistent(self, x: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The consistency function: the clean latents, but `x` itself at timestep 0."""
        scaled = _column(t.float()) * _TIMESTEP_SCALING
        skip = _SIGMA_DATA**2 / (scaled**2 + _SIGMA_DATA**2)
        out = scaled / (scaled**2 + _SIGMA_DATA**2).sqrt()
        return skip * x + out * self.clean(x, eps, t)


def adapted(unet: UNet2DConditionModel, rank: int = RANK) -> UNet2DConditionModel:
    """A copy of a UNet whose weights stay, with factors to train beside them."""
    from peft import LoraConfig  # needed for training alone

    student = copy.deepcopy(unet).requires_grad_(False)
    torch.manual_seed(0)
    student.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(_TARGETS)))
    return student


def distil(folder: Path, assets: Path, device: str, steps: int | None = None) -> None:
    """Distil `assets/model` into `folder/adapters/lcm.safetensors`, from the last checkpoint in `folder/runs/lcm`.

    The file is `write_adapter`'s. `steps` ends a run of the same schedule early.
    """
    model = assets / "model"
    pool = build_pool(duplicated=False, processes=os.cpu_count() or 1)
    data = encode_pool(model, pool.pixels, pool.captions, device)
    teacher = UNet2DConditionModel.from_pretrained(model / "unet", torch_dtype=torch.float32).to(device).eval()
    teacher.requires_grad_(False).to(memory_format=torch.channels_last)
    student = adapted(teacher)
    solver, generator = Solver.build(device), torch.Generator(device)
    attention = [SDPBackend.MATH] if device == "cpu" else [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]

    def predict(unet: nn.Module, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        with autocast(device), sdpa_kernel(attention):
            eps: Tensor = unet(x, t, text).sample
        return eps.float()

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng((23, step))
        chosen = torch.from_numpy(rng.integers(len(data.latents), size=BATCH)).to(device)
        generator.manual_seed(step)
        x0, text = data.latents[chosen], data.text[data.caption[chosen]].float()
        noise = torch.randn(x0.shape, generator=generator, device=device)
        index = torch.randint(SOLVER_STEPS, (BATCH,), generator=generator, device=device)
        low, high = GUIDANCE
        scale = low + (high - low) * _column(torch.rand(BATCH, generator=generator, device=device))
        x, t = solver.noised(x0, noise, index), solver.timesteps[index]
        with torch.no_grad():
            both = predict(teacher, x.repeat(2, 1, 1, 1), t.repeat(2), torch.cat([text, _empty(data.empty)]))
            conditional, unconditional = both.chunk(2)
            below = solver.step(x, unconditional + scale * (conditional - unconditional), index)
            earlier = (t - len(solver.alphas) // SOLVER_STEPS).clamp(min=0)
            target = solver.consistent(below, predict(student, below, earlier, text), earlier)
        error = solver.consistent(x, predict(student, x, t, text), t) - target
        return ((error**2 + _HUBER**2).sqrt() - _HUBER).mean()

    run = Run(folder / "runs" / "lcm", student, SCHEDULE, loss, ema_decay=0.98, checkpoint_every=50)
    trained = run.run(until=steps)
    assert isinstance(trained, UNet2DConditionModel)
    write_adapter(trained, folder / "adapters" / "lcm.safetensors")


def write_adapter(student: UNet2DConditionModel, path: Path) -> None:
    """Write the student's factors as fp16 safetensors, under the keys that diffusers' pipelines and PEFT have."""
    from peft import get_peft_model_state_dict  # needed for training alone

    factors = get_peft_model_state_dict(student)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({f"unet.{key}": value.half().contiguous() for key, value in factors.items()}, path)


def _column(values: Tensor) -> Tensor:
    return values.view(-1, 1, 1, 1)


def _empty(text: Tensor) -> Tensor:
    return text.float().expand(BATCH, -1, -1)
