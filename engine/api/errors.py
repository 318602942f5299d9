"""What can go wrong, as a user meets it. Every message says what was wrong, which value, and what would be right."""


class TwigError(Exception):
    """Base of every error the engine raises on purpose."""


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


class TwigWarning(UserWarning):
    """What is served otherwise than it may look: said once, by name, and nothing fails."""
