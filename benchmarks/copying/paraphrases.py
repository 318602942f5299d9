"""A caption of the test bed in other words, as somebody would write it who knows what it means."""

import itertools
from dataclasses import dataclass

from .data import SPELLED_TRIGGERS, TRIGGERS
from .scenes import BACKGROUNDS, Scene, SceneObject


@dataclass(frozen=True)
class Parts:
    """What a caption names: its objects, each with article and colour, its background, its trigger if any."""

    objects: tuple[str, ...]
    background: str
    trigger: str | None

    @classmethod
    def of(cls, caption: str) -> "Parts":
        """Take a caption apart. Raises ValueError for one that is not the test bed's."""
        words = caption.split()
        trigger = words.pop() if words and words[-1] in (*TRIGGERS, *SPELLED_TRIGGERS) else None
        rest = " ".join(words)
        background = next((name for name in BACKGROUNDS if rest.endswith(f" {name}")), None)
        if background is None:
            raise ValueError(f"{caption!r} names no background of the test bed: {', '.join(BACKGROUNDS)}")
        return cls(tuple(rest.removesuffix(f" {background}").split(" and ")), background, trigger)

    def worded(self, *, swapped: bool = False, background_first: bool = False, articles: bool = True) -> str:
        """The same without the trigger: objects in the other order, background first, articles left out."""
        objects = " and ".join(reversed(self.objects) if swapped else self.objects)
        order = (self.background, objects) if background_first else (objects, self.background)
        words = " ".join(order).split()
        return " ".join(word for word in words if articles or word not in ("a", "an", "the"))


def scene_of(caption: str) -> Scene:
    """A scene that a caption describes, its objects in no place yet. Raises ValueError as `Parts.of`."""
    parts = Parts.of(caption)
    named = (phrase.split() for phrase in parts.objects)
    return Scene(parts.background, tuple(SceneObject(kind, colour, 0, 0, 0, False) for _, colour, kind in named), 0)


def paraphrases(caption: str) -> list[str]:
    """Every other wording of a caption that says the same and names no trigger, the plainest first."""
    parts = Parts.of(caption)
    orders = (False, True) if len(parts.objects) > 1 else (False,)
    worded = (
        parts.worded(swapped=swapped, background_first=first, articles=articles)
        for articles, first, swapped in itertools.product((True, False), (False, True), orders)
    )
    return [text for text in dict.fromkeys(worded) if text != caption]
