"""asv suites: time and peak memory by operation, dtype, block, density and number of columns."""
