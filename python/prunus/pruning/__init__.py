"""Dynamic pruning: what is dead for an input is found while the call runs, and costs nothing from then on."""
