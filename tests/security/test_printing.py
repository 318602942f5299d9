"""What files and callers hold, where it is printed: it begins no line, moves no cursor and turns no text round."""

import io
import json
import os
import sys
import warnings

import pytest

from twig.engine.api.choices import Precision
from twig.engine.api.errors import (
    BackendError,
    CheckpointError,
    EngineBusyError,
    EngineClosedError,
    ForeignFileError,
    InvalidRequestError,
    NonFiniteLatentError,
    RecordError,
    TwigError,
)
from twig.engine.api.mechanisms import Avoidance
from twig.engine.api.request import GenerationRequest
from twig.engine.api.result import Attempt, GateDecision, GenerationResult, Score, Verdict
from twig.engine.cli.main import run
from twig.engine.cli.status import UNEXPECTED
from twig.engine.judging.registry_file import Work
from twig.engine.records.audit import AuditLog
from twig.engine.records.manifest import Manifest
from twig.engine.records.model_record import ModelRecord

pytestmark = pytest.mark.slow

HOSTILE = {
    "a line": "a\nverdict       accepted",
    "a return": "a\rverdict       accepted",
    "a cursor": "\x1b[2J\x1b[1;31mred",
    "a title": "\x1b]0;title\x07",
    "a control of eight bits": "\x9b2J\x85next",
    "turned round": "a \u202egnp.exe\u2066 b\u2069",
    "a separator of lines": "a\u2028verdict accepted\u2029b",
    "nothing to be seen": "a\u200b\u2060\ufeff\u00ad\U000e0041b",
    "a tabulator": "a\tb\x0b\x0c",
    "a deletion": "abc\x08\x08\x7f",
    "markup": "[red]a[/red] [link=http://a]b[/link] %s {0} \\",
    "long": "x" * 50_000,
}


@pytest.fixture(params=HOSTILE.values(), ids=HOSTILE)
def hostile(request):
    return request.param


def printed(capsys, most=5000):
    """What was printed, each line of which must be printable and no longer than a person can read past."""
    captured = capsys.readouterr()
    for text in (captured.out, captured.err):
        lines = text.replace("\r\n", "\n").split("\n")  # CSV ends its lines so
        assert lines.pop() == ""
        assert all(line.isprintable() for line in lines), [line for line in lines if not line.isprintable()]
        assert all(len(line) < most for line in lines)
    return captured


def manifest_of(text):
    """A manifest that says `text` wherever it can say a text."""
    scores = {"ssim": Score(0.25, 0.5, True), text: Score(0.5, None, True)}
    attempt = Attempt(11, Avoidance(), scores, rows=36, steps=20, reasons=(text,), nearest=text)
    result = GenerationResult(
        GenerationRequest(prompt=text, negative_prompt=text), 0, Verdict.REVIEW, error=text, registry=text,
        gate=GateDecision(True, scores, text), attempts=(attempt,), calibration=text, rule="review if ssim > 0.1",
        timings={text: 1.0},
    )  # fmt: skip
    model = ModelRecord(source=text, hashes={text: text}, device=text, dtype=Precision.FLOAT32)
    manifest = Manifest.of(result, model.model_copy(update={"device": "cpu"}), image=text.replace("/", "")[:99])
    machine = manifest.machine.model_copy(update=dict.fromkeys(("system", "processor", "device"), text))
    changes = {"model": model, "machine": machine, "libraries": {text: text}, "python": text}
    return manifest.model_copy(update=changes)


@pytest.mark.parametrize("options", [(), ("--json",), ("--replay",)])
def test_a_manifest_forges_no_line(tmp_path, capsys, hostile, options):
    manifest_of(hostile).save(tmp_path / "a.json")
    run(["inspect", str(tmp_path / "a.json"), *options])
    out = printed(capsys, 10**7 if options == ("--json",) else 5000).out
    assert sum(line.startswith("verdict ") for line in out.splitlines()) == ("--json" not in options)
    if options == ("--json",):
        assert json.loads(out)["manifest"]["request"]["prompt"] == hostile


@pytest.mark.parametrize("command", ["search", "verify", "export", "export --format csv", "forget --dry-run --line 1"])
def test_a_log_forges_no_line(tmp_path, capsys, hostile, command):
    """Its lines were written by somebody who has the secret, so that they are all that they should be."""
    log, path = AuditLog(tmp_path / "audit.jsonl", prompts=True), tmp_path / "twig-1-0.json"
    manifest_of(hostile).save(path)
    log.append(Manifest.load(path), path)
    forged = {"event": "made", "time": "2026-01-01T00:00:00Z", "manifest": hostile, "reason": hostile, "error": hostile}
    log.store.append(forged | {"manifest_sha256": "0", "nearest": hostile, "verdict": "accepted"})
    verb, *options = command.split()
    run(["audit", verb, str(log.path), *options])
    printed(capsys, 10**7 if verb == "export" else 5000)


