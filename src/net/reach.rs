//! How far down a network derivatives are taken.
//!
//! With v restricted to the parameters of the last nodes, a value from which none of those parameters can be reached
//! has no tangent (it is zero) and needs no adjoint. The same values drop out of both passes, so a plan for the whole
//! network serves every reach: contributions to the adjoints that are left neither change nor move.

use super::program::{Node, Program, ValueId};

/// The parameters that derivatives are taken for, and the values that depend on them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// By value: whether it depends on one of the parameters.
    moves: Vec<bool>,
}

impl Reach {
    /// The parameters of the nodes from number `start` on; 0: all of them.
    pub fn from_node(program: &Program, start: usize) -> Self {
        let mut moves = vec![false; program.values.len()];
        for (index, node) in program.nodes.iter().enumerate() {
            let learned = index >= start && !node.params(program).is_empty();
            moves[node.output()] = learned || node.inputs().into_iter().any(|input| moves[input]);
        }
        Reach { moves }
    }

    /// The whole network.
    pub fn full(program: &Program) -> Self {
        Reach::from_node(program, 0)
    }

    /// None of it: for a forward pass alone.
    pub fn nothing(program: &Program) -> Self {
        Reach::from_node(program, program.nodes.len())
    }

    /// Whether the value depends on the parameters: it has a tangent and an adjoint.
    pub fn moves(&self, value: ValueId) -> bool {
        self.moves[value]
    }

    /// Whether the node takes part in tangent and backward pass.
    pub fn takes(&self, node: &Node) -> bool {
        self.moves(node.output())
    }

    /// Whether batch statistics couple the samples' derivatives: those of a value that depends on the parameters.
    pub fn couples_samples(&self, program: &Program) -> bool {
        program.norms.iter().any(|norm| self.moves(norm.of))
    }
}
