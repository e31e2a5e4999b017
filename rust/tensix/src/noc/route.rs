//! Dimension-order routes on a torus of directed links.
//!
//! NoC 0 goes right and then down, NoC 1 up and then left (tenstorrent/tt-isa-documentation:WormholeB0/NoC/RoutingPaths.md).

/// A node of the grid: `y * columns + x`; behind those of one chip come those of the next.
pub type Node = u16;

/// Where a packet leaves a router, or how it came there.
pub(crate) mod port {
    pub(crate) const X: usize = 0;
    pub(crate) const Y: usize = 1;
    /// From the router into the node's network interface.
    pub(crate) const EJECT: usize = 2;
    /// From the interface into the router.
    pub(crate) const INJECT: usize = 3;
    pub(crate) const COUNT: usize = 4;
}

/// Where a packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// To one node.
    One(Node),
    /// To all workers of a rectangle, but the sender unless `own`.
    Many {
        /// First column and row.
        from: (u16, u16),
        /// Last column and row.
        to: (u16, u16),
        /// The sender is among those that receive.
        own: bool,
    },
}

/// A torus, once for each chip, and which of its nodes receive multicasts. Routes stay on their chip.
#[derive(Debug, Clone)]
pub(crate) struct Torus {
    pub(crate) columns: u16,
    pub(crate) rows: u16,
    /// Of all chips, as the tables below.
    workers: Vec<bool>,
    xs: Vec<u16>,
    ys: Vec<u16>,
    /// Coordinates of each node, and the node that each of its links leads to, for each network.
    places: Vec<(u16, u16)>,
    next: [Vec<[Node; 2]>; 2],
}

impl Torus {
    pub(crate) fn new(columns: u16, rows: u16, xs: &[u16], ys: &[u16], chips: u16) -> Self {
        let mut workers = vec![false; usize::from(columns) * usize::from(rows)];
        for y in ys {
            for x in xs {
                workers[usize::from(*y) * usize::from(columns) + usize::from(*x)] = true;
            }
        }
        let grid = move || (0..rows).flat_map(move |y| (0..columns).map(move |x| (x, y)));
        let each = columns * rows;
        let node = |chip: u16, x: u16, y: u16| chip * each + y % rows * columns + x % columns;
        let (mut places, mut forward, mut backward) = (Vec::new(), Vec::new(), Vec::new());
        for chip in 0..chips {
            places.extend(grid());
            forward.extend(grid().map(|(x, y)| [node(chip, x + 1, y), node(chip, x, y + 1)]));
            backward
                .extend(grid().map(|(x, y)| [node(chip, x + columns - 1, y), node(chip, x, y + rows - 1)]));
        }
        let (xs, ys) = (xs.to_vec(), ys.to_vec());
        let workers = workers.repeat(usize::from(chips));
        Self { columns, rows, workers, xs, ys, places, next: [forward, backward] }
    }

    pub(crate) fn nodes(&self) -> usize {
        self.workers.len()
    }

    pub(crate) fn xy(&self, node: Node) -> (u16, u16) {
        self.places[usize::from(node)]
    }

    /// A node of the first chip.
    pub(crate) fn node(&self, x: u16, y: u16) -> Node {
        y * self.columns + x
    }

    /// The first node of the chip that a node is on.
    fn first(&self, node: Node) -> Node {
        node - node % (self.columns * self.rows)
    }

    /// A node of a chip, by the chip's number.
    pub(crate) fn node_of(&self, chip: u16, x: u16, y: u16) -> Node {
        chip * self.columns * self.rows + self.node(x, y)
    }

    /// Hops from one node to another along each axis.
    pub(crate) fn distance(&self, noc: u8, from: Node, to: Node) -> (u16, u16) {
        let ((a, b), (x, y)) = (self.xy(from), self.xy(to));
        let back = |from: u16, to: u16, ring: u16| if to >= from { to - from } else { to + ring - from };
        let (w, h) = (self.columns, self.rows);
        if noc == 0 { (back(a, x, w), back(b, y, h)) } else { (back(x, a, w), back(y, b, h)) }
    }

    /// The node that a link along x or y leads to.
    pub(crate) fn next(&self, noc: u8, node: Node, out: usize) -> Node {
        self.next[usize::from(noc)][usize::from(node)][out]
    }

    /// Whether a link closes its ring: packets change their virtual channel there, so that no ring of them waits for
    /// itself.
    pub(crate) fn wraps(&self, noc: u8, node: Node, out: usize) -> bool {
        let (x, y) = self.xy(node);
        match (out, noc) {
            (port::X, 0) => x + 1 == self.columns,
            (port::X, _) => x == 0,
            (port::Y, 0) => y + 1 == self.rows,
            (port::Y, _) => y == 0,
            _ => false,
        }
    }

    /// The axes in the order in which a network travels them.
    fn axes(noc: u8) -> (usize, usize) {
        if noc == 0 { (port::X, port::Y) } else { (port::Y, port::X) }
    }

