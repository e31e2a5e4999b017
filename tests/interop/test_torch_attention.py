"""Attention beside torch's own."""

import numpy as np
import pytest

import prunus as pr
from prunus.pruning.policies import TopK

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_same_as_torch(causal, heads, groups, dtype):
    torch.manual_seed(5)
    q = torch.randn(2, heads, 130, 48, dtype=dtype)
    k, v = (torch.randn(2, groups, 130, 48, dtype=dtype) for _ in range(2))
    share = heads // groups
    expected = torch.nn.functional.scaled_dot_product_attention(
        q, k.repeat_interleave(share, 1), v.repeat_interleave(share, 1), is_causal=causal
    )
    got = pr.attention(q.numpy(), k.numpy(), v.numpy(), causal=causal)
    limit = 1e-12 if dtype == torch.float64 else 1e-5
    np.testing.assert_allclose(got, expected.numpy(), atol=limit)
    kept = pr.attention(
        q.numpy(), k.numpy(), v.numpy(), causal=causal, prune=TopK(fraction=1.0), blocksize=32
    )
    np.testing.assert_allclose(kept, expected.numpy(), atol=limit)


def test_a_mask_of_blocks_is_torchs_mask():
    torch.manual_seed(6)
    q, k, v = (torch.randn(3, 96, 32) for _ in range(3))
    mask = pr.BlockMask.random((3, 96, 96), 16, 0.5, 7) | pr.BlockMask.block_diagonal((3, 96, 96), 16)
    expected = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=torch.from_numpy(mask.toarray())
    )
    got = pr.attention(q.numpy(), k.numpy(), v.numpy(), mask=mask, blocksize=16)
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-5)
