"""The training loop the test bed's networks share: resume, log, schedule, averaged weights."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def autocast(device: str) -> torch.autocast:
    """Compute in bf16 where the device has instructions for it; elsewhere in fp32, for emulating it is slower."""
    able = torch.device(device).type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.autocast(device, torch.bfloat16, enabled=able)


@dataclass
class Schedule:
    """Length and learning rates of a run: linear warm-up, then cosine to `final` times the peak."""

    steps: int
    learning_rate: float
    warmup: int = 100
    final: float = 0.02

    def factor(self, step: int) -> float:
        """Learning rate at `step` over its peak."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@dataclass
class Run:
    """One training run in a folder: `checkpoint.pt` to resume from, `log.jsonl` for its learning curve.

    `loss(step)` computes a scalar from `model`; randomness must come from `step` alone, so that a resumed
    run equals an uninterrupted one.
    """

    folder: Path
    model: nn.Module
    schedule: Schedule
    loss: Callable[[int], Tensor]
    ema_decay: float | None = None
    weight_decay: float = 0.01
    checkpoint_every: int = 250
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None
    ema: AveragedModel | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        """Create the folder and, where asked for, the averaged weights."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.ema_decay is not None:
            self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(self.ema_decay))

    @property
    def result(self) -> nn.Module:
        """The averaged model where there is one, else the model."""
        return self.ema.module if self.ema is not None else self.model

    def run(self, until: int | None = None) -> nn.Module:
        """Train from the last checkpoint to the end, or to the step `until` of the same schedule; return `result`."""
        last = self.schedule.steps if until is None else min(until, self.schedule.steps)
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(
            parameters, self.schedule.learning_rate, weight_decay=self.weight_decay, fused=True
        )
        start = self._resume(optimizer)
        began, losses = time.perf_counter(), list[Tensor]()
        for step in range(start, last):
            for group in optimizer.param_groups:
                group["lr"] = self.schedule.learning_rate * self.schedule.factor(step)
            loss = self.loss(step)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if self.ema is not None:
                self.ema.update_parameters(self.model)
            losses.append(loss.detach())
            done = step + 1
            if done % 50 == 0:
                mean = float(torch.stack(losses).mean())  # waits for the device, as no step does
                self._log(done, mean, (time.perf_counter() - began) / (done - start))
                losses.clear()
            if done % self.checkpoint_every == 0 or done == last:
                self._save(done, optimizer)
        return self.result

    def _log(self, step: int, loss: float, seconds: float) -> None:
        row: dict[str, float] = {"step": step, "loss": round(loss, 5), "seconds_per_step": round(seconds, 4)}
        if self.evaluate is not None and step % (4 * self.checkpoint_every) == 0:
            row |= {name: round(value, 4) for name, value in self.evaluate(self.result).items()}
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(row) + "\n")

    def _save(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        state = {"step": step, "model": self.model.state_dict(), "optimizer": optimizer.state_dict()}
        if self.ema is not None:
            state["ema"] = self.ema.state_dict()
        partial = self.folder / "checkpoint.partial"
        torch.save(state, partial)
        partial.replace(self.folder / "checkpoint.pt")

    def _resume(self, optimizer: torch.optim.Optimizer) -> int:
        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return 0
        state = torch.load(path, weights_only=True, map_location="cpu")
        self.model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        return int(state["step"])
