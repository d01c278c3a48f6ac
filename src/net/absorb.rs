//! Residual connections, carried by the convolution before them: its output is then never stored without them, and the
//! sum costs no pass over memory of its own.

use super::program::{Node, Program, ValueId, ValueKind};

impl Program {
    /// The same network, where y = a + b and a is the output of a convolution that nobody else reads, as one convolution
    /// onto b. b is stored, and there before it. Values and nodes are numbered anew.
    pub fn absorb_joins(mut self) -> Self {
        let mut index = 0;
        while index < self.nodes.len() {
            let Node::Join { a, b, y } = self.nodes[index] else {
                index += 1;
                continue;
            };
            let carriers = [(a, b), (b, a)];
            let found = carriers
                .into_iter()
                .find_map(|(part, addend)| Some((self.carrier(part, addend)?, part, addend)));
            let Some((carrier, part, onto)) = found else {
                index += 1;
                continue;
            };
            let Node::Conv { y: out, addend, .. } = &mut self.nodes[carrier] else {
                unreachable!("carriers are convolutions")
            };
            (*out, *addend) = (y, Some(onto));
            self.remove_node(index);
            self.remove_value(part);
        }
        self
    }

    /// The convolution that makes `part` and could as well make `part` + `addend`.
    fn carrier(&self, part: ValueId, addend: ValueId) -> Option<usize> {
        let maker = |value: ValueId| self.nodes.iter().position(|node| node.output() == value);
        let readers = self.nodes.iter().flat_map(Node::inputs).filter(|&x| x == part);
        let stored = |value: ValueId| matches!(self.values[value].kind, ValueKind::Stored { .. });
        let carrier = maker(part)?;
        let free = matches!(self.nodes[carrier], Node::Conv { addend: None, .. });
        let there = addend == self.input() || maker(addend).is_some_and(|maker| maker < carrier);
        (free && there && stored(addend) && readers.count() == 1).then_some(carrier)
    }

    fn remove_node(&mut self, gone: usize) {
        self.nodes.remove(gone);
        for start in self.stages.iter_mut().chain([&mut self.head]) {
            *start -= usize::from(*start > gone);
        }
    }

    /// Nobody reads or writes it.
    fn remove_value(&mut self, gone: ValueId) {
        self.values.remove(gone);
        let shift = |value: &mut ValueId| *value -= usize::from(*value > gone);
        for value in &mut self.values {
            if let ValueKind::Pending { of, .. } = &mut value.kind {
                shift(of);
            }
        }
        for norm in &mut self.norms {
            shift(&mut norm.of);
        }
        for node in &mut self.nodes {
            match node {
                Node::Conv { x, y, addend, .. } => {
                    shift(x);
                    shift(y);
                    addend.iter_mut().for_each(shift);
                }
                Node::Pend { x, y, .. } | Node::Pool { x, y, .. } => {
                    shift(x);
                    shift(y);
                }
                Node::Join { a, b, y } => {
                    shift(a);
                    shift(b);
                    shift(y);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Reach;

    fn joins(net: &Program) -> usize {
        let is_join = |node: &&Node| matches!(node, Node::Join { .. });
        net.nodes.iter().filter(is_join).count()
    }

    fn addends(net: &Program) -> Vec<ValueId> {
        let addend = |node: &Node| match *node {
            Node::Conv { addend, .. } => addend,
            _ => None,
        };
        net.nodes.iter().filter_map(addend).collect()
    }

    #[test]
    fn a_residual_block_ends_in_its_convolution() {
        let mut net = Program::new(4, 4, 2);
        let x = net.conv("stem", net.input(), 2, 3, 1, 1);
        net.begin_stage();
        let o = net.norm("bn", x, true);
        let y = net.conv("conv", o, 2, 3, 1, 1);
        let y = net.join(y, x);
        net.begin_head();
        let pooled = net.global_pool(y);
        net.linear("linear", pooled, 3);
        let (stages, head, params) = (net.stages.clone(), net.head, net.params.clone());
        let net = net.absorb_joins();
        assert_eq!((joins(&net), addends(&net)), (0, vec![x]));
        assert_eq!((net.stages.clone(), net.head), (stages, head - 1));
        assert_eq!(net.params, params);
        assert_eq!(net.nodes[net.head].inputs(), [net.nodes[2].output()]);
        // Only the sum and what follows it depend on the parameters of the last nodes.
        let reach = Reach::from_node(&net, 2);
        let moving = (0..net.values.len()).filter(|&v| reach.moves(v)).count();
        assert_eq!(moving, 3);
    }

    #[test]
    fn what_somebody_else_needs_stays_a_join() {
        // The convolution's output is read once more; it is added to itself; it is added to what is pending, or to what
        // only comes later.
        let mut net = Program::new(4, 4, 2);
        let x = net.input();
        let a = net.conv("a", x, 2, 3, 1, 1);
        let b = net.join(a, x);
        let c = net.conv("c", a, 2, 3, 1, 1);
        let d = net.join(c, c);
        let e = net.conv("e", d, 2, 3, 1, 1);
        let r = net.relu(b);
        let f = net.join(e, r);
        let g = net.conv("g", f, 2, 3, 1, 1);
        let h = net.conv("h", f, 2, 1, 1, 0);
        let pair = net.join(g, h);
        let pooled = net.global_pool(pair);
        net.linear("linear", pooled, 3);
        let before = net.values.len();
        let net = net.absorb_joins();
        assert_eq!(joins(&net), 3, "{net:#?}");
        // g + h: h comes later and can be made onto g.
        assert_eq!(addends(&net), [g]);
        assert_eq!(net.values.len(), before - 1);
    }
}
