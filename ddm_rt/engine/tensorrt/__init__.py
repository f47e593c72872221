"""TensorRT in two flavours: building plans, and running them. Needs no torch."""
