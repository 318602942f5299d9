"""LPIPS against the authors' own code, which wants packages that are stood in for here: nothing of them is run."""

import io
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from skimage import data

from twig.engine.api.errors import CheckpointError, InvalidRequestError, TwigError
from twig.engine.judging import perceptual_wheel
from twig.engine.judging.named import named_metrics

pytest.importorskip("stlpips_pytorch")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def authors():
    """Their module, with stand-ins for what it imports and does not use of it."""
    wanted = {"torchvision": "models", "torchsummary": "summary", "IPython": "embed"}
    with pytest.MonkeyPatch.context() as patch:
        for name, attribute in wanted.items():
            module = types.ModuleType(name)
            setattr(module, attribute, None)
            patch.setitem(sys.modules, name, module)
        from stlpips_pytorch import stlpips

        yield stlpips


@pytest.fixture(scope="module")
def trained():
    return named_metrics(["lpips"])["st_lpips"]


def pictures(*shape):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, *shape, generator=generator).unbind()


def pixels(picture):
    return torch.from_numpy(np.array(picture.convert("RGB").resize((128, 128)))).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("size", [(64, 64), (65, 48), (21, 30)])
def test_the_trained_one_is_the_authors(authors, trained, size):
    theirs = authors.LPIPS(net="alex", variant="shift_tolerant", verbose=False)
    first, second = pictures(3, 3, *size)
    with torch.no_grad():
        expected = theirs(first * 2 - 1, second * 2 - 1).flatten()
    torch.testing.assert_close(trained(first, second), expected)


def test_a_users_file_is_the_plain_one(authors, tmp_path):
    torch.manual_seed(1)
    theirs = authors.LPIPS(net="alex", variant="vanilla", pretrained=False, verbose=False)
    save_file({name: tensor.clone() for name, tensor in theirs.state_dict().items()}, tmp_path / "own.safetensors")
    (name, metric), *_ = named_metrics([f"lpips={tmp_path / 'own.safetensors'}"]).items()
    first, second = pictures(2, 3, 63, 80)
    with torch.no_grad():
        expected = theirs(first * 2 - 1, second * 2 - 1).flatten()
    torch.testing.assert_close(metric(first, second), expected)
    assert (name, metric.direction) == ("lpips", "distance")


def test_near_copies_are_near_and_other_pictures_far(trained):
    photo, other = Image.fromarray(data.astronaut()), Image.fromarray(data.chelsea())
    stream = io.BytesIO()
    photo.resize((128, 128)).save(stream, "JPEG", quality=20)
    own = pixels(photo)
    compressed, shifted = trained(pixels(Image.open(stream)), own), trained(own[..., 2:], own[..., :-2])
    assert trained(own, own) == 0
    assert max(compressed, shifted) < 0.1 < 0.5 < trained(pixels(other), own)


def test_company_changes_nothing(trained, monkeypatch):
    first, second = pictures(4, 3, 40, 40)
    together = trained(first, second)
    monkeypatch.setattr("twig.engine.judging.perceptual._AT_ONCE", 40 * 40)
    torch.testing.assert_close(trained(first, second), together)


def test_a_picture_that_is_too_small_is_said_so(trained):
    with pytest.raises(ValueError, match="21 pixels a side or more, got 20x64"):
        trained(*pictures(1, 3, 20, 64))


def test_the_cache_is_made_again_where_it_is_not_the_weights(trained):
    path = perceptual_wheel.cached()
    whole = path.read_bytes()
    for broken in (whole[:-5], b"", whole[:-4] + b"\1\2\3\4"):
        path.write_bytes(broken)
        assert perceptual_wheel.digest(perceptual_wheel.weights()) == perceptual_wheel.CONTENT
        assert path.read_bytes() == whole


def test_another_file_in_the_wheels_place_is_never_opened(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "other.pth").write_bytes(b"\x80\x04.")
    monkeypatch.setattr(perceptual_wheel, "_in_wheel", lambda: tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"is not the file of stlpips-pytorch 0\.0\.2"):
        perceptual_wheel.weights()


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(perceptual_wheel, "PACKAGE", "a-package-nobody-has")
    with pytest.raises(TwigError, match=r"pip install 'twig-engine\[lpips\]'"):
        named_metrics(["lpips"])


def test_files_that_are_no_lpips_are_refused_by_the_tensor(trained, tmp_path):
    whole, path = load_file(perceptual_wheel.cached()), tmp_path / "changed.safetensors"
    changes = {
        "lacks lin0.model.1.weight": {name: each for name, each in whole.items() if name != "lin0.model.1.weight"},
        "holds 'more'|holds more": {**whole, "more": torch.zeros(1)},
        "is not LPIPS over AlexNet": {**whole, "lin0.model.1.weight": torch.zeros(1, 3, 1, 1)},
    }
    for message, tensors in changes.items():
        save_file(tensors, path)
        with pytest.raises(CheckpointError, match=message):
            named_metrics([f"lpips={path}"])
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="corrupt or cut short"):
        named_metrics([f"lpips={path}"])


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["sscd=weights.pt"], "TorchScript, which is code"),
        (["dreamsim"], "pickles of several backbones"),
        (["ssim"], "ssim is measured anyway"),
        (["lipps"], "there is no measure 'lipps'; there are lpips"),
        (["clip"], "there is no measure 'clip'"),
        (["lpips", "st_lpips"], "st_lpips is named twice"),
        ([f"clip={Path('nowhere')}"], "there is no folder nowhere"),
    ],
)
def test_what_is_not_served_is_refused_by_name(specs, message):
    with pytest.raises(InvalidRequestError, match=message):
        named_metrics(specs)
