"""What an audit log holds, and what is found to be wrong with it."""

import json
from pathlib import Path
from typing import Any

from twig.engine.records.audit import AuditLog


def lines(path: Path) -> list[dict[str, Any]]:
    """Lines of a log in a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def found(path: Path, **options: Any) -> list[str]:
    """Findings of its verification, as sentences."""
    return [str(finding) for finding in AuditLog(path).verify(**options).findings]
