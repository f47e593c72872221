"""Kernel tests run in Triton's interpreter where there is no CUDA device.

Triton reads the variable when it is imported and when a kernel is defined, so it is set before any test module is
loaded. A test that compiles does so in a process of its own, without the variable.
"""

import os

try:
    import torch
except ModuleNotFoundError:
    HAS_CUDA = False
else:
    HAS_CUDA = torch.cuda.is_available()

if not HAS_CUDA:
    os.environ["TRITON_INTERPRET"] = "1"
