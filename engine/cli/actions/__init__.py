"""What the commands do. Each action is imported when its command runs; `__init__.pyi` says from where.

The modules that declare commands stand above and import nothing heavy, so that help and mistakes cost no start of the
engine.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
