"""Keys: random, shown once, kept as digests, seen at once where their file changes."""

import json
import re
import stat

import pytest

from twig.engine.api.choices import Role
from twig.engine.api.errors import InvalidRequestError, RecordError
from twig.engine.cli.main import run
from twig.engine.cli.status import DONE, USER_ERROR
from twig.engine.serve.keys import Keys


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys.json"


def test_a_key_is_found_by_itself_alone(path):
    keys = Keys(path)
    first, second = keys.add("ann", priority=5, rows_per_minute=100, concurrent=2), keys.add("bob", roles=(Role.AUDIT,))
    assert re.fullmatch(r"twig_[0-9a-f]{12}_[\w-]{43}", first)
    found = keys.find(first)
    assert (found.name, found.priority, found.rows_per_minute, found.concurrent) == ("ann", 5, 100, 2)
    assert keys.find(second).roles == (Role.AUDIT,)
    for wrong in ("", "none", first[:-1], first + "a", f"twig_{found.id}_", first.replace(found.id, "0" * 12), "ü"):
        assert keys.find(wrong) is None


def test_the_file_holds_no_key_and_is_its_owners_alone(path):
    text = Keys(path).add("ann")
    assert text not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    with pytest.raises(RecordError, match="open to others"):
        Keys(path).all()


def test_a_revoked_key_opens_nothing_where_it_is_held_already(path):
    held = Keys(path)
    text = held.add("ann")
    key = held.find(text)
    Keys(path).revoke(key.id)
    assert held.find(text) is None
    assert held.all()[0].revoked is not None
    with pytest.raises(InvalidRequestError, match="no key with the id"):
        Keys(path).revoke("0" * 12)


@pytest.mark.parametrize("text", ["", "[]", '{"keys": [{}]}', '{"locks": []}', "\0", "[" * 9000])
def test_what_is_no_file_of_keys_says_so(path, text):
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(RecordError, match="no file of keys"):
        Keys(path).all()


def test_the_commands_make_list_and_revoke(path, capsys):
    add = ["keys", "add", "ann", "--keys", str(path), "--role", "generate", "--role", "metrics", "--priority", "3"]
    assert run(add) == DONE
    text = capsys.readouterr().out.strip()
    key = Keys(path).find(text)
    assert key.roles == (Role.GENERATE, Role.METRICS)
    assert run(["keys", "list", "--keys", str(path), "--json"]) == DONE
    (told,) = json.loads(capsys.readouterr().out)["keys"]
    assert told["name"] == "ann"
    assert "digest" not in told
    assert run(["keys", "revoke", key.id, "--keys", str(path)]) == DONE
    assert run(["keys", "list", "--keys", str(path)]) == DONE
    assert "'ann'  generate+metrics  priority up to 3, revoked" in capsys.readouterr().out
    assert run(["keys", "add", "ann", "--keys", str(path), "--priority", "101"]) == USER_ERROR
    assert "priority" in capsys.readouterr().err
