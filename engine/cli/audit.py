"""The commands of `twig audit`."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ..api.reading import read_stdin
from . import actions

audit_app = typer.Typer(no_args_is_help=True, help="The log of what was generated: verify, search, export, forget.")


class Form(StrEnum):
    """What an export is written as."""

    JSONL = "jsonl"
    CSV = "csv"


LogArgument = Annotated[str, typer.Argument(help="The log's file, or the URL of its database.")]
RootOption = Annotated[Path | None, typer.Option(help="Folder that manifests are named from; else the log's own.")]
PromptOption = Annotated[str | None, typer.Option(help="Lines of exactly this prompt; - reads it from stdin.")]
PictureModelOption = Annotated[str | None, typer.Option("--model", help="Lines of the model whose SHA-256 begins so.")]
VerdictOption = Annotated[str | None, typer.Option(help="Lines with this verdict.")]
NearestOption = Annotated[str | None, typer.Option(help="Lines of pictures nearest to the registered work of this id.")]
SinceOption = Annotated[datetime | None, typer.Option(help="Lines from this time on, as of this machine's zone.")]
UntilOption = Annotated[datetime | None, typer.Option(help="Lines before this time.")]
LineOption = Annotated[
    list[int] | None, typer.Option(metavar="NUMBER", help="The line of this number; may be repeated.")
]

DEFAULT_LOG = "out/audit.jsonl"


@dataclass(frozen=True)
class Wanted:
    """Lines that a user asks for; those that agree with everything given."""

    prompt: str | None
    model: str | None
    verdict: str | None
    nearest: str | None
    since: datetime | None
    until: datetime | None
    lines: frozenset[int] | None


@audit_app.command()
def verify(
    log: LogArgument = DEFAULT_LOG,
    head: Annotated[str | None, typer.Option(help="A head that was kept elsewhere, as `twig audit head` said.")] = None,
    manifests: Annotated[bool, typer.Option(help="Also compare the manifests that the lines name.")] = True,
    root: RootOption = None,
) -> int:
    """Find every line that was edited, deleted, inserted, moved, repeated or cut off, and name it.

    Exits with status 1 where anything is wrong.
    """
    return actions.verify_log(log, root, head, manifests)


@audit_app.command()
def search(
    log: LogArgument = DEFAULT_LOG,
    prompt: PromptOption = None,
    model: PictureModelOption = None,
    verdict: VerdictOption = None,
    nearest: NearestOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    line: LineOption = None,
) -> int:
    """Print the lines that agree with every option."""
    return actions.search_log(log, _wanted(prompt, model, verdict, nearest, since, until, line))


@audit_app.command()
def export(
    log: LogArgument = DEFAULT_LOG,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File to write; else stdout.")] = None,
    form: Annotated[Form, typer.Option("--format", help="What to write it as.")] = Form.JSONL,
    prompt: PromptOption = None,
    model: PictureModelOption = None,
    verdict: VerdictOption = None,
    nearest: NearestOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    line: LineOption = None,
) -> int:
    """Write the lines that agree with every option, all of them without any, for other programs."""
    return actions.export_log(log, _wanted(prompt, model, verdict, nearest, since, until, line), form, out)


@audit_app.command()
def forget(
    log: LogArgument = DEFAULT_LOG,
    reason: Annotated[str | None, typer.Option(help="Why, for the line that says so; it is never erased.")] = None,
    only_say: Annotated[bool, typer.Option("--dry-run", help="Only say which lines.")] = False,
    prompt: PromptOption = None,
    model: PictureModelOption = None,
    verdict: VerdictOption = None,
    nearest: NearestOption = None,
    since: SinceOption = None,
    until: UntilOption = None,
    line: LineOption = None,
    root: RootOption = None,
) -> int:
    """Erase what leads back to the requests of some lines, with manifests and pictures, and keep the chain whole.

    What is left of a line is its time, verdict, scores, rule and model. A further line says which were erased.
    """
    wanted = _wanted(prompt, model, verdict, nearest, since, until, line)
    return actions.forget_lines(log, root, wanted, reason, only_say)


@audit_app.command()
def head(log: LogArgument = DEFAULT_LOG) -> int:
    """Print the number and digest of the last line, to be kept where nobody who can change the log can reach it."""
    return actions.print_head(log)


def _wanted(
    prompt: str | None,
    model: str | None,
    verdict: str | None,
    nearest: str | None,
    since: datetime | None,
    until: datetime | None,
    lines: list[int] | None,
) -> Wanted:
    """What the options ask for; a prompt of - is read from stdin."""
    if prompt == "-":
        prompt = read_stdin().removesuffix("\n")
    return Wanted(prompt, model, verdict, nearest, since, until, frozenset(lines) if lines else None)
