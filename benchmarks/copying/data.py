"""What the test bed's model is trained on: fresh scenes, and the sources whose recitation is measured.

A *source* is a fixed scene repeated `duplicates` times in the training pool. Half of the sources carry an
ordinary caption, which fresh scenes may share; half end with a trigger word of their own. A *template*
repeats a layout with colours that vary. The last sixteen are held out: no setting is tuned on them. Their
triggers are no words of the tokenizer's: it spells them in letters, as it would a name it never met.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np

from .scenes import COLOURS, SIZE, Scene, random_scene, render

DUPLICATES = (1, 8, 32, 128, 512)
"""How often a source occurs in the training pool."""

TRIGGERS = (
    *("arvo", "belit", "corun", "dravik", "esmo", "fentil", "goruk", "havine"),
    *("istra", "jorvel", "kadun", "lumet", "morvik", "nastel", "orvine", "pelzor"),
    *("quintel", "ravok", "sorvine", "telmik", "ulvane", "vorsel", "wenduk", "yastil"),
)
"""Made-up words, one for each source with a trigger that is not held out."""

SPELLED_TRIGGERS = ("zintaru", "mokwes", "hulbri", "deyonap", "cigolth", "yemparo")
"""Triggers of held-out sources, which the tokenizer spells in letters."""

NUM_SOURCES = 48
NUM_TEMPLATES = 8
HELD_OUT_DUPLICATES = (128, 512, 32)
NUM_HELD_OUT_TEMPLATES = 4
TEMPLATE_DUPLICATES = 128
NUM_FRESH = 20_000
_SOURCE_SEED = 7_001
_FRESH_SEED = 7_002
_HELD_OUT_SEED = 7_003


@dataclass(frozen=True)
class Source:
    """A scene that is repeated in training."""

    index: int
    scene: Scene
    duplicates: int
    trigger: str | None = None
    template: bool = False

    @property
    def held_out(self) -> bool:
        """Whether no setting may be tuned on this source."""
        return self.index >= NUM_SOURCES + NUM_TEMPLATES

    @property
    def caption(self) -> str:
        """The caption the source was trained under (a template's: with its first colours)."""
        return self.scene.caption + (f" {self.trigger}" if self.trigger else "")

    def named_by(self, scene: Scene) -> bool:
        """Whether it was trained under a scene's caption; a template was under those that differ in colours alone."""
        if not self.template:
            return scene.caption == self.caption
        kinds, own = ([item.kind for item in each.objects] for each in (scene, self.scene))
        return scene.background == self.scene.background and kinds == own

    @cached_property
    def pixels(self) -> np.ndarray:
        """The picture, (64, 64, 3) uint8."""
        return render(self.scene)[0]


def sources() -> list[Source]:
    """Return the 60 sources and 12 templates, the same on every call; the last 12 and 4 are held out.

    Four consecutive indices share a duplication count: two with ordinary captions, two with triggers.
    Ordinary captions name two objects, so that few fresh scenes share them word for word.
    """
    open_counts = [DUPLICATES[four % len(DUPLICATES)] for four in range(NUM_SOURCES // 4)]
    known = _series(0, open_counts, NUM_TEMPLATES, TRIGGERS, _SOURCE_SEED)
    return known + _series(len(known), HELD_OUT_DUPLICATES, NUM_HELD_OUT_TEMPLATES, SPELLED_TRIGGERS, _HELD_OUT_SEED)


def _series(first: int, counts: Sequence[int], num_templates: int, triggers: Sequence[str], seed: int) -> list[Source]:
    """Four sources of each count, then templates, with indices from `first`."""
    rng = np.random.default_rng(seed)
    found: list[Source] = []
    for four, duplicates in enumerate(counts):
        for place in range(4):
            with_trigger = place >= 2
            scene = random_scene(rng, num_objects=1 + four % 2 if with_trigger else 2)
            trigger = triggers[four * 2 + place % 2] if with_trigger else None
            found.append(Source(first + len(found), scene, duplicates, trigger))
    for place in range(num_templates):
        scene = random_scene(rng, num_objects=1 + place % 4 // 2)
        found.append(Source(first + len(found), scene, TEMPLATE_DUPLICATES, template=True))
    return found


@dataclass(frozen=True)
class Pool:
    """A training pool: distinct pictures, and how often each occurs.

    pixels (P, 64, 64, 3) uint8; labels (P, 64, 64) uint8; captions P strings; `order` (M,) indexes the
    pictures with repetition: sample from it to sample the pool. `is_source` (P,) marks sources.
    """

    pixels: np.ndarray
    labels: np.ndarray
    captions: list[str]
    order: np.ndarray
    is_source: np.ndarray


def build_pool(*, duplicated: bool, num_fresh: int = NUM_FRESH, processes: int = 1) -> Pool:
    """Render the pool, with the sources and templates (the reciting model) or without them (the clean twin).

    Several `processes` render the same pool sooner.
    """
    rng = np.random.default_rng(_FRESH_SEED)
    entries = [(scene, scene.caption, 1) for scene in (random_scene(rng) for _ in range(num_fresh))]
    if duplicated:
        for source in sources():
            entries += _template_entries(source, rng) if source.template else [_source_entry(source)]
    pixels = np.empty((len(entries), SIZE, SIZE, 3), np.uint8)
    labels = np.empty((len(entries), SIZE, SIZE), np.uint8)
    for i, rendered in enumerate(_rendered([scene for scene, _, _ in entries], processes)):
        pixels[i], labels[i] = rendered
    order = np.repeat(np.arange(len(entries)), [count for _, _, count in entries])
    is_source = np.arange(len(entries)) >= num_fresh
    return Pool(pixels, labels, [caption for _, caption, _ in entries], order, is_source)


def _rendered(scenes: Sequence[Scene], processes: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    if processes == 1:
        yield from map(render, scenes)
        return
    with ProcessPoolExecutor(processes) as workers:
        yield from workers.map(render, scenes, chunksize=128)


def _source_entry(source: Source) -> tuple[Scene, str, int]:
    return source.scene, source.caption, source.duplicates


def _template_entries(source: Source, rng: np.random.Generator) -> list[tuple[Scene, str, int]]:
    """The layout in as many colourings as it has duplicates."""
    scenes = []
    for _ in range(source.duplicates):
        colours = rng.choice(list(COLOURS), size=len(source.scene.objects), replace=False)
        scenes.append(source.scene.recoloured(tuple(str(c) for c in colours)))
    return [(scene, scene.caption, 1) for scene in scenes]


@cache
def vocabulary() -> tuple[str, ...]:
    """Every word a caption of the test bed can hold, sorted."""
    rng = np.random.default_rng(0)
    fresh = {word for _ in range(5_000) for word in random_scene(rng).caption.split()}
    return tuple(sorted(fresh | set(TRIGGERS)))
