"""Attention: all blocks of keys, a tenth of them, and one query with a cache."""

import numpy as np

import prunus as pr
from prunus._dtypes import as_dtype
from prunus.pruning.policies import TopK

LENGTH = 2048


class Attention:
    params = (["float32", "bfloat16"],)
    param_names = ("dtype",)

    def setup(self, dtype):
        rng = np.random.default_rng(3)
        kind = as_dtype(dtype)
        self.q, self.k, self.v = (
            rng.standard_normal((1, 8, LENGTH, 64), np.float32).astype(kind) for _ in range(3)
        )

    def time_causal(self, *_):
        pr.attention(self.q, self.k, self.v, causal=True)

    def time_pruned(self, *_):
        pr.attention(self.q, self.k, self.v, causal=True, prune=TopK(fraction=0.1))

    def time_decode(self, *_):
        pr.attention(self.q[..., -1:, :], self.k, self.v, causal=True)

    def peakmem_causal(self, *_):
        pr.attention(self.q, self.k, self.v, causal=True)
