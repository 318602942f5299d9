"""TWIG: two-step diffusion that keeps a picture's meaning and leaves its source's shape.

A public name is imported when it is first asked for, so that `import twig` costs nothing; `__init__.pyi` lists them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
