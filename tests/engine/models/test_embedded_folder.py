"""The folder of the embedded model is one that older libraries and other runtimes read too."""

import shutil

import pytest
from safetensors import safe_open
from transformers import CLIPTokenizer

from twig.benchmarks.copying.assemble import for_every_reader
from twig.engine.models.checkpoint import EMBEDDED

TEXTS = ["a red star and a blue house on a green field", "yastil", "A  photograph of Zürich, isn't it? 42", "", "東京"]
WRITTEN = ("text_encoder/model.safetensors", "tokenizer/vocab.json", "tokenizer/merges.txt")


def test_tensors_of_the_text_encoder_are_named_as_in_published_checkpoints():
    with safe_open(EMBEDDED / "text_encoder" / "model.safetensors", framework="pt") as file:
        assert {name.split(".")[0] for name in file.keys()} == {"text_model"}  # noqa: SIM118


@pytest.mark.parametrize("text", TEXTS)
def test_vocabulary_and_merges_alone_make_the_same_tokenizer(text, tmp_path):
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(EMBEDDED / "tokenizer" / name, tmp_path)
    theirs, ours = (CLIPTokenizer.from_pretrained(folder) for folder in (tmp_path, EMBEDDED / "tokenizer"))
    assert theirs(text).input_ids == ours(text).input_ids
    assert theirs.get_vocab() == ours.get_vocab()


def test_what_is_laid_out_for_every_reader_stays_as_it_is(tmp_path):
    for name in (*WRITTEN, "tokenizer/tokenizer.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(EMBEDDED / name, tmp_path / name)
    for_every_reader(tmp_path)
    for name in WRITTEN:
        assert (tmp_path / name).read_bytes() == (EMBEDDED / name).read_bytes(), name
