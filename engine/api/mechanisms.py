"""Avoidance: the mechanisms that keep a final away from its draft's shape, each on its own switch."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from .choices import Warp
from .settings import Fraction, Settings, Windowed

COMPOSED_IOU = 0.2
"""Most that the shape of a composed map overlaps the one it keeps away from, unless a request says otherwise."""


class DelayedGuidance(Windowed):
    """A: run one unguided branch until `stop` (Jain et al., CVPR 2025), at half a guided step's cost.

    With `detect`, only until the draft's guidance had fallen to its first minimum, which is where a run leaves the
    basin of what it would recite, and at most until `stop`; a draft that ran unguided, or a source, tells nothing.
    """

    stop: Annotated[float, Field(ge=0, le=0.4)] = 0.4
    branch: Literal["unconditional", "conditional"] = "conditional"
    detect: bool = False

    def settled(self, transition: float | None) -> Self:
        """Return the policy with its end decided, given the fraction of the steps at which the draft left the basin."""
        if not self.detect:
            return self
        stop = self.stop if transition is None else max(self.start, min(self.stop, transition))
        return self.model_copy(update={"stop": stop, "detect": False})


class InitialNoise(Settings):
    """B: the noise that the final starts from.

    `resample`: 0 draws it all anew, as without this mechanism; above 0 the final starts from the draft's own noise,
    with this much of its low frequencies redrawn inside the mask (those below `cutoff`, in cycles per latent pixel).
    `sharpness_steps` moves it away from where guidance grows (Han et al., NeurIPS 2025, batch-wise rule): each step
    predicts both branches twice, four rows; `radius` of its climb as a share of the noise's norm (published: 0.39), and
    `gamma` (published: 0.7).
    """

    resample: Fraction = 0.0
    cutoff: float = Field(default=0.125, gt=0, le=0.5)
    sharpness_steps: int = Field(default=2, ge=0, le=2)
    radius: Fraction = 0.25
    gamma: float = Field(default=7.0, ge=0, le=100)

    @property
    def block(self) -> int:
        """Side in latent pixels of the squares whose means hold the frequencies below `cutoff`."""
        return max(1, round(0.5 / self.cutoff))


class MaskedNoise(Windowed):
    """B: inside the mask, blend `strength` of freshly noised latent into each step's result."""

    stop: Fraction = 0.3
    strength: Fraction = 0.5


class MaskedAttention(Windowed):
    """C: reweight cross-attention inside the mask; `docs` of the terms in `twig.kernels.masked_attention`.

    `tokens` says which text tokens the rule touches: all words of the prompt, the end token and padding, or
    both; positions in the 77-token sequence; or the `spikes`: those that drew attention in the draft by more than
    `spike_threshold` standard deviations above the mean token (GUARD, arXiv 2603.00133).
    """

    stop: Fraction = 0.6
    bias: float = Field(default=-2.0, ge=-1e4, le=1e4)
    outside_bias: float = Field(default=0.0, ge=-1e4, le=1e4)
    scale: float = Field(default=1.0, ge=0, le=10)
    gain: float = Field(default=1.0, ge=0, le=10)
    renormalise: Fraction = 1.0
    damping: Fraction = 0.0
    tokens: Literal["words", "padding", "all", "spikes"] | tuple[Annotated[int, Field(ge=0, lt=2**16)], ...] = "all"
    spike_threshold: float = Field(default=2.0, ge=0, le=100)
    layers: tuple[Literal["down", "mid", "up"], ...] = ("down", "mid")

    @property
    def listens(self) -> bool:
        """Whether the draft must record what its tokens draw."""
        return self.tokens == "spikes"


class MovedControl(Windowed):
    """D: ControlNet on the draft's label map, moved so that its mask overlaps the draft's by at most `max_iou`.

    `warp`: "auto" mirrors and shifts the objects, "flip" and "shift" do one of them, "scale" and "elastic" change their
    size and shape where they stand; "bank" draws a new arrangement of what the prompt names (or else the draft shows)
    out of the model's bank of shapes, overlapping by at most 0.2 unless `max_iou` says otherwise, and is "auto" for
    what the bank has no shapes of; "none" follows the draft's shape itself, as a control experiment. `rows` says
    whether the unconditional branch is controlled too, as in diffusers' pipeline, where guidance cannot amplify the
    control, for both branches hold it. `negative` subtracts this much of a further prediction, controlled by the
    draft's own shape, and adds as much of the one it is `negative_against`: controlled by the moved shape (one row more
    a step), or not controlled at all (two rows more).
    """

    scale: float = Field(default=2.0, ge=0, le=4)
    warp: Warp = Warp.AUTO
    max_iou: Fraction = 0.4
    rows: Literal["both", "conditional"] = "conditional"
    negative: float = Field(default=0.0, ge=0, le=4)
    negative_against: Literal["moved", "none"] = "moved"

    @model_validator(mode="before")
    @classmethod
    def _apart(cls, data: Any) -> Any:
        """A new arrangement can keep further away than objects that are moved, and should."""
        composed = isinstance(data, dict) and data.get("warp") == Warp.BANK
        return {"max_iou": COMPOSED_IOU} | data if composed else data


