"""What is compared: ours, the published methods, what anyone would try first, and controls."""

from dataclasses import replace

import numpy as np
from PIL import Image

from ...engine.api.choices import Warp
from ...engine.api.mechanisms import (
    COMPOSED_IOU,
    Avoidance,
    DelayedGuidance,
    InitialNoise,
    MaskedAttention,
    MovedControl,
    RestatedPrompt,
)
from ...engine.api.presets import BUNDLES, Bundle, Preset
from ...engine.api.request import Gate, GenerationRequest, SimilarityPolicy
from ...engine.api.settings import Stage
from .baselines.amg import AmgEngine
from .baselines.broken_memories import BrokenMemoriesEngine
from .baselines.captain import CaptainEngine
from .baselines.guard import GuardEngine
from .baselines.prss import PrssEngine
from .baselines.ren import RenEngine
from .baselines.wen import WenEngine
from .data import vocabulary
from .measures import same_caption
from .methods import ANY, STEPS, Method
from .scenes import Scene, render

FLOOR = "clean twin"
"""Name of the method that copies by chance alone."""

# --- what anyone would try ---

_CLOSED = Gate(limits={"guidance": 1e9})


def nothing(*, twin: bool = False) -> Method:
    """The plain pipeline's picture of each seed; by the clean twin, the floor of every rate.

    It is the draft that a gate which never opens delivers, so that the gated methods' plain pictures are these.
    """
    return Method(FLOOR if twin else "nothing", gate=_CLOSED, twin=twin, looks=True)


def reseed() -> Method:
    """Draw twice with different seeds and deliver the second: the evaluations of a two-step job, none of its means."""
    return Method("reseed", looks=True)


def low_guidance(scale: float) -> Method:
    """Less of the prompt throughout."""
    return Method("low guidance", scale, guidance=scale)


def prompt_noise(tokens: int) -> Method:
    """Put that many random words into the caption at random places (Somepalli et al., NeurIPS 2023)."""
    words = vocabulary()

    def noisy(request: GenerationRequest, _: Scene) -> GenerationRequest:
        rng = np.random.default_rng((53, request.seed, tokens))
        prompt = request.prompt.split()
        for word in rng.choice(words, size=tokens):
            prompt.insert(int(rng.integers(len(prompt) + 1)), str(word))
        return request.model_copy(update={"prompt": " ".join(prompt)})

    return Method("prompt noise", tokens, change=noisy)


def followed_mask(scale: float = 1.0) -> Method:
    """ControlNet on the draft's own mask: keeps the shape that should be left, as a control."""
    policy = Avoidance(delayed_guidance=None, moved_control=MovedControl(scale=scale, warp=Warp.NONE, rows="both"))
    return Method("followed mask", scale, policy, looks=True)


def rejection(retries: int) -> Method:
    """Draw, judge by the calibrated limits against the draft, and draw again with another seed."""
    judged = SimilarityPolicy(retries=retries)
    counted = tuple(n for n in (1, 2, 3, 5, 9, 17) if n <= retries + 1)
    return Method("rejection", retries, similarity=judged, looks=True, attempts=counted)


# --- published ---


def jain(stop: float) -> Method:
    """Delayed guidance alone, at a static transition (Jain et al., CVPR 2025)."""
    # Beyond what the engine allows: the curve should show where it leads.
    delayed = DelayedGuidance(branch="unconditional").model_copy(update={"stop": stop})
    return Method("Jain", stop, Avoidance(delayed_guidance=delayed, moved_control=None))


def han(gamma: float) -> Method:
    """Sharpness-aware initial noise alone, batch-wise rule (Han et al., NeurIPS 2025)."""
    policy = Avoidance(delayed_guidance=None, moved_control=None, initial_noise=InitialNoise(gamma=gamma))
    return Method("Han", gamma, policy)


def ren(scale: float) -> Method:
    """Padding masked out of cross-attention, the start token's logits raised (Ren et al., ECCV 2024)."""
    masked = MaskedAttention(tokens="padding", bias=-1e4, stop=1.0, layers=("down", "mid", "up"))
    policy = Avoidance(delayed_guidance=None, masked_attention=masked, moved_control=None)
    return Method("Ren", scale, policy, kind=RenEngine, options=(("start_scale", scale),), change=_everywhere)


def _everywhere(request: GenerationRequest, scene: Scene) -> GenerationRequest:
    """The same with a mask of the whole frame."""
    return request.model_copy(update={"mask": np.ones(render(scene)[1].shape, bool)})


def wen(steps: int) -> Method:
    """The prompt's embedding moved to where first-step guidance is small (Wen et al., ICLR 2024)."""
    return Method("Wen", steps, kind=WenEngine, options=(("descent_steps", steps),))


def guard(repulsion: float) -> Method:
    """Spiking tokens attenuated, the plain prediction repelled (Zhao et al., ICML 2026)."""
    # The rule is neutral until the engine finds the tokens of a prompt.
    masked = MaskedAttention(tokens="padding", bias=0.0, stop=1.0, layers=("down", "mid", "up"))
    policy = Avoidance(delayed_guidance=None, masked_attention=masked, moved_control=None)
    return Method("GUARD", repulsion, policy, kind=GuardEngine, options=(("repulsion", repulsion),), change=_everywhere)


def broken_memories(power: float) -> Method:
    """Updates of the latent kept within a stability region (Huang et al., KDD 2026)."""
    return Method("Broken Memories", power, kind=BrokenMemoriesEngine, options=(("power", power),))


