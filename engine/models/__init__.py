"""A checkpoint's files as components: layouts, networks, attention, adapters, tensors, segmenters.

What only a model needs whose networks PyTorch runs, diffusers and transformers with it, is imported when it is asked
for: by the names in `__init__.pyi`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
