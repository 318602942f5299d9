"""Networks to ONNX, OpenVINO and TensorRT: what backends run, where it is kept, and how true it is to PyTorch.

What writes graphs is imported when it is asked for: by the names in `__init__.pyi`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
