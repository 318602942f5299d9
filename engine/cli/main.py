"""The command `twig`. Other parts of the package, and other packages, add commands by entry points."""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated

import typer
from pydantic import ValidationError

from ..._version import __version__
from ..api.errors import TwigError
from .audit import audit_app
from .calibrate import calibrate
from .generate import generate
from .inspect import inspect
from .interruption import Stop, terminated_as_interrupted
from .plain import PlainCommand
from .registry import registry_app
from .status import BROKEN_PIPE, DONE, EPILOG, INTERRUPTED, UNEXPECTED, USER_ERROR
from .warning import complain, warnings_told
from .words import findings, in_options

COMMANDS = "twig.commands"
"""Entry point group of further commands: each names a `typer.Typer`, which becomes the command of the entry's name."""

DEBUG = "--debug"
"""Word that may stand anywhere in a command line: show the traceback of what nobody thought of."""


def main() -> None:
    """Run the command line; the console script's entry."""
    status = run(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = status or BROKEN_PIPE
    if status == BROKEN_PIPE:  # what is left in the buffer has nowhere to go, and Python would say so
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def run(arguments: Sequence[str]) -> int:
    """Run the command line with `arguments`; return its exit code.

    What a user got wrong is one line on stderr, and so is what nobody thought of, unless `--debug` asks for more.
    """
    words, stop = [word for word in arguments if word != DEBUG], Stop()
    try:
        with warnings_told(), terminated_as_interrupted(stop):
            status = command_line()(words or ["--help"], prog_name="twig", standalone_mode=False) or DONE
        return stop.status if status == INTERRUPTED else status  # which Typer makes of an interrupt
    except KeyboardInterrupt:
        return stop.status
    except SystemExit as stopped:  # so end completions; and Typer, where nobody reads what it writes
        if isinstance(stopped.__context__, BrokenPipeError):
            return BROKEN_PIPE
        raise
    except ValidationError as error:
        message = findings(error)
    except typer.TyperException as error:
        message = in_options(error.format_message())
    except TwigError as error:
        message = in_options(str(error))
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except Exception as error:
        return _unexpected(error, shown=len(words) < len(arguments))
    if message:  # a command that was shown its help has no more to say
        complain(message)
    return USER_ERROR


def _unexpected(error: Exception, *, shown: bool) -> int:
    """Say that something went wrong that nobody thought of, where it did if `shown`; return the exit code."""
    if shown:
        traceback.print_exception(error)
    complain(f"an error of Twig's own, {type(error).__name__}: {error}{'' if shown else f'; {DEBUG} shows where'}")
    return UNEXPECTED


@cache
def command_line() -> typer.Typer:
    """All commands: this package's own, and those that entry points add."""
    app = typer.Typer(
        epilog=EPILOG,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(twig)
    app.command(cls=PlainCommand, epilog=EPILOG)(generate)
    app.command(cls=PlainCommand)(inspect)
    app.command()(calibrate)
    app.add_typer(registry_app, name="registry")
    app.add_typer(audit_app, name="audit")
    for entry in entry_points(group=COMMANDS):
        _add(app, entry)
    return app


def _print_version(asked: bool) -> None:
    if asked:
        print(f"twig {__version__}")
        raise typer.Exit


def twig(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Say which.")
    ] = False,
    debug: Annotated[bool, typer.Option(DEBUG, help="Show where an error of Twig's own arose; anywhere in a line.")] = (
        False
    ),
) -> None:
    """Two-step image generation that keeps a picture's meaning and leaves its source's shape."""


def _add(app: typer.Typer, entry: EntryPoint) -> None:
    """Add what `entry` names; where it cannot be loaded, a command that says why, so that the others still run."""
    try:
        found = entry.load()
        if not isinstance(found, typer.Typer):
            raise TypeError(f"{entry.value} is no typer.Typer")
    except Exception as error:
        reason = f"the command {entry.name!r} cannot be loaded: {type(error).__name__}: {error}"
        anything = {"ignore_unknown_options": True, "allow_extra_args": True}
        app.command(entry.name, help=f"Broken: {reason}.", context_settings=anything)(_refusing(reason))
    else:
        app.add_typer(found, name=entry.name)


def _refusing(reason: str) -> Callable[[], None]:
    def refuse() -> None:
        raise TwigError(reason)

    return refuse
