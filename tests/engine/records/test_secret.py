import os
import stat
from concurrent.futures import ThreadPoolExecutor

import pytest

from twig.engine.api.errors import RecordError
from twig.engine.records.secret import Secret, secret_path


def test_an_installation_makes_its_secret_once_and_keeps_it_to_itself(tmp_path):
    path = tmp_path / "state/secret"
    with ThreadPoolExecutor(8) as pool:
        keys = {secret.key for secret in pool.map(Secret.load, [path] * 8)}
    assert len(keys) == 1
    assert len(keys.pop()) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) & 0o077 == 0
    assert os.listdir(path.parent) == ["secret"]


def test_it_lies_where_the_variable_says_else_with_the_users_state(monkeypatch, tmp_path):
    monkeypatch.setenv("TWIG_SECRET", str(tmp_path / "a"))
    assert secret_path() == tmp_path / "a"
    monkeypatch.delenv("TWIG_SECRET")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert secret_path() == tmp_path / "state/twig/secret"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert secret_path() == tmp_path / ".local/state/twig/secret"


def test_two_purposes_and_two_installations_have_nothing_in_common(tmp_path):
    first, second = Secret.load(tmp_path / "a"), Secret.load(tmp_path / "b")
    found = {secret.digest(purpose, "a star") for secret in (first, second) for purpose in ("prompt", "run")}
    assert len(found) == 4
    assert first.name != second.name
    assert first.key.hex() not in repr(first)


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        ("ab" * 32 + "\n", 0o644, "mode 0644"),
        ("", 0o600, "no secret of Twig"),
        ("password\n", 0o600, "no secret of Twig"),
    ],
)
def test_what_is_no_secret_is_refused(tmp_path, content, mode, message):
    (tmp_path / "secret").write_text(content)
    (tmp_path / "secret").chmod(mode)
    with pytest.raises(RecordError, match=message):
        Secret.load(tmp_path / "secret")


def test_where_none_can_be_kept_the_remedy_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RecordError, match="name a file with TWIG_SECRET"):
        Secret.load(tmp_path / "file/secret")