@pytest.mark.parametrize("command", ["registry list --registry {}", "registry remove {text} --registry {}"])
def test_a_registry_forges_no_line(tiny_checkpoint, tmp_path, capsys, hostile, command):
    import torch

    from twig.engine.judging import registry_file

    work = Work("a", hostile, "0" * 64, hostile)
    content = registry_file.Content(hostile, (work,), torch.zeros(1, 972), torch.zeros(1, 4, 16, 16), {})
    registry_file.write(tmp_path / "r", content, hostile)
    run([part.format(tmp_path / "r", text=hostile) for part in command.split()])
    printed(capsys)


NAMED = [
    "inspect {}", "generate star --rule @{}", "generate star --calibration {}", "generate star --registry {}",
    "generate star --source {}", "generate star --mask {}", "generate star --model {}", "generate --prompts {}",
    "generate star --controlnet {}", "generate star --segmenter {}", "generate star --sign {} {}",
    "generate star --log {}/audit.jsonl", "generate star --out {}/a", "generate star --seed {}",
    "generate star --rule {}", "generate star --device {}", "generate star --preset {}", "generate star --{}",
    "calibrate --captions {}", "calibrate --pictures {}", "registry list --registry {}", "registry add {}",
    "registry check {} --registry {}", "audit verify {}", "audit search {}", "audit head {}", "audit forget {}",
    "audit verify --head {}", "audit search sqlite:///{}", "audit search postgresql://{}@127.0.0.1:1/a",
    "audit search {}://a", "assess --prompts {} --sources {}", "artifacts list --root {}", "{}",
]  # fmt: skip


@pytest.mark.parametrize("command", NAMED)
def test_what_a_command_is_called_with_is_said_in_one_line(tmp_path, capsys, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    path = "file " + "".join(text.replace("/", "")[:30] for text in HOSTILE.values())[:120]
    (tmp_path / path).write_bytes(b"\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert run([part.format(path, path) for part in command.split()]) != UNEXPECTED
    printed(capsys)


@pytest.mark.parametrize("name", [b"caf\xe9", b"\xff\xfe\x1b[2J", b"a\nb"])
@pytest.mark.parametrize("command", NAMED)
def test_so_is_a_name_that_is_no_text(tmp_path, capsys, monkeypatch, name, command):
    monkeypatch.chdir(tmp_path)
    path = os.fsdecode(name)
    (tmp_path / path).write_bytes(b"\xff")
    assert run([part.format(path, path) for part in command.split()]) != UNEXPECTED
    printed(capsys)


@pytest.mark.parametrize(
    "kind",
    [
        TwigError, InvalidRequestError, CheckpointError, ForeignFileError, BackendError, NonFiniteLatentError,
        EngineBusyError, EngineClosedError, RecordError,
    ],
)  # fmt: skip
def test_every_error_is_one_printable_line(kind, hostile):
    assert str(kind(f"about {hostile}")).isprintable()


@pytest.mark.parametrize("debug", [(), ("--debug",)])
def test_so_is_what_nobody_thought_of(monkeypatch, capsys, hostile, debug):
    from twig.engine.cli import actions

    def broken(*args):
        raise RuntimeError(hostile[:3000])

    monkeypatch.setattr(actions, "print_head", broken, raising=False)
    assert run(["audit", "head", "a", *debug]) == UNEXPECTED
    printed(capsys)


@pytest.mark.parametrize("command", ["generate -", "generate --prompts -", "audit search --prompt -"])
@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff", b"a\0b", "a".encode("utf-16")])
def test_what_stands_in_stdin_is_text_or_refused_in_a_line(tmp_path, capsys, monkeypatch, command, content):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert run(command.split()) == 2
    assert len(printed(capsys).err.splitlines()) == 1


def test_an_endless_stdin_ends(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in ("generate -", "audit search --prompt -"):
        with open("/dev/zero") as endless:
            monkeypatch.setattr(sys, "stdin", endless)
            assert run(command.split()) == 2
        assert "stdin: more than" in printed(capsys).err
