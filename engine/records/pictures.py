"""Pictures for people: PNG files that say how they were made, and contact sheets."""

import io
from collections.abc import Sequence
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image, ImageChops, PngImagePlugin

from ..._version import __version__
from ..api.result import GateDecision, GenerationResult, Score, Verdict
from .drawing import CELL, COLUMNS, FONT, GAP, INK, LINE, canvas, heat, mask_picture, row_of_cells, stacked
from .manifest import DIGITAL_SOURCE_TYPE

_VERDICTS = {Verdict.ACCEPTED: "#1b7837", Verdict.REVIEW: "#b35806", Verdict.REFUSED: "#b2182b"}

_XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 xmlns:xmp="http://ns.adobe.com/xap/1.0/">
<Iptc4xmpExt:DigitalSourceType>{source_type}</Iptc4xmpExt:DigitalSourceType>
<xmp:CreatorTool>{tool}</xmp:CreatorTool>
</rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="r"?>"""


def png(image: Image.Image) -> bytes:
    """Encode `image` as a PNG whose XMP packet declares it IPTC `trainedAlgorithmicMedia`; the prompt is not in it."""
    info = PngImagePlugin.PngInfo()
    xmp = _XMP.format(source_type=escape(DIGITAL_SOURCE_TYPE), tool=escape(f"Twig {__version__}"))
    info.add_itxt("XML:com.adobe.xmp", xmp)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def contact_sheet(results: Sequence[GenerationResult]) -> Image.Image:
    """One row a result: draft, avoidance mask, final and their difference, with the verdict and scores under them.

    A result that was not judged, or whose draft was the user's own picture, leaves the cells empty that it lacks.
    """
    rows = [row_of_cells(("draft", "mask", "final", "difference"))]
    for result in results:
        rows += [row_of_cells(_sheet_cells(result)), _captions(result)]
    return stacked(rows)


def verdict_text(result: GenerationResult) -> str:
    """How a result ended: "accepted after 1 retry", "refused after 2 retries", "accepted, the plain picture"."""
    retries = max(0, len(result.attempts) - 1)
    after = f" after {retries} retr{'y' if retries == 1 else 'ies'}" if retries else ""
    plain = result.gate is not None and not result.gate.opened and len(result.attempts) == 1
    return f"{result.verdict.value}{after}{', the plain picture' if plain else ''}"


def gate_text(gate: GateDecision) -> str:
    """What the gate made of a draft: "shut, the draft does not look recalled: agreement 0.312 (limit 0.737)"."""
    signals = ", ".join(score_text(name, score) for name, score in gate.signals.items())
    return f"{'open' if gate.opened else 'shut, the draft does not look recalled'}: {signals}"


def difference(first: Image.Image | None, second: Image.Image | None) -> Image.Image | None:
    """Largest difference over the colour channels at each pixel, white (0) to dark red (255); None if either is."""
    if first is None or second is None:
        return None
    values = np.asarray(ImageChops.difference(first.convert("RGB"), second.convert("RGB"))).max(-1)
    return Image.fromarray(heat(values / 255))


def _sheet_cells(result: GenerationResult) -> tuple[Image.Image | str, ...]:
    source = result.request.source is not None
    return (
        result.draft or ("your picture, not shown" if source else ""),
        mask_picture(result.mask) or "",
        result.image or result.verdict.value,
        difference(result.draft, result.image) or "",
    )


def _captions(result: GenerationResult) -> Image.Image:
    """The verdict, then the scores, those that were judged first, as many to a line as there are cells."""
    scores = sorted(result.scores.items(), key=lambda item: item[1].limit is None)
    lines = range(0, len(scores), COLUMNS)
    picture, draw = canvas(LINE * (len(lines) + 1) + GAP)
    title = f"{verdict_text(result)}{f': {result.error}' if result.error else ''}"
    draw.text((GAP, 0), title, _VERDICTS.get(result.verdict, INK), FONT)
    for number, (name, score) in enumerate(scores):
        place = (GAP + number % COLUMNS * (CELL + GAP), LINE * (1 + number // COLUMNS))
        draw.text(place, score_text(name, score), INK if score.passed else _VERDICTS[Verdict.REFUSED], FONT)
    return picture


def score_text(name: str, score: Score) -> str:
    """A measure with its limit, where it has one: "ssim 0.312 (limit 0.45)"."""
    limit = "" if score.limit is None else f" (limit {score.limit:.3g})"
    return f"{name} {score.value:.3g}{limit}"
