"""Which keys of a checkpoint's configurations are served: allow-lists, one for each kind of part.

A key of the list goes to the library, whose own forward honours it (and the tests hold the networks' as they are run
here against the library's). Any other key that the library knows must have the library's default, which is read from
the signature of its class; what neither knows is refused by name, for it might change the arithmetic, name another
file or reach code.
"""

import dataclasses
import inspect
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import diffusers
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    SchedulerMixin,
)
from transformers import CONFIG_MAPPING, PreTrainedModel

from ..api.errors import CheckpointError
from ..api.reading import shown

Config = Mapping[str, Any]

CODE = frozenset({
    "auto_map", "custom_pipeline", "trust_remote_code", "attn_implementation", "_attn_implementation",
    "_attn_implementation_internal", "experts_implementation", "_experts_implementation", "quantization_config",
    "compression_config", "kernel_config", "use_kernels", "transformers_weights", "base_model_name_or_path",
    "use_timm_backbone", "use_pretrained_backbone", "backbone", "backbone_kwargs", "code_revision", "revision",
    "use_auth_token", "token", "cache_dir", "subfolder", "adapter_kwargs", "peft_config",
})  # fmt: skip
"""Keys through which a file can reach code, other files or the network: refused at any depth unless empty."""

_NAMES = frozenset({"_class_name", "_diffusers_version", "_name_or_path", "_commit_hash"})
_TRAINING = frozenset({  # what diffusers' average of weights writes beside a UNet's own keys
    "decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup",
})  # fmt: skip

_DENOISING = frozenset({
    "in_channels", "flip_sin_to_cos", "freq_shift", "block_out_channels", "layers_per_block", "downsample_padding",
    "mid_block_scale_factor", "act_fn", "norm_num_groups", "norm_eps", "cross_attention_dim", "attention_head_dim",
    "transformer_layers_per_block", "use_linear_projection", "upcast_attention", "resnet_time_scale_shift",
    "addition_embed_type", "addition_time_embed_dim", "addition_embed_type_num_heads",
    "projection_class_embeddings_input_dim",
})  # fmt: skip
_UNET = _DENOISING | {
    "sample_size", "out_channels", "center_input_sample", "dropout", "reverse_transformer_layers_per_block",
    "resnet_skip_time_act", "resnet_out_scale_factor", "time_embedding_dim", "time_embedding_act_fn",
    "timestep_post_act", "conv_in_kernel", "conv_out_kernel", "time_cond_proj_dim",
}  # fmt: skip
_CONTROLNET = _DENOISING | {"conditioning_embedding_out_channels"}
_KL = frozenset({
    "latent_channels", "down_block_types", "up_block_types", "block_out_channels", "layers_per_block", "act_fn",
    "norm_num_groups", "sample_size", "scaling_factor", "force_upcast", "use_quant_conv", "use_post_quant_conv",
    "mid_block_add_attention",
})  # fmt: skip
_TINY = frozenset({
    "latent_channels", "encoder_block_out_channels", "decoder_block_out_channels", "block_out_channels", "act_fn",
    "upsample_fn", "num_encoder_blocks", "num_decoder_blocks", "latent_magnitude", "latent_shift", "force_upcast",
    "scaling_factor",
})  # fmt: skip

SERVED: Mapping[str, frozenset[str]] = {
    "UNet2DConditionModel": _UNET,
    "ControlNetModel": _CONTROLNET,
    "AutoencoderKL": _KL,
    "AutoencoderTiny": _TINY,
}
"""Keys of diffusers' networks that may have any value the library takes."""

_OWNERS = {"UNet2DConditionModel": "the UNet's ", "ControlNetModel": "the ControlNet's "}
_DOWN = frozenset({"DownBlock2D", "CrossAttnDownBlock2D"})
_UP = frozenset({"UpBlock2D", "CrossAttnUpBlock2D"})
_BLOCKS: Mapping[tuple[str, str], frozenset[str]] = {
    ("UNet2DConditionModel", "down_block_types"): _DOWN,
    ("UNet2DConditionModel", "up_block_types"): _UP,
    ("ControlNetModel", "down_block_types"): _DOWN,
}
"""Kinds of blocks that are served, where not all are: attention must be where the conditions of rows reach it."""

