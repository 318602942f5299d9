"""`python -m twig`: the command `twig`, of the Python that runs it."""

from .engine.cli.main import main

if __name__ == "__main__":
    main()
