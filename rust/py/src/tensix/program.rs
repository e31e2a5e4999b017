//! Chips, programs and kernels written in Python.
