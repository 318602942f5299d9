"""Complete tiny models with random weights: in the layout of the embedded one, and in SDXL's."""

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    ControlNetModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionXLControlNetPipeline,
    UNet2DConditionModel,
)
from tokenizers import pre_tokenizers
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    SegformerConfig,
    SegformerForSemanticSegmentation,
)

from twig.engine.api.calibration import Calibration

WORDS = ("a", "and", "blue", "circle", "green", "house", "moon", "on", "red", "star", "the", "tree", "yellow")
LABELS = ("background", "circle", "square", "star")
PALETTE = ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255))


def build_tokenizer(**options) -> CLIPTokenizer:
    """CLIP's byte-pair tokenizer in which each of `WORDS` is one token and anything else is spelt in bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    spelt = [[*word[:-1], word[-1] + "</w>"] for word in WORDS]
    steps = [("".join(word[:i]), piece) for word in spelt for i, piece in enumerate(word) if i]
    merges = list(dict.fromkeys(steps))
    pieces = [*alphabet, *(c + "</w>" for c in alphabet), *("".join(m) for m in merges)]
    vocabulary = {piece: i for i, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77, **options)


def text_config(tokenizer: CLIPTokenizer, width: int = 32, pooled: int = 32) -> CLIPTextConfig:
    """Two layers."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=64, projection_dim=pooled, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=77, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two layers of width 32."""
    return CLIPTextModel(text_config(tokenizer))


def build_unet() -> UNet2DConditionModel:
    """16x16x4 latents, cross-attention at 8x8 and 4x4 with two heads."""
    return UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(16, 32, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32, attention_head_dim=2, norm_num_groups=8,
    )  # fmt: skip


def build_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """Beside `unet`, its zero convolutions drawn at random so that a hint changes the picture."""
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 16))
    zeros = [*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block]
    for convolution in (*zeros, controlnet.controlnet_cond_embedding.conv_out):
        nn.init.normal_(convolution.weight, std=0.1)
    return controlnet


def build_vae() -> AutoencoderTiny:
    """64x64 pictures to 16x16x4 latents; noise decodes to pictures of medium brightness and contrast."""
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8,) * 3, decoder_block_out_channels=(8,) * 3, num_encoder_blocks=(0, 1, 1),
        num_decoder_blocks=(1, 1, 1), latent_channels=4, scaling_factor=1.0,
    )  # fmt: skip
    for module in vae.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    last = vae.decoder.layers[-1]
    with torch.no_grad():
        decoded = vae.decode(torch.randn(8, 4, 16, 16)).sample
        last.weight *= (0.5 / decoded.std(dim=(0, 2, 3))).view(-1, 1, 1, 1)
        last.bias.copy_(0.5 - vae.decode(torch.randn(8, 4, 16, 16)).sample.add(1).div(2).mean(dim=(0, 2, 3)))
    return vae


def build_segmenter(vae: AutoencoderTiny) -> SegformerForSemanticSegmentation:
    """SegFormer over `LABELS`: 60 % background in what `vae` decodes from noise, the rest shared by the others."""
    segmenter = SegformerForSemanticSegmentation(
        SegformerConfig(
            depths=[1, 1], hidden_sizes=[8, 16], num_attention_heads=[1, 2], sr_ratios=[4, 2], strides=[2, 2],
            num_encoder_blocks=2, patch_sizes=[7, 3], mlp_ratios=[2, 2], decoder_hidden_size=16,
            classifier_dropout_prob=0.0, id2label=dict(enumerate(LABELS)),
            label2id={name: i for i, name in enumerate(LABELS)}, palette=[list(colour) for colour in PALETTE],
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        logits = segmenter(vae.decode(1.5 * torch.randn(8, 4, 16, 16)).sample.clamp(-1, 1)).logits
        logits -= (mean := logits.mean(dim=(0, 2, 3), keepdim=True))
        bias = segmenter.decode_head.classifier.bias
        bias -= mean.flatten()
        bias[0] += (logits[:, 1:].amax(dim=1) - logits[:, 0]).quantile(0.6)
    return segmenter


PREPROCESSING = {
    "image_processor_type": "SegformerImageProcessor", "do_resize": True, "size": {"height": 64, "width": 64},
    "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
    "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
}  # fmt: skip


def save_checkpoint(folder: Path) -> None:
    """Write a whole model into `folder`."""
    torch.manual_seed(0)
    tokenizer, unet = build_tokenizer(), build_unet()
    tokenizer.save_pretrained(folder / "tokenizer")
    build_text_encoder(tokenizer).save_pretrained(folder / "text_encoder")
    unet.save_pretrained(folder / "unet")
    build_controlnet(unet).save_pretrained(folder / "controlnet")
    vae = build_vae()
    vae.save_pretrained(folder / "vae")
    build_segmenter(vae).save_pretrained(folder / "segmenter")
    (folder / "segmenter/preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
    DDIMScheduler(
        # Milder than Stable Diffusion's, so that the latents of an untrained UNet stay of unit size.
        beta_start=0.0001, beta_end=0.002, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1,
    ).save_pretrained(folder / "scheduler")  # fmt: skip
    calibration = Calibration(limits={"ssim": 0.9, "ssim_masked": 0.9}, population="none", quantile=0.999, count=1)
    calibration.save(folder / "calibration.json")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionControlNetPipeline"}))


def build_xl_unet() -> UNet2DConditionModel:
    """Three levels, cross-attention below the first, one and two transformers a block; text of width 32 + 48."""
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(16, 32, 32), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2), use_linear_projection=True, attention_head_dim=(2, 4, 4),
        cross_attention_dim=80, norm_num_groups=8, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8,
    )  # fmt: skip
    with torch.no_grad():
        unet.add_embedding.linear_1.weight *= 4  # untrained, it hardly heeds what is added
    return unet


def save_xl_checkpoint(folder: Path) -> None:
    """Write a whole model in SDXL's layout into `folder`, with what of the tiny one does not depend on it."""
    torch.manual_seed(1)
    tokenizer, padding_otherwise = build_tokenizer(), build_tokenizer(pad_token="!")
    unet = build_xl_unet()
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 3, norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * 3, layers_per_block=1, scaling_factor=0.13025, force_upcast=True,
    )  # fmt: skip
    scheduler = EulerDiscreteScheduler(
        beta_start=0.0001, beta_end=0.002, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
    )
    StableDiffusionXLControlNetPipeline(
        vae=vae, text_encoder=build_text_encoder(tokenizer), tokenizer=tokenizer, tokenizer_2=padding_otherwise,
        text_encoder_2=CLIPTextModelWithProjection(text_config(padding_otherwise, 48, 24)), unet=unet,
        controlnet=build_controlnet(unet), scheduler=scheduler,
    ).save_pretrained(folder)  # fmt: skip
    tiny = build_vae()
    build_segmenter(tiny).save_pretrained(folder / "segmenter")
    (folder / "segmenter/preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
