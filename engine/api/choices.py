"""Names that a user picks from. They stand apart from what they name, so that a command line knows them at once."""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from .. import api


class Solver(StrEnum):
    """Diffusion solver, by the name of its scheduler in diffusers."""

    DDIM = "ddim"
    EULER = "euler"
    EULER_ANCESTRAL = "euler_ancestral"
    DPMPP_2M = "dpmpp_2m"
    DPMPP_2M_SDE = "dpmpp_2m_sde"
    UNIPC = "unipc"
    HEUN = "heun"
    LCM = "lcm"
    TCD = "tcd"


class Spacing(StrEnum):
    """Where a stage's timesteps lie among those of training (Lin et al., arXiv 2305.08891, table 2)."""

    LEADING = "leading"
    LINSPACE = "linspace"
    TRAILING = "trailing"


class Rhythm(StrEnum):
    """Where evaluations that compute the network in full lie among those that take its deep part over.

    even: at equal distances. early: as many, closer together at the start, where the deep part changes most: the i-th
    of N, from 0, at the fraction (i / N) ** 1.3 of the run, none in the place of another (after the non-uniform
    inference of Ma et al., DeepCache, CVPR 2024).
    """

    EVEN = "even"
    EARLY = "early"


class Sigmas(StrEnum):
    """Noise levels other than those of evenly spaced timesteps.

    Of Karras et al. (arXiv 2206.00364, equation 5), evenly spaced in their logarithm, by a beta distribution (arXiv
    2407.12173), and those of "Align Your Steps" (arXiv 2404.14507).
    """

    KARRAS = "karras"
    EXPONENTIAL = "exponential"
    BETA = "beta"
    AYS = "ays"


class Warp(StrEnum):
    """How the map that ControlNet follows comes from the draft's; `MovedControl`."""

    AUTO = "auto"
    FLIP = "flip"
    SHIFT = "shift"
    SCALE = "scale"
    ELASTIC = "elastic"
    BANK = "bank"
    NONE = "none"


class PromptSyntax(StrEnum):
    """How prompts are read: with weights and breaks, `prompts`; or every character as itself."""

    WEIGHTED = "weighted"
    PLAIN = "plain"


class Precision(StrEnum):
    """Number type of the networks, by its name in torch."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


class Backend(StrEnum):
    """What can run a network. `auto` measures what is installed and takes the fastest."""

    TORCH = "torch"
    ONNXRUNTIME = "onnxruntime"
    OPENVINO = "openvino"
    TENSORRT = "tensorrt"
    AUTO = "auto"


class Compute(StrEnum):
    """Number type that compiled networks compute in."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


class Prediction(StrEnum):
    """What a UNet predicts: the noise, the velocity or the picture; by the name that schedules of diffusers have."""

    EPSILON = "epsilon"
    V_PREDICTION = "v_prediction"
    SAMPLE = "sample"


class Role(StrEnum):
    """What a key of a server opens: pictures and jobs, everybody's records, or the page of metrics."""

    GENERATE = "generate"
    AUDIT = "audit"
    METRICS = "metrics"


class Preset(StrEnum):
    """Names of the bundles of avoidance, gate and judge, from the lightest to the heaviest."""

    PLAIN = "plain"
    OFF = "off"
    GENTLE = "gentle"
    FAST = "fast"
    DEFAULT = "default"
    STRICT = "strict"

    @property
    def settings(self) -> dict[str, Any]:
        """Fields of a request: `GenerationRequest(prompt=..., **Preset.STRICT.settings)`."""
        settings: dict[str, Any] = api.BUNDLES[self].settings
        return settings


PURPOSES: Mapping[Preset, str] = MappingProxyType(
    {
        Preset.PLAIN: "the plain model's picture in one run, held against registered works alone",
        Preset.OFF: "nothing is avoided; finals are measured and judged all the same",
        Preset.GENTLE: "avoids lightly where a draft looks recalled; elsewhere the plain picture, bit for bit",
        Preset.FAST: "as the default, in under half its time: fewer and cheaper steps, ControlNet for half of them",
        Preset.DEFAULT: "each final arranges what its prompt names anew, away from a quick draft's shape; it is judged",
        Preset.STRICT: "as the default, more strongly, and refused pictures are drawn again four times",
    }
)
"""When to take each preset."""
