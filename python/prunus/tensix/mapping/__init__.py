"""How operations become programs on a chip: operands as tiles, texts of verbs, pieces of work for cores."""
