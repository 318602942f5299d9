"""How an exported graph holds masked attention."""

import hashlib
from enum import StrEnum
from functools import cache
from pathlib import Path

OPSET = 18
"""What torch's exporter writes natively; later opsets go through a converter."""

DOMAIN, NAME = "twig", "MaskedAttention"
"""Masked attention's node, where a graph holds it as one."""

ORIGINS = "origins.json"
"""Beside a graph: what it was exported from but for the values, and where each of its tensors comes from."""


class AttentionForm(StrEnum):
    """inline: as plain operators. function: as one node, with its body in the graph's list of functions.

    plugin: so too, and a TensorRT that has our plugin runs our kernel in the node's place, where it is built for the
    node's heads; any other runtime takes the body. OpenVINO reads no function bodies and needs inline.
    """

    INLINE = "inline"
    FUNCTION = "function"
    PLUGIN = "plugin"


@cache
def body_digest() -> str:
    """Name of masked attention as `attention` writes it now, for what is made of it."""
    return hashlib.sha256(Path(__file__).with_name("attention.py").read_bytes()).hexdigest()[:16]
