"""What runs the networks: PyTorch, ONNX Runtime, OpenVINO, TensorRT, behind one protocol."""
