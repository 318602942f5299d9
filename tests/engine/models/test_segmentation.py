import json
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BeitConfig,
    BeitForSemanticSegmentation,
    BeitImageProcessorPil,
    ConvNextConfig,
    DPTConfig,
    DPTForSemanticSegmentation,
    DPTImageProcessorPil,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessorPil,
    OneFormerConfig,
    OneFormerForUniversalSegmentation,
    OneFormerImageProcessorPil,
    OneFormerProcessor,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessorPil,
    SwinConfig,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from twig.engine.api.errors import CheckpointError
from twig.engine.models.checkpoint import load
from twig.engine.models.clip_tokenizer import clip_tokenizer
from twig.engine.models.pictures import to_pixels
from twig.engine.models.segmentation import Preprocessing, Segmenter, label_scores

STAGES = ["stage1", "stage2", "stage3", "stage4"]


def label_names(names):
    return {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}


def colours(count):
    return [[i, 2 * i % 256, 255 - i] for i in range(count)]


def build_mask2former(names):
    backbone = SwinConfig(
        image_size=32, embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=2, out_features=STAGES
    )
    config = Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16,
        dim_feedforward=32, encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=12,
        palette=colours(len(names)), **label_names(names),
    )  # fmt: skip
    return Mask2FormerForUniversalSegmentation(config).eval()


def build_oneformer(names):
    backbone = SwinConfig(
        image_size=32, embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=2, out_features=STAGES
    )
    config = OneFormerConfig(
        backbone_config=backbone, num_queries=12, text_encoder_width=16, text_encoder_num_layers=1, conv_dim=32,
        mask_dim=32, hidden_dim=32, encoder_feedforward_dim=16, dim_feedforward=32, encoder_layers=1, decoder_layers=2,
        query_dec_layers=1, num_attention_heads=2, is_training=False, palette=colours(len(names)), **label_names(names),
    )  # fmt: skip
    return OneFormerForUniversalSegmentation(config).eval()


def build_beit(names):
    config = BeitConfig(
        image_size=64, patch_size=8, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32,
        out_indices=[1, 2, 3, 4], use_auxiliary_head=False, pool_scales=[1, 2], use_relative_position_bias=True,
        use_mask_token=False, vocab_size=16, palette=colours(len(names)), **label_names(names),
    )  # fmt: skip
    return BeitForSemanticSegmentation(config).eval()


def build_dpt(names):
    config = DPTConfig(
        image_size=64, patch_size=16, hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 8, 16, 16], fusion_hidden_size=16,
        reassemble_factors=[4, 2, 1, 0.5], use_auxiliary_head=False, is_hybrid=False, palette=colours(len(names)),
        **label_names(names),
    )  # fmt: skip
    return DPTForSemanticSegmentation(config).eval()


def build_upernet(names, **options):
    backbone = ConvNextConfig(hidden_sizes=[8] * 4, depths=[1] * 4, out_features=STAGES)
    config = UperNetConfig(
        backbone_config=backbone, hidden_size=8, pool_scales=[1, 2], use_auxiliary_head=False, auxiliary_in_channels=8,
        **label_names(names), **options,
    )  # fmt: skip
    return UperNetForSemanticSegmentation(config).eval()


def build_segformer(names, **options):
    config = SegformerConfig(
        depths=[1], hidden_sizes=[8], num_attention_heads=[1], sr_ratios=[4], strides=[4], num_encoder_blocks=1,
        patch_sizes=[7], mlp_ratios=[2], decoder_hidden_size=8, **label_names(names), **options,
    )  # fmt: skip
    return SegformerForSemanticSegmentation(config).eval()


