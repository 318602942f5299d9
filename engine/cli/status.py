"""Exit codes of the commands."""

DONE, DIFFERS, USER_ERROR, REFUSED = 0, 1, 2, 3
UNEXPECTED, INTERRUPTED, BROKEN_PIPE, TERMINATED = 70, 130, 141, 143

MEANINGS = {
    DONE: "done; every picture was drawn, whatever the verdict",
    DIFFERS: "a check found something wrong, a replay differs, or a file was passed over",
    USER_ERROR: "what was asked for cannot be served, or a picture failed",
    REFUSED: "a picture was refused, with --fail-on-refused",
    UNEXPECTED: "an error of Twig's own; --debug shows where",
    INTERRUPTED: "Ctrl-C; what was finished is kept",
    BROKEN_PIPE: "whoever read stdout stopped; what was finished is kept",
    TERMINATED: "SIGTERM; what was finished is kept",
}

EPILOG = "\n\n".join(["Exit status", *(f"{status}: {meaning}" for status, meaning in MEANINGS.items())])
"""What help says of them."""
