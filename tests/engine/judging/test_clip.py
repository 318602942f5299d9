"""CLIP's likeness of pictures against transformers' own model and processor."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from twig.engine.api.errors import CheckpointError
from twig.engine.judging.named import named_metrics


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**sizes, "vocab_size": 99},
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("size", [(48, 64), (32, 32), (77, 50)])
def test_the_cosine_is_that_of_the_library(folder, size):
    drawn = [np.random.default_rng(i).integers(0, 256, (6, 6, 3), np.uint8) for i in range(4)]
    pictures = [Image.fromarray(each).resize(size[::-1], Image.Resampling.BICUBIC) for each in drawn]
    model, processor = CLIPModel.from_pretrained(folder), CLIPImageProcessorPil.from_pretrained(folder)
    with torch.no_grad():
        seen = model.get_image_features(**processor(pictures, return_tensors="pt"))
    embeds = seen if isinstance(seen, torch.Tensor) else seen.pooler_output
    expected = torch.nn.functional.cosine_similarity(embeds[:2], embeds[2:])
    pixels = torch.stack([torch.from_numpy(np.array(each)).permute(2, 0, 1) / 255 for each in pictures])
    metric = named_metrics([f"clip={folder}"])["clip"]
    found = metric(pixels[:2], pixels[2:])
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)  # the library scales in whole steps of 1/255
    torch.testing.assert_close(metric(pixels[:1], pixels[:1]), torch.ones(1))
    assert metric.direction == "similarity"


def test_folders_that_are_no_clip_are_refused(folder, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="holds no CLIPModel"):
        named_metrics([f"clip={tmp_path}"])
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if n != "visual_projection.weight"}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors of a CLIPModel, visual_projection\.weight"):
        named_metrics([f"clip={tmp_path}"])
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "preprocessor_config.json").write_text('{"crop_size": 48}')
    with pytest.raises(CheckpointError, match="crops to 48, and the picture encoder takes 32"):
        named_metrics([f"clip={tmp_path}"])