def picture(height, width, seed=0):
    """Smooth random picture."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def agreement(a, b):
    return float((torch.as_tensor(a) == torch.as_tensor(b)).float().mean())


def test_labels_are_those_of_the_librarys_own_pre_and_postprocessing(tiny_checkpoint):
    segmenter = load(tiny_checkpoint).segmenter
    processor = SegformerImageProcessorPil.from_pretrained(tiny_checkpoint / "segmenter")
    for size in ((64, 64), (96, 160), (40, 56)):
        image = picture(*size)
        with torch.no_grad():
            output = segmenter.model(**processor(image, return_tensors="pt"))
        expected = processor.post_process_semantic_segmentation(output, target_sizes=[size])[0]
        labels = segmenter(to_pixels(image, *size))[0]
        assert labels.shape == size
        assert labels.dtype == torch.int64
        assert len(labels.unique()) > 1
        assert agreement(labels, expected) > 0.995


def test_mask2former_labels_are_those_of_the_librarys_own_pre_and_postprocessing(tmp_path):
    torch.manual_seed(3)
    names = ("background", "star", "house", "tree")
    processor = Mask2FormerImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96}, size_divisor=32)
    model = build_mask2former(names)
    segmenter = Segmenter(model, Preprocessing.from_config(processor.to_dict()))
    for size in ((64, 64), (80, 128)):
        image = picture(*size)
        with torch.no_grad():
            output = model(**processor(image, return_tensors="pt"))
        expected = processor.post_process_semantic_segmentation(output, target_sizes=[size])[0]
        assert agreement(segmenter(to_pixels(image, *size))[0], expected) > 0.98


SQUARE = {"height": 64, "width": 64}


@pytest.mark.parametrize(
    ("build", "processor"),
    [
        (build_beit, BeitImageProcessorPil(size=SQUARE, crop_size=SQUARE)),
        (build_dpt, DPTImageProcessorPil(size={"height": 70, "width": 70}, ensure_multiple_of=32)),
        (build_oneformer, OneFormerImageProcessorPil(size={"shortest_edge": 64, "longest_edge": 96}, num_text=8)),
    ],
)
def test_heads_of_other_kinds_score_as_the_library_does(build, processor):
    torch.manual_seed(3)
    model = build(("background", "star", "house", "tree"))
    segmenter = Segmenter(model, Preprocessing.from_config(processor.to_dict(), type(processor).__name__))
    prepare = processor
    if build is build_oneformer:
        prepare = partial(OneFormerProcessor(processor, clip_tokenizer()), task_inputs=["semantic"])
    for size in ((64, 64), (50, 83), (97, 61)):
        image = picture(*size)
        with torch.no_grad():
            output = model(**prepare(image, return_tensors="pt"))
            mine = label_scores(model, segmenter.preprocessing(to_pixels(image, *size)))
        options = {"target_sizes": [size], "return_segmentation_scores": True}
        expected = processor.post_process_semantic_segmentation(output, **options)[0]
        scores = torch.nn.functional.interpolate(mine, size, mode="bilinear", align_corners=False)[0]
        reach = expected.segmentation_scores.max() - expected.segmentation_scores.min()
        assert float((scores - expected.segmentation_scores).abs().max()) < 0.02 * float(reach)
        assert agreement(segmenter(to_pixels(image, *size))[0], expected.segmentation) > 0.98


def test_a_dpt_that_is_to_keep_a_pictures_shape_is_refused_for_it_reads_squares():
    with pytest.raises(ValueError, match="keep_aspect_ratio True, which is not served"):
        Preprocessing.from_config(DPTImageProcessorPil(keep_aspect_ratio=True).to_dict())


@pytest.mark.parametrize("build", [build_mask2former, build_upernet, build_oneformer, build_beit, build_dpt])
def test_user_segmenter_folder_replaces_the_models_own(tiny_checkpoint, tmp_path, build):
    torch.manual_seed(0)
    names = (*(f"thing {i}" for i in range(149)), "background")
    build(names).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PREPROCESSING))
    segmenter = load(tiny_checkpoint, segmenter=tmp_path).segmenter
    labels = segmenter(torch.rand(2, 3, 64, 96))
    assert labels.shape == (2, 64, 96)
    assert segmenter.labels == names
    assert segmenter.background == {149}
    assert segmenter.palette.shape == (150, 3)


PREPROCESSING = {
    "size": {"height": 64, "width": 64}, "rescale_factor": 1 / 255, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"size": {"height": 512, "width": 640}}, (512, 640)),
        ({"size": 512}, (512, 512)),
        ({"size": {"shortest_edge": 200}}, (200, 400)),
        ({"size": {"shortest_edge": 200, "longest_edge": 300}}, (150, 300)),
        ({"size": {"shortest_edge": 200, "longest_edge": 300}, "size_divisor": 32}, (160, 320)),
        ({"size": 200, "max_size": 300, "size_divisor": 32}, (160, 320)),
        ({"do_resize": False}, (100, 200)),
    ],
)
def test_picture_is_resized_as_the_configuration_says(config, expected):
    assert Preprocessing.from_config(PREPROCESSING | config).resized(100, 200) == expected


def test_pixels_are_scaled_and_normalised():
    preprocessing = Preprocessing.from_config(
        {"do_resize": False, "rescale_factor": 1 / 255, "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.25, 0.125]}
    )
    values = preprocessing(torch.full((1, 3, 2, 2), 0.6))[0, :, 0, 0]
    torch.testing.assert_close(values, torch.tensor([1.0, 1.6, 2.4]))


# --- palettes and background ---


def test_ade20k_colours_stand_in_for_a_missing_palette():
    segmenter = Segmenter(build_segformer(("wall", *(f"x{i}" for i in range(149)))), Preprocessing())
    assert len(np.unique(segmenter.palette, axis=0)) == 149  # road and column share their grey
    # wall, building, sky, person: as ControlNet's segmentation annotator paints them
    assert segmenter.palette[[0, 1, 2, 12]].tolist() == [[120] * 3, [180, 120, 120], [6, 230, 230], [150, 5, 61]]


def test_missing_palette_of_another_label_set_is_refused():
    with pytest.raises(CheckpointError, match="3 labels and needs a 'palette'"):
        Segmenter(build_segformer(("background", "star", "house")), Preprocessing())


@pytest.mark.parametrize("palette", [[[0, 0]] * 3, [[0, 0, 300]] * 3, [[0, 0, -1]] * 3, [[0, 0, 0]] * 2, "red"])
def test_malformed_palette_is_refused(palette):
    with pytest.raises(CheckpointError, match="palette"):
        Segmenter(build_segformer(("background", "star", "house"), palette=palette), Preprocessing())


def test_background_is_what_surrounds_a_subject():
    names = ("wall", "sidewalk, pavement", "person", "earth, ground", "Sky", "wallpaper sample")
    segmenter = Segmenter(build_segformer(names, palette=colours(6)), Preprocessing())
    assert segmenter.background == {0, 1, 3, 4}


def test_background_can_be_named_in_the_configuration():
    model = build_segformer(("sky", "star", "fog"), palette=colours(3), background=["fog", "sky"])
    assert Segmenter(model, Preprocessing()).background == {0, 2}


def test_labels_without_any_background_are_refused():
    with pytest.raises(CheckpointError, match=r"no background.*its labels are star, house"):
        Segmenter(build_segformer(("star", "house"), palette=colours(2)), Preprocessing())


# --- pictures ---


def test_pixels_keep_the_pictures_values():
    image = picture(8, 16)
    pixels = to_pixels(image, 8, 16)
    assert pixels.shape == (1, 3, 8, 16)
    assert torch.equal((pixels[0].permute(1, 2, 0) * 255).round().to(torch.uint8), torch.from_numpy(np.array(image)))
    assert to_pixels(image, 16, 16).shape == (1, 3, 16, 16)


def test_what_a_picture_shows_is_named_with_its_share_of_the_frame(tiny_checkpoint):
    segmenter = load(tiny_checkpoint).segmenter
    pixels = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    seen, labels = segmenter.seen(pixels), segmenter(pixels)
    assert set(seen) <= set(segmenter.objects) == {"circle", "square", "star"}
    assert sum(seen.values()) == pytest.approx((labels != 0).float().mean().item())
    assert list(seen.values()) == sorted(seen.values(), reverse=True)
