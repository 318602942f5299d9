"""How an exported graph holds masked attention."""

from enum import StrEnum


class AttentionForm(StrEnum):
    """inline: as plain operators. function: as one node, with its body in the graph's list of functions.

    plugin: so too, and a TensorRT that has our plugin runs our kernel in the node's place, where it is built for the
    node's heads; any other runtime takes the body. OpenVINO reads no function bodies and needs inline.
    """

    INLINE = "inline"
    FUNCTION = "function"
    PLUGIN = "plugin"
