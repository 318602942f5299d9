"""What the engine's own tests are given: results made by hand, a certificate and its key."""

import importlib.util
from pathlib import Path
from types import ModuleType


def _fixtures(place: str) -> ModuleType:
    path = Path(__file__).parents[1] / place / "conftest.py"
    spec = importlib.util.spec_from_file_location(f"fixtures_of_{path.parent.name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_engine, _records = _fixtures("engine"), _fixtures("engine/records")
make_result, model, explanation = _engine.make_result, _engine.model, _engine.explanation
signing = _records.signing
