"""What one call costs where there is next to nothing to multiply."""

import operator

import numpy as np

import prunus as pr


class Overhead:
    def setup(self):
        rng = np.random.default_rng(64)
        self.a = rng.standard_normal((64, 64), np.float32)
        self.w = pr.BSR.from_dense(self.a, blocksize=(32, 32), density=0.25)
        self.packed = self.w.pack()

    def time_constructed(self):
        operator.matmul(self.w, self.a)

    def time_packed(self):
        operator.matmul(self.packed, self.a)

    def time_numpy(self):
        operator.matmul(self.a, self.a)
