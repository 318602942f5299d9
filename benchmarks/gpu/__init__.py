"""Everything that needs a GPU to be known, in ten minutes: `python -m twig.benchmarks.gpu`."""
