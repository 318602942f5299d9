"""What a picture is too close to: gate, measures, alignment, registered works, verdict.

What reads models of transformers is imported when it is asked for: by the names in `__init__.pyi`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
