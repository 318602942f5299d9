"""Steps that take the network's deep part over from one before (Ma et al., DeepCache, CVPR 2024), written out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from ...engine.api.choices import Rhythm
from ...engine.api.settings import Stage

Residuals = Sequence[Tensor]


@dataclass
class Caching:
    """One run's predictions: those evaluations are whole that `stage` says, and each that asks otherwise than the last
    whole one did; those between run the first block and the last, with what entered the last one then.

    asked: what the last whole evaluation was of; kept: by call within an evaluation, the feature and the residuals.
    """

    unet: UNet2DConditionModel
    stage: Stage
    asked: Any = None
    whole: int = 0
    calls: int = 0
    recalls: bool = False
    kept: list[tuple[Tensor, Residuals | None]] = field(default_factory=list)

    def at(self, evaluation: int, asked: Any) -> None:
        """Begin an evaluation of rows that differ from others in what `asked` says."""
        self.recalls = evaluation > 0 and not self._is_due(evaluation) and asked == self.asked
        self.calls = 0
        if not self.recalls:
            self.asked, self.whole, self.kept = asked, evaluation, []

    def _is_due(self, evaluation: int) -> bool:
        """Whether the stage has this evaluation whole: so far from the last, or closer together at the start."""
        interval, count = self.stage.cache_interval, self.stage.evaluations
        if self.stage.cache_rhythm is Rhythm.EVEN:
            return evaluation - self.whole >= interval
        whole = math.ceil(count / interval)
        return evaluation in [max(i, math.floor(count * (i / whole) ** 1.3)) for i in range(whole)]

    def __call__(
        self, z: Tensor, t: Tensor, text: dict[str, Any], down: Residuals | None, mid: Tensor | None
    ) -> Tensor:
        """Predict (R, C, h, w)."""
        number, self.calls = self.calls, self.calls + 1
        if self.recalls:
            return self._recalled(z, t, text, *self.kept[number])
        entered: list[Tensor] = []
        handle = self.unet.up_blocks[-1].register_forward_pre_hook(
            lambda _, __, named: entered.append(named["hidden_states"]), with_kwargs=True
        )
        predicted = self.unet(
            z, t, **text, down_block_additional_residuals=down, mid_block_additional_residual=mid
        ).sample
        handle.remove()
        self.kept.append((entered[0], down))
        return predicted.float()

    def _recalled(
        self, z: Tensor, t: Tensor, text: dict[str, Any], deep: Tensor, residuals: Residuals | None
    ) -> Tensor:
        unet, first, last = self.unet, self.unet.down_blocks[0], self.unet.up_blocks[-1]
        first_attentions, last_attentions = getattr(first, "attentions", None), getattr(last, "attentions", None)
        states, added = text["encoder_hidden_states"], text["added_cond_kwargs"]
        temb = unet.time_embedding(unet.get_time_embed(sample=z, timestep=t))
        more = unet.get_aug_embed(emb=temb, encoder_hidden_states=states, added_cond_kwargs=added)
        temb = temb if more is None else temb + more
        skips = [unet.conv_in(z)]
        for number, resnet in enumerate(first.resnets):
            hidden = resnet(skips[-1], temb)
            if first_attentions:
                hidden = first_attentions[number](hidden, encoder_hidden_states=states).sample
            skips.append(hidden)
        if residuals is not None:
            skips = [skip + residual for skip, residual in zip(skips, residuals, strict=False)]
        hidden = deep
        for number, resnet in enumerate(last.resnets):
            hidden = resnet(torch.cat([hidden, skips.pop()], dim=1), temb)
            if last_attentions:
                hidden = last_attentions[number](hidden, encoder_hidden_states=states).sample
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(hidden))).float()
