"""From a training run to a bundle: ONNX graphs, checked against torch before anything is written."""
