"""Solvers and guidance as tables of coefficients and rows, what a model's own scheduler stands for, and the row counts
that calls are padded to.

What asks diffusers' schedulers is imported when it is asked for: by the names in `__init__.pyi`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
