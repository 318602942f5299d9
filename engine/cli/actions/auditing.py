"""What the commands of `twig audit` do: each prints what it found and returns the process's exit code."""

import csv
import io
import json
import sys
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from ...api.errors import InvalidRequestError, printable
from ...api.reading import quoted
from ...api.writing import write_whole
from ...records.audit import AuditLog, AuditRecord, parse_head
from ...records.stores import Query
from ..audit import Wanted
from ..status import DIFFERS, DONE
from .speaking import say, say_line

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def verify_log(place: str, root: Path | None, kept: str | None, manifests: bool) -> int:
    """Say line by line what is wrong with the log at `place`, a file or a URL."""
    log = AuditLog(place, root=root)
    found = log.verify(parse_head(kept) if kept else None, manifests)
    for finding in found.findings:
        say("wrong", finding)
    if found.before:
        say("before", f"{found.before} lines from before the chain, held by the digest that its first line carries")
    if found.erased:
        say("erased", f"line {', '.join(map(str, found.erased))}, as the log says")
    state = f"NOT whole: {len(found.findings)} findings" if found.findings else "whole"
    say("audit log", f"{log.path}, {found.lines} lines, {state}")
    say("head", log.head() or "none")
    return DIFFERS if found.findings else DONE


def search_log(place: str, wanted: Wanted) -> int:
    """Print the lines that are wanted, one a line."""
    log = AuditLog(place)
    for record in log.search(_query(log, wanted)):
        said = [f"{record.number}", f"{record.time:%Y-%m-%dT%H:%M:%SZ}", record.event, record.verdict or "-"]
        said.append(quoted(record.manifest) if record.manifest else "erased" if record.verdict else "-")
        said += [f"nearest {quoted(record.nearest)}"] if record.nearest else []
        said += [f"lines {', '.join(map(str, record.forgotten))}"] if record.forgotten else []
        said += [quoted(record.reason)] if record.reason else []
        say_line("  ".join(said))
    return DONE


def export_log(place: str, wanted: Wanted, form: str, out: Path | None) -> int:
    """Write the lines that are wanted as JSON lines or CSV, to a file of the user's alone or to stdout."""
    log = AuditLog(place)
    records = log.search(_query(log, wanted))
    text = _as_csv(records) if form == "csv" else "".join(f"{_values(record)}\n" for record in records)
    if out is None:
        sys.stdout.write(text)
    else:
        write_whole(out, text.encode(), private=True)
        say("written", out)
    return DONE


def forget_lines(place: str, root: Path | None, wanted: Wanted, reason: str | None, only_say: bool) -> int:
    """Erase what is wanted, or only say what would be erased."""
    log = AuditLog(place, root=root)
    query = _query(log, wanted)
    if query == Query():
        raise InvalidRequestError("nothing says what to forget; name a --line, a --prompt or a time")
    if only_say:
        return search_log(place, wanted)
    done = log.forget(query, reason)
    if not done.line:
        say_line("nothing that could be erased was found")
        return DONE
    for path in done.files:
        say("removed", path)
    say("erased", f"line {', '.join(map(str, done.numbers))}, which line {done.line} says")
    return DONE


def print_head(place: str) -> int:
    """Print where a log ends, to be kept where nobody who can change the log can reach it."""
    log = AuditLog(place)
    found = log.head()
    if found is None:
        raise InvalidRequestError(f"{log.path} has no head: nothing was written to it yet")
    say_line(found)
    return DONE


def _query(log: AuditLog, wanted: Wanted) -> Query:
    """What is wanted, as the log keeps it; a time without a zone is of this machine's."""
    return Query(
        numbers=wanted.lines,
        prompt_hmac=None if wanted.prompt is None else log.prompt_hmac(wanted.prompt),
        model=wanted.model,
        verdict=wanted.verdict,
        nearest=wanted.nearest,
        since=_zoned(wanted.since),
        until=_zoned(wanted.until),
    )


def _zoned(time: datetime | None) -> datetime | None:
    """A time of this machine's zone."""
    try:
        return None if time is None else time.astimezone()
    except (ValueError, OverflowError) as error:  # the first and the last day there are, in some zones
        raise InvalidRequestError(f"{time} is a time that no line can have") from error


def _values(record: AuditRecord) -> str:
    values = json.loads(record.model_dump_json())
    return json.dumps({name: value for name, value in values.items() if value is not None})


def _as_csv(records: Iterable[AuditRecord]) -> str:
    """One row a line; what is no text or number is JSON, what a spreadsheet would run is quoted, all is printable."""
    table = io.StringIO()
    writer = csv.DictWriter(table, list(AuditRecord.model_fields))
    writer.writeheader()
    for record in records:
        writer.writerow({name: _cell(value) for name, value in json.loads(record.model_dump_json()).items()})
    return table.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, str):
        return printable(f"'{value}" if value.startswith(_FORMULA) else value)
    return json.dumps(value) if isinstance(value, list | dict) else value
