"""Whose factors a LoRA's tensors are: the keys of diffusers, PEFT and kohya's trainers, told by a model's own modules.

Nothing is guessed from a key alone: a module is found by what the model's modules are called, in diffusers' words or in
those of the original code, with dots or with underscores between.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import nn

Layers = Mapping[str, Mapping[str, nn.Module]]
"""Linear layers and convolutions that an adapter may change, by the name of their part and their own in it."""

KOHYA_PARTS = {
    "lora_unet_": "unet", "lora_te_": "text_encoder", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2",
}  # fmt: skip

UNSERVED = {
    "DoRA": re.compile(r"[._](dora_scale|lora_magnitude_vector(\.\w+)?(\.weight)?)$"),
    "LoHa": re.compile(r"\.hada_\w+$"),
    "LoKr": re.compile(r"\.lokr_\w+$"),
    "GLoRA": re.compile(r"\.[abc][12]\.weight$"),
    "OFT": re.compile(r"\.(oft_\w+|boft_\w+)(\.\w+)?(\.weight)?$"),
    "IA3": re.compile(r"\.(on_input|ia3_\w+(\.\w+)?)$"),
    "a whole difference of weights": re.compile(r"\.(diff|diff_b|w_norm|b_norm)$"),
    "LoRA of biases": re.compile(r"\.lora_[AB](\.\w+)?\.bias$|\.lora_(up|down)\.bias$"),
    "LoRA of embeddings": re.compile(r"\.lora_embedding_[AB]"),
}
"""Kinds of adapters that are not served, by how their keys end."""

_ENDS = (
    re.compile(r"[._](?P<to>to_[qkv]|to_out)_lora\.(?P<kind>down|up)\.weight$"),
    re.compile(r"\.lora_(?P<kind>A|B|down|up|mid)(\.\w+)?\.weight$"),
    re.compile(r"\.(lora|lora_linear_layer)\.(?P<kind>down|up)\.weight$"),
    re.compile(r"\.(?P<kind>alpha)$"),
)
_KINDS = {"A": "down", "B": "up"}
_OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_PREFIXES = ("base_model.model.", "unet.", "text_encoder.", "text_encoder_2.")


class Place(NamedTuple):
    """Which tensor of which layer a key names: part, layer, and `down`, `up`, `mid` or `alpha`."""

    part: str
    layer: str
    kind: str


class Places:
    """Finds the places of keys in one model. layers_per_block: of its UNet, by which the original code counts."""

    def __init__(self, layers: Layers, layers_per_block: int) -> None:
        self._dotted = {part: {_short(name): name for name in names} for part, names in layers.items()}
        self._flat = {
            part: {written.replace(".", "_"): name for name in names for written in _written(name, layers_per_block)}
            for part, names in layers.items()
        }

    def of(self, key: str) -> Place | None:
        """The place of a key; None for one that names none of the model's layers."""
        match = next(filter(None, (end.search(key) for end in _ENDS)), None)
        if match is None:
            return None
        module, kind = key[: match.start()], _KINDS.get(match["kind"], match["kind"])
        prefix = next((each for each in KOHYA_PARTS if module.startswith(each)), None)
        if prefix is not None:
            part = KOHYA_PARTS[prefix]
            found = self._flat.get(part, {}).get(_short(module.removeprefix(prefix), "_"))
            return None if found is None else Place(part, found, kind)
        return self._spelt(module, match.groupdict().get("to"), kind)

    def _spelt(self, module: str, to: str | None, kind: str) -> Place | None:
        """A place by a module's name with dots; `to`: the projection where diffusers once named it with the kind."""
        part, name = _parted(module)
        name = name.removesuffix(".processor")
        if to is not None and ".self_attn" in name:
            name = f"{name}.{_OLD_TEXT[to]}"
        elif to is not None:
            name = f"{name}.{to}" + (".0" if to == "to_out" else "")
        parts = [part] if part is not None else list(self._dotted)
        for each in parts:
            if (found := self._dotted.get(each, {}).get(_short(name))) is not None:
                return Place(each, found, kind)
        return None


def _parted(module: str) -> tuple[str | None, str]:
    """Part that a module's name begins with, if any, and the rest."""
    part = None
    while prefix := next((each for each in _PREFIXES if module.startswith(each)), None):
        module = module.removeprefix(prefix)
        part = part or (None if prefix == _PREFIXES[0] else prefix[:-1])
    return part, module


def _short(name: str, dot: str = ".") -> str:
    """A text encoder's name without the model around its layers, which some versions of transformers have."""
    return name.removeprefix(f"text_model{dot}")


def _written(name: str, layers_per_block: int) -> list[str]:
    """How files write a module's name: as it is, and in the words of the original code."""
    return [_short(name), *_originals(name, layers_per_block)]


_OUTSIDE = {
    "conv_in": "input_blocks.0.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
_IN_RESNETS = {
    "conv1": "in_layers.2", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
_BLOCK = re.compile(
    r"(?:(?P<way>down|up)_blocks\.(?P<block>\d+)|mid_block)\."
    r"(?P<what>resnets|attentions|downsamplers|upsamplers)\.(?P<number>\d+)\.(?P<rest>.+)"
)


def _originals(name: str, layers_per_block: int) -> list[str]:
    """Names of a UNet's module in the original code (Rombach et al., CVPR 2022), whose blocks are counted through."""
    match = _BLOCK.fullmatch(name)
    if match is None:
        return [_OUTSIDE[name]] if name in _OUTSIDE else []
    what, number, rest = match["what"], int(match["number"]), match["rest"]
    if what == "resnets":
        rest = _IN_RESNETS.get(rest, rest)
    if match["way"] is None:
        return [f"middle_block.{2 * number if what == 'resnets' else 1}.{rest}"]
    block, within = int(match["block"]), "0" if what == "resnets" else "1"
    if match["way"] == "down":
        first = 1 + block * (layers_per_block + 1)
        if what == "downsamplers":
            return [f"input_blocks.{first + layers_per_block}.0.op"]
        return [f"input_blocks.{first + number}.{within}.{rest}"]
    first = block * (layers_per_block + 1)
    if what == "upsamplers":
        # It comes after the attention of its block, where that has one.
        return [f"output_blocks.{first + layers_per_block}.{place}.{rest}" for place in (1, 2)]
    return [f"output_blocks.{first + number}.{within}.{rest}"]
