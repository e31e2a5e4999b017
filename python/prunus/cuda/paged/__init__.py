"""Operands on disk for a GPU: read in the file's order, sent ahead of the kernels that use them."""
