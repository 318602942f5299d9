"""Does a final show what was asked for? Objects counted by class, and their colours where the prompt names them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import scipy
import skimage

from ..avoidance.objects import Found
from ..avoidance.words import Named

_SRGB = {
    "black": (20, 20, 20), "white": (245, 245, 245), "grey": (128, 128, 128), "red": (210, 35, 40),
    "orange": (245, 138, 30), "yellow": (248, 218, 55), "green": (55, 160, 70), "blue": (40, 90, 215),
    "purple": (138, 60, 180), "pink": (248, 150, 190), "brown": (125, 75, 42),
}  # fmt: skip
"""A middling example of each colour that prompts are read for."""

_NAMES = tuple(_SRGB)


@cache
def _lab() -> np.ndarray:
    """The named colours in CIELAB."""
    found: np.ndarray = skimage.color.rgb2lab(np.array(list(_SRGB.values()), np.float64)[None] / 255)[0]
    return found


def kept(seen: Counter[int], asked: Counter[int]) -> float:
    """Jaccard index of two collections of objects, by label, each as often as it is there; 1 where both are empty."""
    return (seen & asked).total() / (seen | asked).total() if seen or asked else 1.0


def difference(seen: Counter[int], asked: Counter[int], names: Sequence[str]) -> str:
    """In words, what of `asked` is not `seen` and the reverse: "1 star of 2, 1 moon too many"."""
    return ", ".join(_told(seen, asked, names))


def _told(seen: Counter[int], asked: Counter[int], names: Sequence[str]) -> Iterator[str]:
    for label in sorted(seen.keys() | asked.keys()):
        name, found, wanted = names[label], seen[label], asked[label]
        if not found:
            yield f"no {name}"
        elif found < wanted:
            yield f"{found} {name} of {wanted}"
        elif found > wanted:
            yield f"{found - wanted} {name} too many"


def colours_kept(
    picture: np.ndarray, objects: Sequence[Found], named: Sequence[Named], names: Sequence[str]
) -> tuple[float, str] | None:
    """Share of the object with the least of the colour it was named with that has this colour; and that in words.

    picture (H, W, 3) uint8; objects: what it shows; named: what the prompt names. A pixel has the colour whose example
    is nearest in CIELAB. Of several objects of a class each takes the name that it shows most of. None where no object
    is there whose colour is named.
    """
    found = [one for label in {one.label for one in named} for one in _shares(picture, objects, named, label)]
    if not found:
        return None
    least, label, wanted, most = min(found, key=lambda one: one[0])
    return least, f"{least:.0%} of the {names[label]} is {wanted}, most of it {most}"


def _shares(
    picture: np.ndarray, objects: Sequence[Found], named: Sequence[Named], label: int
) -> Iterator[tuple[float, int, str, str]]:
    """Share, label, colour named and commonest colour of each object of a class whose colours are all named."""
    colours = [one.colour for one in named if one.label == label for _ in range(one.count)]
    shown = [_colours_of(picture, one) for one in objects if one.label == label]
    if not shown or not all(colours):
        return
    wanted = [colour for colour in colours if colour is not None]
    table = np.array([[shares[_NAMES.index(colour)] for colour in wanted] for shares in shown])
    for row, column in zip(*scipy.optimize.linear_sum_assignment(table, maximize=True), strict=True):
        yield float(table[row, column]), label, wanted[column], _NAMES[int(shown[row].argmax())]


def _colours_of(picture: np.ndarray, one: Found) -> np.ndarray:
    """Share of an object, its outline left out, that has each colour of `_NAMES`."""
    core = scipy.ndimage.binary_erosion(one.mask, np.ones((3, 3)))
    pixels = skimage.color.rgb2lab(picture[one.rows, one.columns][core if core.any() else one.mask][None] / 255.0)[0]
    nearest = np.linalg.norm(pixels[:, None] - _lab(), axis=-1).argmin(1)
    return np.bincount(nearest, minlength=len(_NAMES)) / len(nearest)
