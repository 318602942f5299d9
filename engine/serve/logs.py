"""Logs of a server: a JSON object a line, without prompts, keys or pictures."""

import json
import logging
import traceback
from datetime import UTC, datetime
from typing import Any

access = logging.getLogger("twig.access")
"""A line for each request that was answered."""

FIELDS = "fields"
"""Attribute of a log record that holds further members of its line."""


class JsonFormatter(logging.Formatter):
    """Formats a log record as a JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """One line: time, level, logger, message, the record's own fields, where it was raised if it was."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info is not None and record.exc_info[0] is not None:
            # An exception's message may quote what a client sent; where it arose may be told.
            line["error"] = record.exc_info[0].__name__
            line["at"] = [f"{f.filename}:{f.lineno} {f.name}" for f in traceback.extract_tb(record.exc_info[2])]
        return json.dumps(line, ensure_ascii=False, default=str)


def log_as_json(level: int = logging.INFO) -> None:
    """Make every logger of the process write such lines to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(handlers=[handler], level=level, force=True)
    logging.captureWarnings(True)


def answered(**fields: Any) -> None:
    """Log a request that was answered, or left."""
    access.info("%s %s %s", fields["method"], fields["route"], fields["status"], extra={FIELDS: fields})
