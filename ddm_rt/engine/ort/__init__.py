"""ONNX Runtime on a CUDA device: its sessions, run by IO binding, and the engine over them."""
