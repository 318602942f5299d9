"""`twig export` and `twig artifacts` as a user meets them."""

import pytest

from twig.engine.cli.main import run
from twig.engine.cli.status import USER_ERROR
from twig.export.store import ArtifactStore, Key


@pytest.fixture
def store(builder):
    """The store that other tests filled."""
    return builder.store.root


@pytest.mark.slow
def test_export_builds_compares_and_reports(tiny_checkpoint, store, capsys):
    options = ["--to", "onnx", "--model", str(tiny_checkpoint), "--store", str(store), "--buckets", "1,3"]
    assert run(["export", *options, "--cached-steps"]) == 0
    out = capsys.readouterr().out
    for network in ("unet", "unet_shallow", "controlnet", "vae_decoder", "text_encoder", "segmenter"):
        assert network in out
    errors = [float(line.split("max ")[1].split()[0]) for line in out.splitlines() if " max " in line]
    assert max(errors) < 1e-4
    assert float(out.split("SSIM to PyTorch ")[1]) > 0.999


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--buckets", "1,two"], "buckets are row counts, as in 1,2,4,8; got '1,two'"),
        (["--buckets", "1,64"], "buckets must lie between 1 and 63 rows"),
        (["--to", "caffe"], "caffe"),
        (["--to", "openvino", "--attention", "plugin"], "attention must be inline for it, not plugin"),
    ],
)
def test_what_cannot_be_exported_is_one_line(options, message, capsys):
    assert run(["export", *options]) == USER_ERROR
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.fixture
def filled(tmp_path):
    """A store with one artifact."""
    store = ArtifactStore(tmp_path)
    folder = store.folder(
        Key({"network": "unet", "format": "onnx", "precision": "fp32"}),
        lambda folder: (folder / "network.onnx").write_text("weights") and None,
    )
    return tmp_path, folder


def test_artifacts_are_listed_verified_and_pruned(filled, capsys):
    root, folder = filled
    assert run(["artifacts", "list", "--store", str(root)]) == 0
    assert folder.name in capsys.readouterr().out
    assert run(["artifacts", "verify", "--store", str(root)]) == 0
    (folder / "network.onnx").write_text("Weights")
    assert run(["artifacts", "verify", "--store", str(root)]) == 1
    assert "checksum differs" in capsys.readouterr().out
    assert run(["artifacts", "prune", "--store", str(root)]) == 0
    assert "1 removed" in capsys.readouterr().out
    assert not folder.exists()