_ALSO: Mapping[tuple[str, str], tuple[Any, ...]] = {
    ("ControlNetModel", "controlnet_conditioning_channel_order"): ("bgr",),
    ("AutoencoderKL", "shift_factor"): (0, 0.0),
    ("AutoencoderTiny", "shift_factor"): (None,),
}
"""Values beside the default that are served, or mean the same."""

_ADDED = (None, "text_time")
"""What a UNet may read beside a text's states: nothing, or SDXL's pooled text and sizes."""

_LEVELS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
"""Of noise levels of their own, at most one of which is on."""
_SCHEDULE = frozenset({
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type",
    "timestep_spacing", "steps_offset", "set_alpha_to_one", "rescale_betas_zero_snr", "original_inference_steps",
    "timestep_scaling", *_LEVELS,
})  # fmt: skip
_SAMPLER = frozenset({
    "clip_sample", "clip_sample_range", "sample_max_value", "dynamic_thresholding_ratio", "skip_prk_steps",
    "solver_p", "predict_x0", "predictor_order", "corrector_order", "disable_corrector", "variance_type",
    "time_shift_type", "solver_order", "solver_type", "algorithm_type", "lower_order_final", "euler_at_final",
})  # fmt: skip
"""Of a solver whose nearest takes its place; clipping is off, as in Stable Diffusion's pipelines."""
_SOLVERS = (DDIMScheduler, EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, DPMSolverMultistepScheduler)

_IDLE = frozenset({
    "model_type", "architectures", "transformers_version", "dtype", "torch_dtype", "initializer_range",
    "initializer_factor", "init_std", "init_xavier_std", "id2label", "label2id", "problem_type", "tokenizer_class",
    "finetuning_task", "task_specific_params", "prefix", "chunk_size_feed_forward", "tie_word_embeddings",
    "use_cache", "gradient_checkpointing", "use_bfloat16", "tf_legacy_loss", "feature_extractor_type", "dropout",
    "bad_words_ids", "begin_suppress_tokens", "suppress_tokens", "bos_token_id", "eos_token_id", "pad_token_id",
    "sep_token_id", "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id", "diversity_penalty",
    "do_sample", "early_stopping", "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty",
    "length_penalty", "max_length", "min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams",
    "num_return_sequences", "output_scores", "remove_invalid_values", "repetition_penalty",
    "return_dict_in_generate", "temperature", "top_k", "top_p", "typical_p", "cross_attention_hidden_size",
    "image_size", "downsampling_rates", "num_layers", "hidden_size", "num_hidden_layers", "path_norm",
    "out_features", "out_indices", "stage_names", "semantic_loss_ignore_index", "palette", "background",
}) | _NAMES  # fmt: skip
"""Keys of transformers' configurations that are honoured as the library does or change nothing."""
_USUAL: Mapping[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,), "is_decoder": (False,), "is_encoder_decoder": (False,), "return_dict": (True,),
    "output_attentions": (False,), "output_hidden_states": (False,), "pruned_heads": ({},), "torchscript": (False,),
    "tie_encoder_decoder": (False,), "num_channels": (3,),
}  # fmt: skip
"""Keys of every transformers configuration that change what comes out, and the values that are served."""


def refuse(part: Path | str, key: str, value: Any, served: str = "leave it out") -> NoReturn:
    """Raise CheckpointError for a key that is not served with this value."""
    said = f"{shown(key, 80)} is {shown(repr(value), 80)}"
    raise CheckpointError(f"{shown(part)} says {said}, which is not served; {served}")


def check_module(cls: Any, part: Path | str, config: Config) -> None:
    """Check the configuration of a network of diffusers or transformers, which names its class."""
    if issubclass(cls, PreTrainedModel):
        check_transformer(part, {k: v for k, v in config.items() if k != "_class_name"}, cls.config_class.model_type)
    else:
        check_network(part, config)


