"""What everybody may know: requests, results, presets, rules, calibration, errors, guarded files.

What a preset stands for is heavier than its name and is imported when it is asked for; `__init__.pyi` says from where.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
