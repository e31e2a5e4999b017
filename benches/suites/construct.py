"""Ways to make a block-sparse array, and back."""

import prunus as pr

from .operands import BLOCKS, DENSITIES, DTYPES, SIZE, normal, weights


class Construct:
    params = (DTYPES, BLOCKS, DENSITIES)
    param_names = ("dtype", "block", "density")

    def setup(self, dtype, block, density):
        self.dense = normal(SIZE, SIZE, dtype)
        self.w = weights(dtype, block, density)

    def time_from_dense(self, dtype, block, density):
        pr.BSR.from_dense(self.dense, blocksize=(block, block), density=density)

    def time_from_triple(self, *_):
        pr.BSR((self.w.data, self.w.indices, self.w.indptr), shape=self.w.shape)

    def time_pack(self, *_):
        self.w.pack()

    def time_toarray(self, *_):
        self.w.toarray()

    def peakmem_from_dense(self, dtype, block, density):
        pr.BSR.from_dense(self.dense, blocksize=(block, block), density=density)

    def peakmem_pack(self, *_):
        self.w.pack()
