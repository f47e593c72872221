"""torch, on a CUDA device or the CPU, with the weights that lie in a bundle's graphs.

The only sub-package of this room that imports torch or the model.
"""
