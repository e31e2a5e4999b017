"""Files larger than the budget of memory: reductions, random rows, products and writing in place."""

import tempfile
from pathlib import Path

import numpy as np

import prunus as pr

MiB = 1 << 20


class Array:
    params = ([64, 256],)
    param_names = ("MiB",)

    def setup(self, size):
        self.folder = tempfile.TemporaryDirectory(prefix="prunus-")
        path = Path(self.folder.name) / "a.npy"
        rows = size * MiB // (64 << 10)
        self.a = pr.paged.empty((rows, 16384), np.float32, path, budget=16 * MiB)
        rng = np.random.default_rng(7)
        for start in range(0, rows, 64):
            part = rng.random((min(64, rows - start), 16384), np.float32)
            self.a[start : start + len(part)] = part
        self.a.flush()
        self.rows = rng.permutation(rows)[: rows // 8]
        self.x = rng.standard_normal((16384, 16), np.float32)

    def teardown(self, size):
        self.a.close()
        self.folder.cleanup()

    def time_sum(self, size):
        self.a.sum()

    def time_mean_of_columns(self, size):
        self.a.mean(axis=0)

    def time_random_rows(self, size):
        self.a[self.rows]

    def time_product(self, size):
        self.a @ self.x

    def time_add_in_place(self, size):
        np.add(self.a, 1, out=self.a)
        self.a.flush()

    def peakmem_sum(self, size):
        self.a.sum()


class Blocks:
    def setup(self):
        self.folder = tempfile.TemporaryDirectory(prefix="prunus-")
        path = Path(self.folder.name) / "w.safetensors"
        rng = np.random.default_rng(7)
        w = pr.BSR.from_dense(rng.standard_normal((4096, 4096), np.float32), blocksize=64, density=0.5)
        pr.save(path, {"w": w})
        self.f = pr.open(path, budget=4 * MiB)
        self.x = rng.standard_normal((4096, 64), np.float32)

    def teardown(self):
        self.f.close()
        self.folder.cleanup()

    def time_product(self):
        self.f["w"] @ self.x
