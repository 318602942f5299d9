"""Pictures for people: PNG files that say how they were made, and what two pictures differ in."""

import io
from collections.abc import Iterable, Mapping
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image, ImageChops, PngImagePlugin

from ..._version import __version__
from .drawing import heat
from .manifest import DIGITAL_SOURCE_TYPE
from .sheet_runs import RUNS

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
    return encoded(image, "png")


def sheet_png(image: Image.Image, runs: Iterable[str]) -> bytes:
    """Encode a contact sheet, which says in a text chunk of which runs it shows pictures; `runs_shown` reads it."""
    return _encoded_png(image, {RUNS: " ".join(runs)})


def encoded(image: Image.Image, format: str, quality: int = 90) -> bytes:
    """Encode `image` as "png", "jpeg" or "webp", with the same packet in each; `quality` 0 to 100 where it is lossy."""
    if format == "png":
        return _encoded_png(image, {})
    buffer = io.BytesIO()
    image.save(buffer, format.upper(), quality=quality, xmp=_xmp().encode())
    return buffer.getvalue()


def _encoded_png(image: Image.Image, texts: Mapping[str, str]) -> bytes:
    info, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    info.add_itxt("XML:com.adobe.xmp", _xmp())
    for name, text in texts.items():
        info.add_text(name, text)
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def _xmp() -> str:
    return _XMP.format(source_type=escape(DIGITAL_SOURCE_TYPE), tool=escape(f"Twig {__version__}"))


def difference(first: Image.Image | None, second: Image.Image | None) -> Image.Image | None:
    """Largest difference over the colour channels at each pixel, white (0) to dark red (255); None if either is."""
    if first is None or second is None:
        return None
    values = np.asarray(ImageChops.difference(first.convert("RGB"), second.convert("RGB"))).max(-1)
    return Image.fromarray(heat(values / 255))
