"""Twig beside other runtimes of Stable Diffusion on the same weights: `python -m twig.benchmarks.peers`."""
