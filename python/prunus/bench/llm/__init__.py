"""Language models on disk beside what bounds them: ``python -m prunus bench llm``.

The modules are small and in the order of use: `words` (texts that every Python has), `worker` (one fresh
process for each run), `tasks` (what is timed), `mapped` (the same model by memory maps), `peers` (llama.cpp
and transformers), `found` (what was found and wanted), `decode`, `memory`, `curve` and `disk` (the
comparisons), `run` (all of them).
"""
