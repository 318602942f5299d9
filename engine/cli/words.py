"""Messages in words of the command line: whoever typed options is told of options, not of fields and keywords."""

import re
from typing import TYPE_CHECKING

from pydantic import ValidationError

from ..api.reading import shown

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_OPTIONS = {
    "guidance_scale": "--guidance",
    "guidance_start": "--guidance-interval",
    "guidance_stop": "--guidance-interval",
    "negative_prompt": "--negative",
    "num_images": "--num-images",
    "prompt": "the prompt",
    "rule": "--rule",
}
"""Options whose names are not those of the fields that they set."""

_SPOKEN = tuple(
    (re.compile(pattern), spoken)
    for pattern, spoken in (
        (r"Value error, ", ""),
        (r"Input should be greater than or equal to", "must be at least"),
        (r"Input should be less than or equal to", "must be at most"),
        (r"Input should be greater than", "must be more than"),
        (r"Input should be less than", "must be less than"),
        (r"Input should be", "must be"),
        (r"\bmax_pixels=\.\.\.", "--limit-pixels"),
        (r"\b(controlnet|segmenter|vae|registry|lora)=\.\.\.", r"--\1"),
        (r"\bembeddings=\.\.\.", "--embedding"),
        (r"\badapters=\.\.\.", "--adapter"),
        (r"^(draft|final)\.lora\b", "--use and --draft-use"),
        (r"\b(variant|revision|controlnet|segmenter|vae)=('[^']*')", r"--\1 \2"),
        (r"\bprediction_type=('[^']*')", r"--prediction-type \1"),
        (r", its max_steps", ""),
        (r"; give it max_prompt_chunks=\d+ or more, or it would be", "; it would be"),
        (r"^clip_skip\b", "--clip-skip"),
        (r"\bavoidance\.moved_control\b", "--preset asks for control, which"),
        (r"\bPreset\.PLAIN\b", "--preset plain"),
        (r"^gate: one that is shut delivers plain pictures, of (?=the prompt alone)", "--preset plain draws by "),
        (r"; leave out the (mask|source)$", r"; leave out --\1"),
        (r"\bbring a mask\b", "bring a --mask"),
        (r"^(draft|final) steps\b", "--steps"),
        (r"^(draft|final): (?=spacing|sigmas|eta)", "--"),
        (r"^(draft|final): ", "--steps and --solver: "),
        (r"^guidance_start (\S+) lies after guidance_stop (\S+)", r"--guidance-interval \1:\2 ends before it starts"),
        (r"^(width|height|mask)\b(?=[: ])", r"--\1"),
        (r"^negative prompt\b", "--negative"),
    )
)
"""What the engine says, and what is said in its place, in this order."""


def in_options(said: str) -> str:
    """A message of the engine's, as the command line says it."""
    for pattern, spoken in _SPOKEN:
        said = pattern.sub(spoken, said)
    return said


def findings(error: ValidationError) -> str:
    """Everything that is wrong with what was typed: the option, what would be right, and the value."""
    return "; ".join(map(_finding, error.errors(include_url=False)))


def _finding(problem: "ErrorDetails") -> str:
    said = in_options(problem["msg"])
    if not problem["loc"]:
        return said
    field = str(problem["loc"][-1])
    option = _OPTIONS.get(field, f"--{field.replace('_', '-')}")
    return f"{option} {said}, got {shown(repr(problem['input']), 80)}"
