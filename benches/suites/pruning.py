"""Feed-forward layers that leave dead units alone: time and peak memory by dtype, rows and live share."""

import numpy as np

import prunus as pr
from prunus._dtypes import as_dtype


class Layer:
    params = (["float32", "bfloat16"], [1, 16, 128], [0.1, 0.5, 1.0])
    param_names = ("dtype", "rows", "live")

    def setup(self, dtype, rows, live):
        rng = np.random.default_rng(7)
        kind = as_dtype(dtype)
        up, down = (rng.standard_normal((2048, 1024), np.float32).astype(kind) for _ in range(2))
        self.layer = pr.FFN.pack(up, np.ascontiguousarray(down.T))
        self.x = rng.standard_normal((rows, 1024), np.float32).astype(kind)
        self.policy = pr.TopK(fraction=live)
        self.known = pr.Fixed(rng.random((rows, 2048)) < live)

    def time_decided_after_up(self, dtype, rows, live):
        self.layer(self.x, prune=self.policy)

    def time_foreseen(self, dtype, rows, live):
        self.layer(self.x, prune=self.known)

    def peakmem_foreseen(self, dtype, rows, live):
        self.layer(self.x, prune=self.known)


class Traced:
    def setup(self):
        rng = np.random.default_rng(7)
        up, down = (rng.standard_normal((1024, 512), np.float32) for _ in range(2))
        self.layer = pr.FFN.pack(up, np.ascontiguousarray(down.T))
        self.x = rng.standard_normal((4, 512), np.float32)

    def time_off(self):
        self.layer(self.x, prune=pr.Threshold(0.0))

    def time_on(self):
        with pr.trace():
            self.layer(self.x, prune=pr.Threshold(0.0))
