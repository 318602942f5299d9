"""Pictures for people: PNG files that say how they were made, and what two pictures differ in."""

import io
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image, ImageChops, PngImagePlugin

from ..._version import __version__
from .drawing import heat
from .manifest import DIGITAL_SOURCE_TYPE

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


def encoded(image: Image.Image, format: str, quality: int = 90) -> bytes:
    """Encode `image` as "png", "jpeg" or "webp", with the same packet in each; `quality` 0 to 100 where it is lossy."""
    xmp = _XMP.format(source_type=escape(DIGITAL_SOURCE_TYPE), tool=escape(f"Twig {__version__}"))
    buffer = io.BytesIO()
    if format == "png":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", xmp)
        image.save(buffer, "PNG", pnginfo=info)
    else:
        image.save(buffer, format.upper(), quality=quality, xmp=xmp.encode())
    return buffer.getvalue()


def difference(first: Image.Image | None, second: Image.Image | None) -> Image.Image | None:
    """Largest difference over the colour channels at each pixel, white (0) to dark red (255); None if either is."""
    if first is None or second is None:
        return None
    values = np.asarray(ImageChops.difference(first.convert("RGB"), second.convert("RGB"))).max(-1)
    return Image.fromarray(heat(values / 255))
