"""What runs the networks: PyTorch, ONNX Runtime, OpenVINO, TensorRT, behind one protocol.

How PyTorch runs the blocks of diffusers otherwise is imported when it is asked for: by the names in `__init__.pyi`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