    /// Ports by which a packet from `source`, that came to `node` by `came`, leaves it; those are marked.
    pub(crate) fn outputs(
        &self,
        noc: u8,
        source: Node,
        target: Target,
        node: Node,
        came: usize,
    ) -> [bool; port::COUNT] {
        let mut out = [false; port::COUNT];
        let (first, second) = Self::axes(noc);
        match target {
            Target::One(to) => {
                let (dx, dy) = self.distance(noc, node, to);
                let left = [dx, dy];
                let port = match (left[first], left[second]) {
                    (0, 0) => port::EJECT,
                    (0, _) => second,
                    _ => first,
                };
                out[port] = true;
            }
            Target::Many { from, to, own } => {
                // A trunk along the first axis, and from it a branch in each line of the rectangle.
                let reach = self.reach(noc, source, from, to);
                let (dx, dy) = self.distance(noc, source, node);
                let gone = [dx, dy];
                let (x, y) = self.xy(node);
                let inside = [
                    from.0 <= x && x <= to.0 && self.xs.contains(&x),
                    from.1 <= y && y <= to.1 && self.ys.contains(&y),
                ];
                let in_trunk = came != second;
                out[first] = in_trunk && gone[first] < reach[first];
                out[second] = inside[first] && gone[second] < reach[second];
                out[port::EJECT] = inside[0] && inside[1] && (own || node != source);
            }
        }
        out
    }

    /// How far along each axis a multicast goes: to the last line that has workers.
    pub(crate) fn reach(&self, noc: u8, source: Node, from: (u16, u16), to: (u16, u16)) -> [u16; 2] {
        let (x, y) = self.xy(source);
        let across = self.xs.iter().filter(|at| (from.0..=to.0).contains(at));
        let down = self.ys.iter().filter(|at| (from.1..=to.1).contains(at));
        [
            across.map(|at| self.distance(noc, source, self.node(*at, y)).0).max().unwrap_or(0),
            down.map(|at| self.distance(noc, source, self.node(x, *at)).1).max().unwrap_or(0),
        ]
    }

    /// Nodes that a multicast reaches, in order.
    pub(crate) fn receivers(&self, source: Node, from: (u16, u16), to: (u16, u16), own: bool) -> Vec<Node> {
        let rows = from.1..=to.1.min(self.rows - 1);
        let all = rows.flat_map(|y| (from.0..=to.0.min(self.columns - 1)).map(move |x| (x, y)));
        let first = self.first(source);
        all.map(|(x, y)| first + self.node(x, y))
            .filter(|node| self.workers[usize::from(*node)] && (own || *node != source))
            .collect()
    }

    /// Hops around the rings that a multicast travels and its acknowledgements close.
    pub(crate) fn rings(&self, noc: u8, source: Node, target: Target) -> u16 {
        match target {
            Target::One(_) => 0,
            Target::Many { from, to, .. } => {
                let [x, y] = self.reach(noc, source, from, to);
                (if x > 0 { self.columns } else { 0 }) + if y > 0 { self.rows } else { 0 }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn torus() -> Torus {
        Torus::new(5, 4, &[1, 2, 4], &[0, 1, 3], 2)
    }

    /// Walks all copies of a packet; returns where they were taken out, and the links used.
    fn walk(noc: u8, source: Node, target: Target) -> (Vec<Node>, usize) {
        let (torus, mut taken, mut links) = (torus(), Vec::new(), 0);
        let mut open = vec![(source, port::INJECT)];
        while let Some((node, came)) = open.pop() {
            let out = torus.outputs(noc, source, target, node, came);
            assert!(out.contains(&true), "a copy ends at a node that does not receive it");
            if out[port::EJECT] {
                taken.push(node);
            }
            for to in [port::X, port::Y] {
                if out[to] {
                    links += 1;
                    open.push((torus.next(noc, node, to), to));
                }
            }
        }
        taken.sort_unstable();
        (taken, links)
    }

    #[test]
    fn packets_reach_their_node_in_as_many_hops_as_it_is_away() {
        let torus = torus();
        for noc in 0..2 {
            for from in 0..40 {
                // Nodes of the same chip: there is no way to another one.
                for to in from / 20 * 20..from / 20 * 20 + 20 {
                    let (taken, links) = walk(noc, from, Target::One(to));
                    let (dx, dy) = torus.distance(noc, from, to);
                    assert_eq!((taken, links), (vec![to], usize::from(dx + dy)));
                }
            }
        }
    }

    #[test]
    fn multicasts_reach_each_worker_once() {
        let torus = torus();
        for noc in 0..2 {
            for source in 0..40 {
                for own in [false, true] {
                    for (from, to) in [((0, 0), (4, 3)), ((1, 1), (2, 3)), ((4, 0), (4, 3)), ((1, 3), (4, 3))]
                    {
                        let (taken, _) = walk(noc, source, Target::Many { from, to, own });
                        assert_eq!(taken, torus.receivers(source, from, to, own));
                    }
                }
            }
        }
    }
}
