"""Networks to ONNX, OpenVINO and TensorRT: what backends run, where it is kept, and how true it is to PyTorch."""
