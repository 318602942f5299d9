"""Exit codes of the commands."""

DONE, DIFFERS, USER_ERROR, INTERRUPTED = 0, 1, 2, 130
"""All was judged; a replay is not identical; the request cannot be served or failed; Ctrl-C."""
