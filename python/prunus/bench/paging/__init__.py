"""Paging beside the drive's own rate: ``python -m prunus bench paging``.

The modules are small and in the order of use: `figures` (medians and intervals of paired ratios), `sample`
(what one run found), `data` (files of random values), `fio` and `probe` (the drive's own rate), `meter`
(memory, processor and disk of a process), `tasks` and `rivals` (what is timed), `worker` (one fresh process
for each run), `limits` (memory cgroups), `revisits` (caches that are simulated), `cases` (who is held
against whom), `rounds` (pairs next to each other), `report` (tables).
"""
