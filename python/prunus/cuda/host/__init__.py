"""The engine's operations on NumPy's arrays, one module a group: upload, run, download."""
