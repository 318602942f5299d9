"""Results made by hand are shared with the engine's own tests."""

import importlib.util
from pathlib import Path

_spec = importlib.util.spec_from_file_location("_engine_fixtures", Path(__file__).parents[1] / "engine/conftest.py")
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
make_result, model, explanation = _module.make_result, _module.model, _module.explanation
