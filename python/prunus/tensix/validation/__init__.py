"""The simulator held against published measurements: rows of CSV files run as programs.

`rows` reads and types the files, `run` runs rows on threads, `groups` tells how far predictions are off,
`plot` draws it.
"""
