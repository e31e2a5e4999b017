"""The CUDA engine: block-sparse products and dynamic pruning on GPUs, in Triton.

Nothing of torch or Triton is imported before a device is asked for.
"""

__all__: list[str] = []
