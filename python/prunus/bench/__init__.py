"""Side-by-side comparisons with other libraries: ``python -m prunus bench peers``.

The modules are small and in the order of use: `timing` (interleaved rounds), `machine` (threads of every
library, the name of the CPU), `peers` (who takes part and how each is called), `run` (the plan of a whole
comparison), `report` and `targets` (tables), `files` (CSV and plot).
"""
