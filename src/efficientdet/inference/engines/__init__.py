"""What runs the network: torch, ONNX Runtime, OpenVINO, TensorRT, and exported files."""
