"""Elementwise and row-wise kernels of the engine: one launch an operation on CUDA, plain torch everywhere else.

Each op has a module `<op>.py` with its definition in plain torch (`<function>_reference`: any device, any
float dtype) and the function that picks, and a module `<op>_triton.py` that only CUDA imports.

All matrices are (M rows, width) with dense columns and any row stride, so views of wider buffers work as
inputs and as `out`. Math is in fp32 (fp64 for fp64 tensors, which always take the plain definition) and a
result is rounded once, to the dtype of its input, unless the op says otherwise. Launches go to the current device.
"""

from luthier.fast.kernels.choice import backend

__all__ = ["backend"]