def check_network(part: Path | str, config: Config) -> None:
    """Check the configuration of a UNet, a ControlNet or an autoencoder of diffusers."""
    check_code(part, config)
    name = config["_class_name"]
    owner, defaults = _OWNERS.get(name, ""), _defaults(getattr(diffusers, name))
    for key, value in config.items():
        if key in _NAMES | _TRAINING:
            continue
        _check_finite(part, key, value)
        if key == "addition_embed_type" and value not in _ADDED:
            refuse(part, owner + key, value, "it must be None, or 'text_time' as in SDXL")
        blocks = _BLOCKS.get((name, key))
        if blocks is not None:
            if not isinstance(value, list) or not blocks.issuperset(map(str, value)):
                refuse(part, owner + key, value, f"those served are {', '.join(sorted(blocks))}")
        elif key not in SERVED[name] and not _is_default(value, key, defaults, _ALSO.get((name, key), ())):
            wanted = f"it must be {shown(repr(defaults[key]), 80)}" if key in defaults else "leave it out"
            refuse(part, owner + key, value, wanted)
    if name.startswith("Autoencoder"):
        _check_autoencoder(part, config, defaults)


def _check_autoencoder(part: Path | str, config: Config, defaults: Config) -> None:
    """Its halves must halve and double as often as its widths say, for the size of latents follows from these."""
    whole = {**defaults, **config}
    names: tuple[str, ...] = ("down_block_types", "up_block_types", "block_out_channels")
    if config["_class_name"] == "AutoencoderTiny":
        names = ("encoder_block_out_channels", "decoder_block_out_channels", "num_encoder_blocks", "num_decoder_blocks")
    lengths = [len(whole[name]) if isinstance(whole[name], list | tuple) else 0 for name in names]
    if len(set(lengths)) != 1 or not lengths[0]:
        refuse(part, " and ".join(names), lengths, "they must be lists of one length")
    factor = whole["scaling_factor"]
    if isinstance(factor, bool) or not isinstance(factor, int | float) or factor <= 0:
        refuse(part, "scaling_factor", factor, "it must be a positive number")


def check_schedule(part: Path | str, config: Config) -> None:
    """Check the configuration of a scheduler: its noise schedule, and that its steps are the solver's usual ones."""
    check_code(part, config)
    named = getattr(diffusers, str(config.get("_class_name")), None)
    if not (inspect.isclass(named) and issubclass(named, SchedulerMixin)):
        refuse(part, "_class_name", config.get("_class_name"), "name a scheduler of diffusers")
    defaults: dict[str, Any] = {}
    for solver in (*_SOLVERS, named):
        defaults |= _defaults(solver)
    for key, value in config.items():
        if key in _NAMES | _SAMPLER:
            continue
        if key in _SCHEDULE:
            _check_finite(part, key, value)
            _check_schedule_value(part, key, value)
        elif not _is_default(value, key, defaults):
            refuse(part, key, value, f"it must be {defaults[key]!r}" if key in defaults else "leave it out")
    if len(levels := [key for key in _LEVELS if config.get(key)]) > 1:
        refuse(part, " and ".join(levels), True, "one of them may be")


