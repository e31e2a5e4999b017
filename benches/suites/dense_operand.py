"""Products of a block-sparse and a dense matrix: W @ X (dsd), x @ W.T and x @ W (dds)."""

from .operands import BLOCKS, COLUMNS, DENSITIES, DTYPES, SIZE, normal, weights


class _Product:
    params = (DTYPES, BLOCKS, DENSITIES, COLUMNS)
    param_names = ("dtype", "block", "density", "columns")

    def setup(self, dtype, block, density, columns):
        self.w = weights(dtype, block, density)
        self.packed = self.w.pack()
        self.x = normal(SIZE, columns, dtype, 1)
        self.tokens = normal(columns, SIZE, dtype, 1)


class Dsd(_Product):
    def time_constructed(self, *_):
        self.w @ self.x

    def time_packed(self, *_):
        self.packed @ self.x

    def peakmem_packed(self, *_):
        self.packed @ self.x


class Dds(_Product):
    def time_transposed_constructed(self, *_):
        self.tokens @ self.w.T

    def time_transposed_packed(self, *_):
        self.tokens @ self.packed.T

    def time_packed(self, *_):
        self.tokens @ self.packed

    def peakmem_transposed_packed(self, *_):
        self.tokens @ self.packed.T
