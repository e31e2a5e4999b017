"""Products with a block-sparse result: dense @ dense at chosen blocks (sdd), sparse @ sparse (ssd)."""

import prunus as pr

from .operands import BLOCKS, DENSITIES, DTYPES, SIZE, normal, weights


class Sdd:
    params = (DTYPES, BLOCKS, DENSITIES, [64, 512])
    param_names = ("dtype", "block", "density", "inner")

    def setup(self, dtype, block, density, inner):
        self.a = normal(SIZE, inner, dtype, 1)
        self.b = normal(inner, SIZE, dtype, 2)
        self.mask = weights(dtype, block, density).mask

    def time_sddmm(self, *_):
        pr.sddmm(self.a, self.b, self.mask)

    def peakmem_sddmm(self, *_):
        pr.sddmm(self.a, self.b, self.mask)


class Ssd:
    params = (DTYPES, BLOCKS, [0.02, 0.1])
    param_names = ("dtype", "block", "density")

    def setup(self, dtype, block, density):
        self.a = weights(dtype, block, density, 1)
        self.b = weights(dtype, block, density, 2)

    def time_matmul(self, *_):
        self.a @ self.b

    def peakmem_matmul(self, *_):
        self.a @ self.b
