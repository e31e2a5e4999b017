"""Message passing on a graph, with the nodes that have nothing to say left out.

A layer of a graph convolution (Kipf and Welling 2017) is ``H' = relu(A @ H @ W)``: A is the adjacency with
loops, scaled by degrees. Two kinds of zeros cost a dense product its time. A itself is sparse: nodes are
put into an order of small bandwidth (reverse Cuthill-McKee), so that its entries gather in few blocks. And
a node without features sends nothing: where all nodes of a block are dead, the blocks of A that would read
them are left alone. Here one node speaks first, and each layer carries its news one edge further.

Graphs: Les Misérables (who appears with whom; Knuth 1993), Zachary's karate club (1977) and the Florentine
families (Padgett 1986) are real data that come with networkx. The larger one is generated: a ring of
cliques.
"""

from __future__ import annotations

import argparse
import time

import networkx as nx
import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import reverse_cuthill_mckee

import prunus as pr

LAYERS, FEATURES = 3, 16


def adjacency(graph: nx.Graph) -> csr_array:
    """Return D^-1/2 (A + I) D^-1/2 in an order of small bandwidth."""
    links = csr_array(nx.to_scipy_sparse_array(graph, weight=None, dtype=np.float64, format="csr"))
    order = reverse_cuthill_mckee(links, symmetric_mode=True)
    n = len(order)
    links = links[order][:, order] + csr_array((np.ones(n), (np.arange(n), np.arange(n))))
    scale = csr_array((1 / np.sqrt(links.sum(axis=1)), (np.arange(n), np.arange(n))))
    return csr_array(scale @ links @ scale)


def layer(A: pr.BSR, H: np.ndarray, w: np.ndarray, tau: float) -> tuple[np.ndarray, float, float]:
    """Do one step of message passing; also return the shares of live nodes and of blocks read."""
    # A node is dead where no feature is above tau. It sends exactly 0, whatever its neighbours in a block do:
    # which nodes count does not depend on how they are blocked.
    live = np.abs(H).max(axis=1) > tau
    sent = np.where(live[:, None], H, 0) @ w
    columns = np.logical_or.reduceat(live, np.arange(0, len(live), A.blocksize[1]))
    # Blocks in live columns, in the order in which they are stored.
    keep = columns[A.indices]
    indptr = np.concatenate([[0], np.cumsum(keep)])[A.indptr]
    heard = pr.BSR((A.data[keep], A.indices[keep], indptr), shape=A.shape)
    return pr.matmul(heard, sent, activation="relu"), float(live.mean()), float(keep.mean())


def run(name: str, graph: nx.Graph, blocksize: int, tau: float) -> dict[str, object]:
    """Send news from one node through all layers, and compare with the plain product in float64."""
    rng = np.random.default_rng(0)
    links = adjacency(graph)
    A = pr.BSR(links.astype(np.float32), blocksize=blocksize)
    n = links.shape[0]
    H = np.zeros((n, FEATURES), np.float32)
    H[0] = rng.standard_normal(FEATURES)
    weights = [rng.standard_normal((FEATURES, FEATURES)).astype(np.float32) / 4 for _ in range(LAYERS)]

    exact, nodes, blocks = H.astype(np.float64), [], []
    began = time.perf_counter()
    for w in weights:
        H, live, read = layer(A, H, w, tau)
        nodes.append(live)
        blocks.append(read)
    seconds = time.perf_counter() - began
    for w in weights:
        exact = np.maximum(links @ (exact @ w.astype(np.float64)), 0)
    error = float(np.abs(H - exact).max() / np.abs(exact).max())

    shares = "  ".join(f"{a:6.1%} {b:6.1%}" for a, b in zip(nodes, blocks, strict=True))
    print(f"{name:28} {n:6} {A.density:7.1%}   {shares}   {error:8.1e} {seconds * 1e3:8.2f}")
    return {"nodes": n, "density": A.density, "live": nodes, "blocks": blocks, "error": error}


def main(size: str = "full") -> dict[str, dict[str, object]]:
    """Run every graph; ``size`` is "small" or "full"."""
    layers = "live nodes and blocks read, layer by layer"
    print(f"{'graph':28} {'nodes':>6} {'blocks':>7}   {layers:43}   {'error':>8} {'ms':>8}")
    cliques = 40 if size == "small" else 2000
    return {
        "florentine": run("Florentine families", nx.florentine_families_graph(), 4, 0.0),
        "karate": run("karate club", nx.karate_club_graph(), 4, 0.0),
        "miserables": run("Les Misérables", nx.les_miserables_graph(), 8, 0.0),
        "ring": run("generated: ring of cliques", nx.ring_of_cliques(cliques, 16), 16, 0.0),
        # With a threshold, faint news is not passed on: less work, and an error that is shown.
        "faint": run("the same, tau = 0.01", nx.ring_of_cliques(cliques, 16), 16, 0.01),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = "small runs in a moment, full (the default) at sizes at which times mean something"
    parser.add_argument("size", nargs="?", choices=["small", "full"], default="full", help=sizes)
    main(parser.parse_args().size)
