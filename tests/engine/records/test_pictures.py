import io
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from twig.engine.records.drawing import heat
from twig.engine.records.pictures import difference, png


def test_a_png_says_that_a_trained_model_made_it_and_keeps_its_pixels(make_result):
    image = make_result().image
    decoded = Image.open(io.BytesIO(png(image)))
    assert decoded.tobytes() == image.tobytes()
    packet = ElementTree.fromstring(decoded.info["XML:com.adobe.xmp"])
    found = packet.find(".//{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType")
    assert found.text == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


def test_a_png_holds_no_prompt(make_result):
    assert b"red star" not in png(make_result().image)


def test_a_difference_is_white_where_pictures_agree():
    black = Image.new("RGB", (4, 4))
    half = Image.new("RGB", (4, 4))
    half.paste((0, 255, 0), (0, 0, 2, 4))
    values = np.asarray(difference(black, half))
    assert (values[:, 2:] == 255).all()
    assert (values[:, :2] == heat(np.array(1.0))).all()
    assert difference(None, half) is None


def test_heat_tells_signs_and_missing_values_apart():
    below, zero, above, missing = heat(np.array([-1.0, 0.0, 1.0, np.nan])).tolist()
    assert zero == [255, 255, 255]
    assert below[2] > below[0]
    assert above[0] > above[2]
    assert missing[0] == missing[1] == missing[2] != 255