def _check_schedule_value(part: Path | str, key: str, value: Any) -> None:
    """Raise CheckpointError for a value that the library would fail at later, or misread."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    whole = number and isinstance(value, int)
    fits = {
        "num_train_timesteps": (whole and 0 < value <= 10_000, "a whole number from 1 to 10000"),
        "steps_offset": (whole and 0 <= value < 10_000, "a whole number from 0 on"),
        "beta_start": (number and 0 < value < 1, "between 0 and 1"),
        "beta_end": (number and 0 < value < 1, "between 0 and 1"),
        "trained_betas": (
            value is None or (isinstance(value, list) and all(_is_beta(beta) for beta in value)),
            "a list of numbers between 0 and 1",
        ),
        "prediction_type": (
            value in ("epsilon", "v_prediction", "sample"),
            "one of epsilon, v_prediction and sample",
        ),
        "timestep_spacing": (value in ("leading", "linspace", "trailing"), "one of leading, linspace and trailing"),
        "set_alpha_to_one": (isinstance(value, bool), "true or false"),
        "rescale_betas_zero_snr": (isinstance(value, bool), "true or false"),
        "original_inference_steps": (whole and 0 < value <= 10_000, "a whole number from 1 to 10000"),
        "timestep_scaling": (number and value > 0, "a positive number"),
        **dict.fromkeys(_LEVELS, (value is None or isinstance(value, bool), "true or false")),
    }
    served, wanted = fits.get(key, (isinstance(value, str), "the name of a schedule"))
    if not served:
        refuse(part, key, value, f"it must be {wanted}")


def _is_beta(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= 1


def check_transformer(part: Path | str, config: Config, model_type: str) -> None:
    """Check the configuration of a text encoder or a segmenter, which is to be of `model_type`."""
    check_code(part, config)
    if config.get("model_type", model_type) != model_type:
        refuse(part, "model_type", config["model_type"], f"it must be {model_type!r}")
    if "backbone_config" in config and config["backbone_config"] is not None:
        backbone = config["backbone_config"]
        kind = backbone.get("model_type") if isinstance(backbone, dict) else None
        if not isinstance(kind, str) or kind not in CONFIG_MAPPING or kind == "timm_backbone":
            refuse(part, "backbone_config.model_type", kind, "name a backbone of transformers")
        check_transformer(part, backbone, str(kind))
    known = CONFIG_MAPPING[model_type]
    fields = {field.name for field in dataclasses.fields(known)} | set(known.attribute_map)
    for key, value in config.items():
        if key != "backbone_config":
            _check_finite(part, key, value)
        if key in _USUAL:
            if value is not None and value not in _USUAL[key]:
                refuse(part, key, value, f"it must be {_USUAL[key][0]!r}")
        elif key not in fields | _IDLE and value is not None:
            refuse(part, key, value)


def check_tokenizer(part: Path | str, config: Config) -> None:
    """Check the configuration of a tokenizer, which is CLIP's and pads at the end."""
    check_code(part, config)
    for key, value in config.items():
        _check_finite(part, key, value)
    for key, served in (
        ("tokenizer_class", ("CLIPTokenizer", "CLIPTokenizerFast")),
        ("padding_side", ("right",)),
        ("truncation_side", ("right",)),
        ("fast_tokenizer_files", ()),
        ("tokenizer_file", ()),
        ("vocab_file", ()),
        ("merges_file", ()),
    ):
        if config.get(key) is not None and config[key] not in served:
            refuse(part, key, config[key], f"it must be {served[0]!r}" if served else "leave it out")
    longest = config.get("model_max_length", 77)
    if isinstance(longest, bool) or not isinstance(longest, int | float) or not longest >= 3:
        refuse(part, "model_max_length", longest, "it must be a number of tokens from 3 on")


def check_code(part: Path | str, value: Any) -> None:
    """Refuse a key of `CODE` wherever it stands in a configuration."""
    for key, inner in _pairs(value):
        if key in CODE and inner not in (None, False, {}, []):
            refuse(part, key, inner, "it can reach code or files beyond this folder; leave it out")


def _pairs(value: Any) -> Iterable[tuple[str, Any]]:
    """Every key with its value, at any depth; the reader bounds the depth."""
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    if isinstance(value, Mapping):
        yield from value.items()
    for each in inner:
        yield from _pairs(each)


def _check_finite(part: Path | str, key: str, value: Any) -> None:
    numbers = value if isinstance(value, list) else [value]
    if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
        refuse(part, key, value, "numbers must be finite")


def _defaults(cls: Any) -> dict[str, Any]:
    parameters = inspect.signature(cls.__init__).parameters.items()
    return {name: each.default for name, each in parameters if name != "self"}


def _is_default(value: Any, key: str, defaults: Config, also: Iterable[Any] = ()) -> bool:
    """Whether a key has a value that its class gives it, or says nothing; a switch is no number here."""
    wanted = [defaults[key], *also] if key in defaults else [None]
    found = tuple(value) if isinstance(value, list) else value
    return any(
        found == (tuple(one) if isinstance(one, list) else one) and isinstance(found, bool) == isinstance(one, bool)
        for one in wanted
    )
