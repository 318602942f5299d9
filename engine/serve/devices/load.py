"""What a device tells its front, time and again, and nobody else."""

LOAD = "/internal/load"
"""Its path."""
