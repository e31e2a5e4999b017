"""The CUDA engine beside cuBLAS, torch's block-sparse kernels, cuSPARSE, grouped products and FlexAttention.

Sections make :class:`Case` and :class:`Entry`, a :class:`Bench` checks and times them, and what is left are
:class:`Row`: everything that is printed, held against the aims, drawn and told on the page of runs comes from
rows, so that it can be made again from a CSV file.
"""
