"""What can go wrong, as a user meets it. Every message says what was wrong, which value, and what would be right."""


def printable(text: str) -> str:
    """`text` with every character escaped that is no printable one: it begins no line and moves no cursor."""
    return "".join(each if each.isprintable() else _escaped(each) for each in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


class TwigError(Exception):
    """Base of every error the engine raises on purpose. Its text is printable, whatever names and values it quotes."""

    def __str__(self) -> str:
        """One printable line."""
        return printable(super().__str__())


class InvalidRequestError(TwigError, ValueError):
    """A request that this model cannot serve: size, prompt length, picture, mask or setting."""


class CheckpointError(TwigError):
    """A checkpoint that cannot be loaded: unknown layout, missing part, pickled weights or parts that do not fit."""


class ForeignFileError(InvalidRequestError, CheckpointError):
    """A file from outside that is not what it was given for: no regular file, too large, no text, or of wrong values.

    It is both of its bases, for such a file belongs to a request, to a model or to both.
    """


class BackendError(TwigError):
    """A backend that cannot run here or with these settings, or an artifact it cannot take."""


class NonFiniteLatentError(TwigError):
    """A denoising run left NaN or infinity in its latent."""


class EngineBusyError(TwigError):
    """The waiting queue is full; the request was not accepted."""


class EngineClosedError(TwigError):
    """The engine was shut down and accepts nothing more."""


class RecordError(TwigError):
    """A record that cannot be kept or read: a log that is not ours to write, was altered, or is of another kind."""


class UnreachableError(RecordError):
    """A database or a storage that cannot be used now: locked, full, restarted, gone; the same may succeed later."""


class TwigWarning(UserWarning):
    """What is served otherwise than it may look: said once, by name, and nothing fails."""
