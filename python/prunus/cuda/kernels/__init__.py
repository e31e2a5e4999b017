"""Triton kernels, one module an operation. They know strides and tiles, and nothing of who calls them.

Whatever differs between calls with one compiled kernel is data: masks and patterns are never part of what is
compiled. Offsets into operands are 64-bit.
"""
