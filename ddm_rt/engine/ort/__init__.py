"""ONNX Runtime: its sessions on either kind of device, and the engine that runs them on a CUDA device."""
