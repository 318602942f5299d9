"""Help that names arguments as the manual pages of other commands do."""

from typing import Any

from typer.core import TyperArgument, TyperCommand


class PlainArgument(TyperArgument):
    """An argument by its name alone: `PICTURE...`, in brackets where it may be left out; no name of a Python type."""

    def display_type_rich(self, ctx: Any) -> str | None:
        """Nothing: the name says what is taken."""
        return None

    def get_usage_pieces(self, ctx: Any) -> list[str]:
        """The name, as the usage line has it."""
        return [self.display_name_raw if self.required else f"[{self.display_name_raw}]"]


class PlainCommand(TyperCommand):
    """A command whose arguments are `PlainArgument`s: `app.command(cls=PlainCommand)`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for parameter in self.params:
            if isinstance(parameter, TyperArgument):
                # Typer makes the arguments itself, of a class that it lets nobody choose.
                parameter.__class__ = PlainArgument
