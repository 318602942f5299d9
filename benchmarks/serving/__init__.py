"""What a server adds and holds: `python -m twig.benchmarks.serving`."""
