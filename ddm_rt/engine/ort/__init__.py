"""ONNX Runtime: sessions that are run by IO binding, on the CPU and on a CUDA device."""
