"""The blocks of diffusers' networks as our operators run them: channels last throughout, and what stands beside a
normalisation computed with it.

A block keeps its class's modules, their names and their tensors; only its `forward` is another. PyTorch's own layers
turn a picture over between planes and channels-last at each group normalisation, and pass over it once more for each
activation, bias, and addition of a timestep.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from diffusers.models.autoencoders.vae import Decoder
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel, Transformer2DModelOutput
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from ...kernels import add_bias, group_norm
from ..models.adapters import adapted
from .attention_choice import attend
from .fused_tokens import fuse_tokens


def fuse(network: nn.Module) -> None:
    """Let every block of `network` that can run on our operators, in place; any other stays as it is."""
    for module in list(network.modules()):
        if type(module) is ResnetBlock2D and _plain_resnet(module):
            module.__class__ = FusedResnetBlock
        elif type(module) is Transformer2DModel and module.is_input_continuous:
            module.__class__ = FusedTransformer
        elif type(module) is Attention and module.group_norm is not None and module.spatial_norm is None:
            module.set_processor(PictureAttention())
        elif isinstance(module, UNet2DConditionModel | Decoder) and type(module.conv_norm_out) is nn.GroupNorm:
            _fuse_ending(module)
        else:
            fuse_tokens(module)


class FusedResnetBlock(ResnetBlock2D):
    """A residual block: each norm with the activation after it, the second also with the bias and timestep before."""

    def forward(self, input_tensor: Tensor, temb: Tensor | None, *_: Any, **__: Any) -> Tensor:
        """(R, C, h, w), (R, D) -> (R, C', h, w)."""
        hidden = _convolved(self.conv1, _normed(self.norm1, input_tensor, silu=True))
        hidden = _normed(self.norm2, hidden, shift=self._shift(len(hidden), temb), silu=True)
        if self.conv_shortcut is not None:
            input_tensor = _project(self.conv_shortcut, input_tensor)
        hidden = add_bias(_convolved(self.conv2, hidden), input_tensor, self.conv2.bias)
        return hidden if self.output_scale_factor == 1 else hidden / self.output_scale_factor

    def _shift(self, rows: int, temb: Tensor | None) -> Tensor:
        """What is added to each channel before the second norm (R, C')."""
        bias = self.conv1.bias
        if self.time_emb_proj is None or temb is None:
            return bias.expand(rows, -1)
        return self.time_emb_proj(F.silu(temb)) + bias


class FusedTransformer(Transformer2DModel):
    """Transformer blocks on a picture, whose pixels are tokens as they lie."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        timestep: Tensor | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        class_labels: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        attention_mask: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """(R, C, h, w) -> (R, C, h, w), as the first of a tuple unless `return_dict`."""
        tokens = _linear(self.proj_in, _tokens(_normed(self.norm, hidden_states)))
        for block in self.transformer_blocks:
            tokens = block(
                tokens, attention_mask=attention_mask, encoder_hidden_states=encoder_hidden_states,
                encoder_attention_mask=encoder_attention_mask, timestep=timestep,
                cross_attention_kwargs=cross_attention_kwargs, class_labels=class_labels,
            )  # fmt: skip
        output = _picture(_linear(self.proj_out, tokens), hidden_states.shape) + hidden_states
        return Transformer2DModelOutput(sample=output) if return_dict else (output,)


class FusedGroupNorm(nn.GroupNorm):
    """A group normalisation with SiLU after it."""

    def forward(self, input: Tensor) -> Tensor:
        """(R, C, h, w) -> (R, C, h, w)."""
        return _normed(self, input, silu=True)


class PictureAttention:
    """Self-attention of an autoencoder's pixels: normalised, attended, added."""

    def __call__(self, attn: Attention, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        tokens = _tokens(_normed(attn.group_norm, hidden_states))
        query, key, value = (
            to(tokens).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for to in (attn.to_q, attn.to_k, attn.to_v)
        )
        attended = attend(query, key, value).transpose(1, 2).flatten(2)
        output = _picture(attn.to_out[0](attended), hidden_states.shape)
        if attn.residual_connection:
            output = output + hidden_states
        return output if attn.rescale_output_factor == 1 else output / attn.rescale_output_factor


def _plain_resnet(block: ResnetBlock2D) -> bool:
    """Whether it is the residual block of Stable Diffusion: SiLU, a timestep that is added, no change of size."""
    return (
        isinstance(block.nonlinearity, nn.SiLU)
        and block.time_embedding_norm == "default"
        and not block.skip_time_act
        and block.upsample is None
        and block.downsample is None
    )


def _fuse_ending(network: nn.Module) -> None:
    """The norm and activation before the last convolution."""
    if isinstance(network.conv_act, nn.SiLU):
        assert isinstance(network.conv_norm_out, nn.GroupNorm)
        network.conv_norm_out.__class__ = FusedGroupNorm
        network.conv_act = nn.Identity()


def _normed(norm: nn.GroupNorm, x: Tensor, *, shift: Tensor | None = None, silu: bool = False) -> Tensor:
    return group_norm(x, norm.weight, norm.bias, norm.num_groups, norm.eps, shift=shift, silu=silu)


def _convolved(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """Without its bias, which who reads the result adds."""
    y = F.conv2d(x, convolution.weight, None, convolution.stride, convolution.padding)
    return adapted(convolution, x, y)


def _linear(projection: nn.Module, tokens: Tensor) -> Tensor:
    """A linear layer or a 1x1 convolution on (B, N, C): one product that adds the bias itself."""
    if not isinstance(projection, nn.Linear | nn.Conv2d):
        return projection(tokens)
    return adapted(projection, tokens, F.linear(tokens, projection.weight.flatten(1), projection.bias))


def _project(convolution: nn.Module, x: Tensor) -> Tensor:
    return _picture(_linear(convolution, _tokens(x)), x.shape)


def _tokens(picture: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h * w, C), a view of what lies channels last."""
    return picture.permute(0, 2, 3, 1).flatten(1, 2)


def _picture(tokens: Tensor, shape: torch.Size) -> Tensor:
    """(B, h * w, C) -> (B, C, h, w), a view."""
    return tokens.unflatten(1, shape[2:]).permute(0, 3, 1, 2)
