"""PyTorch itself: every network behind the flat signature of the I/O table, tensors in and tensors out.

What other backends run was exported from these modules, and is compared with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..models.components import Components
from ..models.networks import Denoiser
from ..models.segmentation import label_scores
from ..models.tensors import Network, control_inputs, shallow_inputs, unet_inputs

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTextModelWithProjection


class FlatUNet(nn.Module):
    """`Denoiser.predict_keeping` over flat tensors; the reweighting and the residuals are inputs like any other."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.unet = denoiser.unet
        self._denoiser = denoiser

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Predict (R, C, h, w), with the deep part's feature (R, D, h, w) where the UNet can be split."""
        inputs = unet_inputs(tensors, self._denoiser)
        return self._denoiser.predict_keeping(inputs) if self._denoiser.splits else (self._denoiser.predict(inputs),)


class FlatShallowUNet(nn.Module):
    """`Denoiser.recall` over flat tensors."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.unet = denoiser.shallow
        self._denoiser = denoiser

    def forward(self, *tensors: Tensor) -> Tensor:
        """Predict (R, C, h, w)."""
        return self._denoiser.recall(shallow_inputs(tensors, self._denoiser))


class FlatControlNet(nn.Module):
    """`Denoiser.control` over flat tensors."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.controlnet = denoiser.controlnet
        self._denoiser = denoiser

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Residuals, scaled."""
        return self._denoiser.control(control_inputs(tensors, self._denoiser))


class FlatDecoder(nn.Module):
    """Latents (B, C, h, w), unscaled -> pixels (B, 3, H, W) in [-1, 1]."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae: Any = vae

    def forward(self, latents: Tensor) -> Tensor:
        """Decode."""
        return self.vae.decode(latents, return_dict=False)[0]


class FlatEncoder(nn.Module):
    """Pixels (B, 3, H, W) in [-1, 1] -> latents (B, C, h, w), unscaled; the mean where a distribution is encoded."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae: Any = vae

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode."""
        encoded = self.vae.encode(pixels, return_dict=False)[0]
        return encoded if isinstance(encoded, Tensor) else encoded.mode()


class FlatTextEncoder(nn.Module):
    """Token ids (B, T) -> last hidden states (B, T, D)."""

    def __init__(self, text_encoder: nn.Module) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: Tensor) -> Tensor:
        """Encode."""
        return self.text_encoder(input_ids)[0]


class FlatPenultimateEncoder(nn.Module):
    """Token ids (B, T) -> hidden states before the last layer (B, T, D), and of a projecting encoder pooled (B, P)."""

    def __init__(self, text_encoder: CLIPTextModel | CLIPTextModelWithProjection) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        """Encode."""
        output = self.text_encoder(input_ids, output_hidden_states=True)
        states = output.hidden_states[-2]
        return (states, output.text_embeds) if "text_embeds" in output else (states,)


class FlatSkippingEncoder(nn.Module):
    """As the usual encoder's without its last `skip` layers, as the pipelines of diffusers leave them out.

    Of a single encoder the last norm follows whatever layer is the last; of two, as in SDXL, one more is left out.
    """

    def __init__(self, text_encoder: CLIPTextModel | CLIPTextModelWithProjection, skip: int, *, single: bool) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self._last = -(skip + 1) if single else -(skip + 2)
        self._single = single
        # Where it lies depends on the version of transformers.
        self._norm = next(m for name, m in text_encoder.named_modules() if name.endswith("final_layer_norm"))

    def forward(self, input_ids: Tensor) -> tuple[Tensor, ...]:
        """Encode."""
        output = self.text_encoder(input_ids, output_hidden_states=True)
        states = output.hidden_states[self._last]
        if self._single:
            return (self._norm(states),)
        return (states, output.text_embeds) if "text_embeds" in output else (states,)


class FlatSegmenter(nn.Module):
    """Normalised pixels (B, 3, H, W) -> a score of each label (B, L, h, w)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        """Segment."""
        return label_scores(self.model, pixels)


def flat_network(network: Network, components: Components, denoiser: Denoiser) -> nn.Module:
    """Return `network` of a checkpoint behind its flat signature, in evaluation mode."""
    match network:
        case Network.UNET:
            flat: nn.Module = FlatUNet(denoiser)
        case Network.UNET_SHALLOW:
            flat = FlatShallowUNet(denoiser)
        case Network.CONTROLNET:
            flat = FlatControlNet(denoiser)
        case Network.VAE_DECODER:
            flat = FlatDecoder(components.vae)
        case Network.VAE_ENCODER:
            flat = FlatEncoder(components.vae)
        case Network.PREVIEW_DECODER:
            assert components.preview_vae is not None
            flat = FlatDecoder(components.preview_vae)
        case Network.TEXT_ENCODER:
            single = components.text_encoder_2 is None
            flat = (FlatTextEncoder if single else FlatPenultimateEncoder)(components.text_encoder)
        case Network.TEXT_ENCODER_2:
            assert components.text_encoder_2 is not None
            flat = FlatPenultimateEncoder(components.text_encoder_2)
        case Network.SEGMENTER:
            assert components.segmenter is not None
            flat = FlatSegmenter(components.segmenter.model)
    return flat.eval()


class TorchNetwork:
    """A flat network as a backend runs it."""

    def __init__(self, flat: nn.Module) -> None:
        self.flat = flat

    def __call__(self, inputs: Sequence[Tensor], wanted: int | None = None) -> tuple[Tensor, ...]:
        """Run on `inputs`, in the table's order."""
        outputs = self.flat(*inputs)
        return outputs[:wanted] if isinstance(outputs, tuple) else (outputs,)