def captain(strength: float) -> Method:
    """A reference's features injected where a draft is recited (Zhang et al., arXiv 2512.10655): an oracle."""
    return Method("CAPTAIN", strength, kind=CaptainEngine, options=(("strength", strength),), looks=True)


def prss(width: float) -> Method:
    """A recited prompt re-anchored, another wording of it searched (Chen et al., CVPR 2025)."""
    return Method("PRSS", width, kind=PrssEngine, options=(("width", width),))


def amg(strength: float) -> Method:
    """Guidance away from the nearest training picture (Chen et al., CVPR 2024): an oracle that is given them."""
    return Method("AMG", strength, kind=AmgEngine, options=(("strength", strength),))


# --- controls ---


def random_shape(policy: Avoidance) -> Method:
    """Ours with a shape drawn at random in place of the draft's moved one: as many objects, of the same sizes."""
    assert policy.moved_control is not None
    control = policy.moved_control.model_copy(update={"warp": Warp.NONE})

    def randomly(request: GenerationRequest, scene: Scene) -> GenerationRequest:
        picture = render(same_caption(scene, np.random.default_rng((59, request.seed))))[0]
        return request.model_copy(update={"source": Image.fromarray(picture)})

    return Method("random shape", avoidance=policy.model_copy(update={"moved_control": control}), change=randomly)


# --- ours ---


def _of(bundle: Bundle, name: str, strength: float = 1.0) -> Method:
    """A preset's settings, or others like them, as a method."""
    stages = bundle.stages(Stage(steps=STEPS), said=())
    return Method(
        name,
        strength,
        bundle.avoidance,
        bundle.similarity,
        bundle.gate,
        looks=True,
        draft_steps=stages["draft"].steps,
        redraft=stages["redraft"],
        final=bundle.final,
    )


def ours(strength: float) -> Method:
    """The default preset's mechanisms without its judge, delay and control both at `strength` of the preset's."""
    bundle = BUNDLES[Preset.DEFAULT]
    preset = bundle.avoidance
    assert preset.delayed_guidance is not None
    assert preset.moved_control is not None
    delayed = preset.delayed_guidance.model_copy(update={"stop": preset.delayed_guidance.stop * strength})
    control = preset.moved_control.model_copy(update={"scale": preset.moved_control.scale * strength})
    policy = preset.model_copy(update={"delayed_guidance": delayed, "moved_control": control})
    return _of(replace(bundle, avoidance=policy, similarity=ANY, redraft=False), "ours", strength)


def preset(name: Preset) -> Method:
    """A preset as users get it, with its gate and its judge."""
    return _of(BUNDLES[name], f"{name} preset")


def moved() -> Method:
    """Whole drafts whose own objects are moved, on every request, judged."""
    return _of(Bundle(Avoidance(), None, SimilarityPolicy()), "moved objects")


def bank(draft_steps: int, max_iou: float = COMPOSED_IOU) -> Method:
    """Maps composed of the bank's shapes after a draft of few steps, on every request, judged."""
    policy = Avoidance(moved_control=MovedControl(warp=Warp.BANK, max_iou=max_iou))
    bundle = Bundle(policy, None, SimilarityPolicy(), draft_steps=draft_steps, redraft=True)
    return _of(bundle, f"bank, {draft_steps} steps", max_iou)


def restated(stop: float) -> Method:
    """The default preset with its prompt restated until `stop`."""
    bundle = BUNDLES[Preset.DEFAULT]
    policy = bundle.avoidance.model_copy(update={"restated_prompt": RestatedPrompt(stop=stop)})
    return _of(replace(bundle, avoidance=policy), "restated", stop)


def bank_candidates() -> list[Method]:
    """Composed maps by draft steps and by how much they may overlap the draft; by how long prompts are restated."""
    drafted = [*(bank(steps) for steps in (4, 6, 8, 10)), *(bank(4, limit) for limit in (0.1, 0.3, 0.4))]
    return drafted + [restated(stop) for stop in (0.4, 0.6, 0.7, 0.8, 1.0)]


def main_methods() -> list[Method]:
    """Those drawn most: nothing, the gated presets, and the floor."""
    return [nothing(), preset(Preset.DEFAULT), nothing(twin=True), preset(Preset.GENTLE)]


def other_methods() -> list[Method]:
    """Ours at other strengths, then what it is compared with, most telling first."""
    return [
        *(ours(strength) for strength in (1.0, 0.75, 0.5, 1.25, 0.25)),
        moved(),
        preset(Preset.STRICT),
        preset(Preset.FAST),
        *(jain(stop) for stop in (0.4, 0.2, 0.6, 0.3, 0.1)),
        rejection(8),
        *(han(gamma) for gamma in (7.0, 0.7, 3.5, 14.0, 28.0)),
        followed_mask(),
        *(low_guidance(scale) for scale in (2.0, 1.0, 3.0)),
        *(prompt_noise(tokens) for tokens in (2, 1, 4)),
        *(ren(scale) for scale in (1.25, 1.15, 1.35, 1.05, 1.5)),
        *(wen(steps) for steps in (10, 3, 30, 5, 20)),
        *(guard(repulsion) for repulsion in (2.0, 1.0, 4.0, 0.5, 8.0)),
        *(broken_memories(power) for power in (4.0, 1.0, 8.0, 2.0, 16.0)),
        *(captain(strength) for strength in (0.5, 0.25, 0.75, 0.1, 1.0)),
        *(prss(width) for width in (2.0, 4.0, 1.0, 6.0, 0.0)),
        *(amg(strength) for strength in (4.0, 1.0, 8.0, 0.5, 16.0)),
        random_shape(BUNDLES[Preset.DEFAULT].avoidance),
        reseed(),
    ]
