"""The numbers of a study as a file: what is not known is null, and what is no such file is refused by name."""

import json

import pytest

from findings import findings
from twig.engine.api.errors import ForeignFileError
from twig.engine.study.findings import FILE, Findings


def test_a_study_is_read_from_its_folder_or_its_file(tmp_path):
    told = findings()
    (tmp_path / FILE).write_text(told.model_dump_json())
    assert Findings.load(tmp_path) == Findings.load(tmp_path / FILE) == told


def test_what_is_not_known_is_null():
    preset = json.loads(findings(close=float("nan")).model_dump_json())["presets"][0]
    assert preset["close"] is None


@pytest.mark.parametrize(
    ("changes", "named"), [({"steps": 0}, "steps"), ({"works": "many"}, "works"), ({"prompt": "a star"}, "prompt")]
)
def test_what_is_no_study_is_refused_by_its_field(tmp_path, changes, named):
    (tmp_path / FILE).write_text(json.dumps(json.loads(findings().model_dump_json()) | changes))
    with pytest.raises(ForeignFileError, match=named):
        Findings.load(tmp_path)