class Repulsion(Windowed):
    """E: push the predicted picture out of balls around registered works (SPELL: Kirchhof et al., ICML 2025).

    `radius` of a ball, as the root mean square difference of two latents; `strength` of the push, 1 of which ends on
    the ball's surface (published: 1.6).
    """

    radius: float = Field(default=0.5, gt=0, le=10)
    strength: float = Field(default=1.6, ge=0, le=10)


class RestatedPrompt(Windowed):
    """F: until `stop`, the final is drawn for the same said in another order; `twig.engine.avoidance.restating`.

    Objects that the prompt lists ("a star and a house") are named the other way round, and words that only follow a
    place ("a star in a grey room untitled", but not "a star in a grey room, untitled") wait until then. What is recited
    is so for its very words, its background more than its objects. A prompt without either stays as it is, and so does
    one with marks of its syntax.
    """

    stop: Fraction = 0.8


class Avoidance(Settings):
    """How the final stage keeps away from the draft's shape; a mechanism that is None is off."""

    delayed_guidance: DelayedGuidance | None = DelayedGuidance()
    initial_noise: InitialNoise | None = None
    masked_noise: MaskedNoise | None = None
    masked_attention: MaskedAttention | None = None
    moved_control: MovedControl | None = MovedControl()
    repulsion: Repulsion | None = None
    restated_prompt: RestatedPrompt | None = Field(default=None, exclude_if=lambda value: value is None)

    @classmethod
    def off(cls) -> Self:
        """No avoidance at all: the final stage is an ordinary generation."""
        return cls(delayed_guidance=None, moved_control=None)

    @property
    def heeds_shape(self) -> bool:
        """Whether a mechanism acts by the shape that the draft, the source or a mask shows."""
        noise = self.initial_noise
        resampled = noise is not None and noise.resample > 0
        return bool(self.moved_control or self.masked_noise or self.masked_attention or resampled)

    def escalated(self, attempt: int) -> Self:
        """Return the stronger policy of retry `attempt` (0 returns this one).

        Each retry delays guidance by another tenth of the steps (at most 40 %, and no longer by what is detected),
        strengthens control by a quarter and lengthens it by a tenth, moves the initial noise a quarter further, widens
        the balls of repulsion by a quarter and restates the prompt for another tenth.
        """
        if not attempt:
            return self
        changes: dict[str, Any] = {}
        if self.delayed_guidance:
            stop = min(0.4, self.delayed_guidance.stop + 0.1 * attempt)
            changes["delayed_guidance"] = self.delayed_guidance.model_copy(update={"stop": stop, "detect": False})
        if self.moved_control:
            scale = min(4.0, self.moved_control.scale * (1 + 0.25 * attempt))
            stop = min(1.0, self.moved_control.stop + 0.1 * attempt)
            changes["moved_control"] = self.moved_control.model_copy(update={"scale": scale, "stop": stop})
        if self.initial_noise:
            gamma = min(100.0, self.initial_noise.gamma * (1 + 0.25 * attempt))
            changes["initial_noise"] = self.initial_noise.model_copy(update={"gamma": gamma})
        if self.repulsion:
            radius = min(10.0, self.repulsion.radius * (1 + 0.25 * attempt))
            changes["repulsion"] = self.repulsion.model_copy(update={"radius": radius})
        if self.restated_prompt:
            stop = min(1.0, self.restated_prompt.stop + 0.1 * attempt)
            changes["restated_prompt"] = self.restated_prompt.model_copy(update={"stop": stop})
        return self.model_copy(update=changes)

    def settled(self, transition: float | None) -> Self:
        """Return the policy with everything decided that was left to the draft; `DelayedGuidance.settled`."""
        if self.delayed_guidance is None:
            return self
        return self.model_copy(update={"delayed_guidance": self.delayed_guidance.settled(transition)})
