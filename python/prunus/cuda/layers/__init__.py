"""Public operations on tensors of a GPU, as the package has them for arrays of NumPy."""
