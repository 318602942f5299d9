"""What is named beside a model, on the command line, in manifests and for replays."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from tiny_models import build_vae
from twig.engine.cli.main import run


def test_an_embedding_and_a_preview_autoencoder_are_named_recorded_and_found_again(tiny_checkpoint, tmp_path, capsys):
    torch.manual_seed(3)
    build_vae().save_pretrained(tmp_path / "preview")
    word, out = tmp_path / "kit.safetensors", tmp_path / "out"
    save_file({"emb_params": torch.randn(2, 32)}, word)
    named = ["--preview-vae", str(tmp_path / "preview"), "--embedding", str(word)]
    asked = ["generate", "a red star and kit", "--model", str(tiny_checkpoint), "--steps", "1", "--out", str(out), "-q"]
    assert run([*asked, *named]) == 0
    manifest = str(next(out.glob("twig-*.json")))
    shutil.move(word, tmp_path / "moved.safetensors")
    assert run(["inspect", manifest, "--replay"]) == 2
    assert 'kit.safetensors", which is not on this disk; name it with --embedding' in capsys.readouterr().err
    assert run(["inspect", manifest, "--replay", "--embedding", f"{tmp_path}/moved.safetensors:kit"]) == 0
    assert "replay        identical" in capsys.readouterr().out


@pytest.mark.slow
def test_a_backend_is_named_recorded_and_found_again(tiny_checkpoint, tmp_path, capsys):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    asked = ["generate", "a red star", "--model", str(tiny_checkpoint), "--steps", "1", "--out", str(tmp_path), "-q"]
    assert run([*asked, "--backend", "onnxruntime"]) == 0
    manifest = next(tmp_path.glob("twig-*.json"))
    assert set(json.loads(manifest.read_text())["backends"].values()) == {"onnxruntime fp32"}
    assert run(["inspect", str(manifest), "--replay"]) == 0
    assert "replay        identical" in capsys.readouterr().out
    run(["inspect", str(manifest), "--replay", "--backend", "torch"])
    assert "on another backend" in capsys.readouterr().out


def test_a_backend_that_is_not_installed_is_named(tiny_checkpoint, tmp_path, capsys):
    asked = ["generate", "a red star", "--model", str(tiny_checkpoint), "--out", str(tmp_path), "--backend", "tensorrt"]
    assert run(asked) == 2
    assert "backend tensorrt needs the package tensorrt" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
