"""What the documents point at is there, their Python runs, and packages speak of themselves in the same words."""

import ast
import re
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("benchmarks", "engine", "export", "kernels")
DOCUMENTS = [*ROOT.glob("*.md"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(path):
    return str(path.relative_to(ROOT))


def anchors(document):
    """Names that GitHub gives to the headings of a document."""
    headings = HEADING.findall(re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dangling(document):
    """Links within the repository that lead nowhere."""
    for target in LINK.findall(document.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        path = document.parent / unquote(place) if place else document
        if not path.exists() or (anchor and anchor not in anchors(path)):
            yield target


def words(text):
    return " ".join(text.split())


def first_paragraph(package):
    return words((ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or "").split("\n\n")[0])


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_link_and_picture_is_there(document):
    assert list(dangling(document)) == []


def run_python(document, folder, monkeypatch):
    """Run every block of Python of a document as a program of its own, in `folder`."""
    monkeypatch.chdir(folder)
    for block in PYTHON.findall(document.read_text()):
        exec(compile(block, str(document), "exec"), {"__name__": "__main__"})


def test_the_readmes_python_draws_what_it_says(tmp_path, monkeypatch, capsys):
    run_python(ROOT / "README.md", tmp_path, monkeypatch)
    assert {path.name for path in tmp_path.iterdir()} == {"1.png", "2.png"}
    assert capsys.readouterr().out.count("'ssim_masked':") == 2


def test_the_engines_python_tells_a_request_to_its_end(tmp_path, monkeypatch, capsys):
    run_python(ROOT / "engine" / "README.md", tmp_path, monkeypatch)
    states = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert states[0] == "queued"
    assert states[-1] in ("accepted", "review", "refused")


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_module_that_is_run_is_there(document):
    for module in re.findall(r"python -m (twig[\w.]*)", document.read_text()):
        assert find_spec(module) is not None, module


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_says_the_same_of_itself_in_its_readme(room):
    assert first_paragraph(ROOT / room) in words((ROOT / room / "README.md").read_text())


def test_the_table_of_wings_says_what_they_say_of_themselves():
    table = dict(re.findall(r"^\| `(\w+)/` \| (.+) \|$", (ROOT / "engine" / "README.md").read_text(), re.MULTILINE))
    packages = {path.parent for path in (ROOT / "engine").glob("*/__init__.py")}
    assert table.keys() == {package.name for package in packages}
    for package in packages:
        assert table[package.name].startswith(first_paragraph(package).removesuffix(".")), package.name


def test_every_room_of_the_readme_is_one_and_has_a_readme():
    assert set(re.findall(r"^\| \[(\w+)/\]", (ROOT / "README.md").read_text(), re.MULTILINE)) == set(ROOMS)
