"""Preprocessing against the library's own image processors, which are the measure of what a file means."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Mask2FormerImageProcessorPil, MaskFormerImageProcessorPil, SegformerImageProcessorPil

from twig.engine.api.errors import CheckpointError
from twig.engine.models.checkpoint import load
from twig.engine.models.pictures import to_pixels
from twig.engine.models.preprocessing import Preprocessing

PROCESSORS = {
    "SegformerImageProcessor": SegformerImageProcessorPil,
    "SegformerFeatureExtractor": SegformerImageProcessorPil,
    "SegformerImageProcessorFast": SegformerImageProcessorPil,
    "Mask2FormerImageProcessor": Mask2FormerImageProcessorPil,
    "MaskFormerImageProcessor": MaskFormerImageProcessorPil,
}
SIZES = ((64, 64), (57, 101), (240, 33), (1, 7))
WHOLE = {
    "size": {"height": 48, "width": 80},
    "rescale_factor": 1 / 255,
    "image_mean": [0.1, 0.2, 0.3],
    "image_std": [0.5] * 3,
}
COMMON = [
    {},
    WHOLE,
    *({name: value for name, value in WHOLE.items() if name != left_out} for left_out in WHOLE),
    {"do_resize": False},
    {"do_rescale": False},
    {"do_normalize": False},
    {"do_rescale": False, "do_normalize": False, "size": {"height": 30, "width": 20}},
    {"rescale_factor": 0.5, "size": {"height": 30, "width": 20}},
    {"image_mean": 0.25, "image_std": 0.5},
    {"size": {"height": 33, "width": 35}, "resample": 3},
    {"size": {"shortest_edge": 31, "longest_edge": 50}},
    {"size": {"max_height": 40, "max_width": 60}},
    {"do_reduce_labels": True, "ignore_index": 255, "num_labels": 4},
]
OF_SEGFORMER = [{"size": 40}, {"size": {"shortest_edge": 31}}, {"reduce_labels": True}, {"do_center_crop": False}]
OF_MASK_FORMERS = [
    {"size_divisor": 16}, {"size_divisor": 0, "size": {"height": 30, "width": 20}},
    {"size": 31, "max_size": 50, "size_divisor": 7}, {"max_size": 100},
]  # fmt: skip


def picture(height, width):
    """Smooth random picture."""
    coarse = Image.fromarray(np.random.default_rng(height).integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def cases():
    for name, processor in PROCESSORS.items():
        own = OF_SEGFORMER if processor is SegformerImageProcessorPil else OF_MASK_FORMERS
        yield from ((name, config) for config in (*COMMON, *own))


@pytest.mark.parametrize(("name", "config"), list(cases()))
@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_those_of_the_librarys_processor(name, config, size):
    config = {"image_processor_type": name} | config
    processor, image = PROCESSORS[name].from_dict(config), picture(*size)
    expected = torch.as_tensor(np.array(processor([image])["pixel_values"])).float()
    found = Preprocessing.from_config(config)(to_pixels(image, *size))
    assert found.shape == expected.shape
    # The library rounds to whole colours after it resized: a level of 255, and a second for another order of sums.
    level = (processor.rescale_factor if processor.do_rescale else 1) * 2.01
    deviation = processor.image_std if processor.do_normalize else 1
    assert (found - expected).abs().max() <= level / np.min(deviation)


@pytest.mark.parametrize("left_out", ["rescale_factor", "image_mean", "image_std", "size", "do_resize", "do_normalize"])
def test_a_folder_that_leaves_a_setting_out_loads(tiny_checkpoint, tmp_path, left_out):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "model")
    path = folder / "segmenter/preprocessor_config.json"
    config = {name: value for name, value in json.loads(path.read_text()).items() if name != left_out}
    path.write_text(json.dumps(config))
    assert load(folder).segmenter.preprocessing == Preprocessing.from_config(config)


@pytest.mark.parametrize("usual", ["SegformerImageProcessor", "Mask2FormerImageProcessor"])
def test_a_file_that_names_no_processor_is_of_its_models_usual_one(usual):
    assert Preprocessing.from_config({}, usual) == Preprocessing.from_config({"image_processor_type": usual})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"image_processor_type": "ViTImageProcessor"}, "ViTImageProcessor.*those served are Segformer"),
        ({"image_processor_type": ["SegformerImageProcessor"]}, "those served are"),
        ({"do_center_crop": True}, "do_center_crop True, which is not served"),
        ({"pad_size": {"height": 9, "width": 9}}, "pad_size"),
        ({"size_divisor": 32, "image_processor_type": "SegformerImageProcessor"}, "size_divisor 32"),
        ({"crop_pct": 0.9}, "crop_pct 0.9"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order"),
        ({"auto_map": {"AutoImageProcessor": "x--y"}}, "auto_map"),
        ({"rescale_factor": 0}, "rescale_factor 0"),
        ({"rescale_factor": math.nan}, "rescale_factor nan"),
        ({"rescale_factor": "much"}, "rescale_factor 'much'"),
        ({"image_std": [0.5, 0.5, 0]}, "image_std"),
        ({"image_std": [0.5, 0.5]}, "image_std"),
        ({"image_mean": [math.inf] * 3}, "image_mean"),
        ({"image_mean": "grey"}, "image_mean"),
        ({"size": {"height": 0, "width": 9}}, "size"),
        ({"size": {"height": 10**9, "width": 9}}, r"size.height 1000000000"),
        ({"size": {"height": 9.5, "width": 9}}, r"size.height 9.5"),
        ({"size": {"height": True, "width": 9}}, r"size.height True"),
        ({"size": {"height": 9}}, "size"),
        ({"size": "large"}, "size"),
        ({"resample": 1}, "resample 1"),
        ({"resample": "bilinear"}, "resample 'bilinear'"),
        ({"size_divisor": -3, "image_processor_type": "Mask2FormerImageProcessor"}, "size_divisor -3"),
    ],
)
def test_a_setting_that_is_not_served_is_refused_by_name(tiny_checkpoint, tmp_path, config, message):
    folder = shutil.copytree(tiny_checkpoint / "segmenter", tmp_path / "segmenter")
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    with pytest.raises(CheckpointError, match=f"preprocessor_config.json says .*{message}"):
        load(tiny_checkpoint, segmenter=folder)
