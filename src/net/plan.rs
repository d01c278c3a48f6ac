//! Where everything of a program lies in memory at one batch size.
//!
//! One arena holds, in this order: arranged filters (of θ or θ̂, and of v), what lives through a whole step (stored
//! values, per-channel values of the norms), scratch that any one call may overwrite, and a pool shared
//! by lifetime between tangents (alive during the tangent pass) and adjoints (alive during the backward pass).

use std::ops::Range;

use super::program::{Node, Program, Storage, ValueId, ValueKind};
use crate::Result;
use crate::device::{ALIGN, Arranged, Device, Geometry, Layout, Prepared, Region, Write};

/// How the pool is shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// Regions whose lifetimes do not meet share memory.
    ByLifetime,
    /// Every tensor has memory of its own, with a guard behind it, and is overwritten with NaN at the end of its life:
    /// for tests, so that a read too late or a write too far shows.
    Isolated,
}

/// Bytes of guard behind every region under [`Reuse::Isolated`].
pub const GUARD: usize = ALIGN;

/// Memory of one batch-norm, all per-channel values of [`crate::device::Norm`].
#[derive(Clone, Copy, Debug)]
pub struct NormPlan {
    pub statistics: Region,
    pub affine: Region,
    pub slope: Region,
    pub partials: Region,
}

/// Arranged filters of a node, see [`crate::device::Filters`]; empty where there are none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FilterPlan {
    /// Of the parameters, for forward and tangent pass.
    pub forward: Region,
    /// Of the parameters, for the backward pass.
    pub backward: Region,
    /// Of v.
    pub along: Region,
}

/// What a node needs at this batch size.
#[derive(Clone, Debug)]
pub struct NodePlan<T> {
    pub geometry: Option<Geometry>,
    pub prepared: Option<Prepared<T>>,
    pub filters: FilterPlan,
    /// How the node's backward pass writes the adjoint of each input; None where none is wanted.
    pub adjoints: Vec<Option<Contribution>>,
}

/// One node's share in the adjoint of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contribution {
    pub how: How,
    /// Whether no later one follows: the epilogue (mask, sums) belongs to this one.
    pub last: bool,
}

/// How a contribution reaches the adjoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    Write(Write),
    /// The adjoint of an addend *is* that of the sum: same memory, nothing to do.
    Alias,
}

/// When a pool tensor is alive, in node numbers of its pass: from `start` up to but not at `end`.
#[derive(Clone, Copy, Debug)]
struct Life {
    start: usize,
    end: usize,
}

impl Life {
    /// Before the first use is known.
    const NONE: Life = Life {
        start: usize::MAX,
        end: 0,
    };

    /// Makes it last from `first` to `last`, both included, at least.
    fn include(&mut self, first: usize, last: usize) {
        self.start = self.start.min(first);
        self.end = self.end.max(last + 1);
    }

    fn meets(self, other: Life) -> bool {
        self.start < other.end && other.start < self.end
    }
}

/// A pool tensor that shares memory by lifetime.
#[derive(Clone, Debug)]
struct Slot {
    bytes: usize,
    life: Life,
    region: Region,
}

/// Memory plan of a program at one batch size.
#[derive(Clone, Debug)]
pub struct Plan<T> {
    pub batch: usize,
    /// Stored values, by value id.
    pub values: Vec<Region>,
    /// Tangents of stored values, by value id.
    pub tangents: Vec<Region>,
    /// Adjoints, by value id: of stored values, and of pending ones after their ReLU and norm.
    pub adjoints: Vec<Region>,
    pub norms: Vec<NormPlan>,
    pub nodes: Vec<NodePlan<T>>,
    pub scratch: Region,
    /// Size of the arena.
    pub bytes: usize,
    reuse: Reuse,
    /// By node: tangents, and filters of v, that no tangent pass reads after it.
    dead_tangents: Vec<Vec<Region>>,
    /// By node: adjoints that nothing reads after its backward pass.
    dead_adjoints: Vec<Vec<Region>>,
    /// Under [`Reuse::Isolated`], the guards.
    pub guards: Vec<Region>,
}

impl<T: Copy> Plan<T> {
    /// Plans `program` for batches of `batch` on `device`.
    pub fn new<D: Device<Algorithm = T>>(
        program: &Program,
        device: &D,
        batch: usize,
        reuse: Reuse,
    ) -> Result<Self> {
        program.check_batch(batch)?;
        let act = size_of::<D::Act>();
        let real = size_of::<D::Real>();
        let mut guards = Vec::new();
        let mut layout = Layout::default();
        let mut push = |bytes: usize| {
            let region = layout.push(bytes);
            if reuse == Reuse::Isolated {
                guards.push(layout.push(GUARD));
            }
            region
        };

        // Filters lie at the same places whatever the batch: those that a pass over one has arranged serve another's.
        let mut scratch_bytes = 0;
        let mut nodes = Vec::with_capacity(program.nodes.len());
        for (node, adjoints) in program.nodes.iter().zip(contributions(program)) {
            let geometry = program.geometry(node, batch);
            let prepared = geometry.as_ref().map(|g| device.prepare(g)).transpose()?;
            scratch_bytes = scratch_bytes.max(prepared.map_or(0, |p| p.scratch_bytes));
            let arranged = prepared.map_or(Arranged::default(), |p| p.arranged);
            let backward = adjoints.iter().any(Option::is_some);
            nodes.push(NodePlan {
                geometry,
                prepared,
                filters: FilterPlan {
                    forward: push(arranged.forward),
                    backward: push(if backward { arranged.backward } else { 0 }),
                    along: push(arranged.forward),
                },
                adjoints,
            });
        }

        let stored = |id: ValueId| matches!(program.values[id].kind, ValueKind::Stored { .. });
        let value_bytes = |id: ValueId| {
            let size = match program.values[id].storage {
                Storage::Act => act,
                Storage::Real => real,
            };
            program.rows(id, batch).len() * size
        };
        let values = (0..program.values.len())
            .map(|id| {
                if stored(id) {
                    push(value_bytes(id))
                } else {
                    Region::default()
                }
            })
            .collect();
        let norms = program
            .norms
            .iter()
            .map(|norm| {
                let shape = program.rows(norm.of, batch);
                let per_channel = |count: usize| count * shape.channels as usize * real;
                NormPlan {
                    statistics: push(per_channel(2)),
                    affine: push(per_channel(3)),
                    slope: push(per_channel(2)),
                    partials: push(device.partials_bytes(shape)),
                }
            })
            .collect();

        let scratch = push(scratch_bytes);

        let mut tangents = tangent_slots(program, &value_bytes);
        let mut adjoints = adjoint_slots(program, &nodes, &value_bytes);
        let pool = layout.bytes();
        let mut bytes = pool;
        for slots in [&mut tangents, &mut adjoints.slots] {
            let base = if reuse == Reuse::Isolated { bytes } else { pool };
            bytes = bytes.max(place(slots, base, reuse, &mut guards));
        }
        let count = program.nodes.len();
        let dead = |slots: &[Slot], node_of: &dyn Fn(usize) -> usize| {
            let mut dead = vec![Vec::new(); count];
            for slot in slots.iter().filter(|s| s.bytes > 0) {
                // The last slot of a pass is read by the loss: it outlives the pass.
                if slot.life.end <= count {
                    dead[node_of(slot.life.end - 1)].push(slot.region);
                }
            }
            dead
        };
        let mut dead_tangents = dead(&tangents, &|t| t);
        for (dead, node) in dead_tangents.iter_mut().zip(&nodes) {
            dead.extend(Some(node.filters.along).filter(|along| along.bytes > 0));
        }
        let dead_adjoints = dead(&adjoints.slots, &|t| count - 1 - t);
        Ok(Plan {
            batch,
            values,
            tangents: tangents.iter().map(|s| s.region).collect(),
            adjoints: adjoints
                .slot_of
                .iter()
                .map(|&s| adjoints.slots[s].region)
                .collect(),
            norms,
            nodes,
            scratch,
            bytes,
            reuse,
            dead_tangents,
            dead_adjoints,
            guards,
        })
    }

    /// Tangents and filters of v to overwrite after the node's tangent pass (tests only; empty otherwise).
    pub fn poison_after_tangent(&self, node: usize) -> &[Region] {
        if self.reuse == Reuse::Isolated {
            &self.dead_tangents[node]
        } else {
            &[]
        }
    }

    /// Adjoints to overwrite after the node's backward pass (tests only; empty otherwise).
    pub fn poison_after_backward(&self, node: usize) -> &[Region] {
        if self.reuse == Reuse::Isolated {
            &self.dead_adjoints[node]
        } else {
            &[]
        }
    }
}

/// By node and input: how the backward pass, which runs the nodes in reverse, writes the input's adjoint.
fn contributions(program: &Program) -> Vec<Vec<Option<Contribution>>> {
    let stored = |id: ValueId| matches!(program.values[id].kind, ValueKind::Stored { .. });
    // Nodes that contribute to each value's adjoint, in the order of the backward pass.
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); program.values.len()];
    let mut producer = vec![0; program.values.len()];
    for (index, node) in program.nodes.iter().enumerate().rev() {
        producer[node.output()] = index;
        for input in node.inputs() {
            readers[input].push(index);
        }
    }
    // Values whose adjoints share memory, by representative; aliasing grows them in the order of the backward pass.
    let mut group: Vec<usize> = (0..program.values.len()).collect();
    let mut all = vec![Vec::new(); program.nodes.len()];
    for (index, node) in program.nodes.iter().enumerate().rev() {
        let inputs = node.inputs();
        let mut of_node: Vec<Option<Contribution>> = inputs
            .iter()
            .enumerate()
            .map(|(slot, &input)| {
                // The network's input wants no adjoint, nor does anything pending on it.
                let root = match program.values[input].kind {
                    ValueKind::Pending { of, norm: None, .. } => of,
                    _ => input,
                };
                // A join of a value with itself contributes twice.
                let seen = inputs[..slot].contains(&input);
                let again = inputs[slot + 1..].contains(&input);
                (root != program.input()).then(|| Contribution {
                    how: How::Write(if readers[input][0] == index && !seen {
                        Write::Set
                    } else {
                        Write::Add
                    }),
                    last: readers[input].last() == Some(&index) && !again,
                })
            })
            .collect();
        // Stored inputs whose adjoint is that of the output.
        let addends = match *node {
            Node::Join { a, b, .. } if a != b => vec![(0, a), (1, b)],
            Node::Conv {
                x,
                addend: Some(addend),
                ..
            } if x != addend => vec![(1, addend)],
            _ => Vec::new(),
        };
        if !addends.is_empty() {
            let y = node.output();
            let shared = group[y];
            // Somebody else still has to read the memory, as it is now.
            let waiting = (0..producer.len()).any(|v| v != y && group[v] == shared && producer[v] < index);
            let next = |v: ValueId| readers[v].get(1).copied();
            let candidate =
                |v: ValueId| v != program.input() && stored(v) && readers[v][0] == index && !waiting;
            // The operand that later contributions change goes second: it is sound once the first has been read by then.
            let mut order = addends;
            order.sort_by_key(|&(_, v)| next(v).is_some());
            let mut first: Option<ValueId> = None;
            for (slot, v) in order {
                let sound = match (first, next(v)) {
                    (None, _) | (Some(_), None) => true,
                    (Some(first), Some(later)) => next(first).is_none() && producer[first] > later,
                };
                if candidate(v) && sound {
                    first = first.or(Some(v));
                    group[v] = shared;
                    of_node[slot] = of_node[slot].map(|c| Contribution { how: How::Alias, ..c });
                }
            }
        }
        all[index] = of_node;
    }
    all
}

/// Tangents by value id: written by the producing node, read until the last node that reads the value or one pending on it.
fn tangent_slots(program: &Program, bytes: &dyn Fn(ValueId) -> usize) -> Vec<Slot> {
    let mut slots: Vec<Slot> = (0..program.values.len())
        .map(|_| Slot {
            bytes: 0,
            life: Life::NONE,
            region: Region::default(),
        })
        .collect();
    for (index, node) in program.nodes.iter().enumerate() {
        for input in node.inputs() {
            let root = match program.values[input].kind {
                ValueKind::Pending { of, .. } => of,
                ValueKind::Stored { .. } => input,
            };
            slots[root].life.include(index, index);
        }
        let y = node.output();
        if matches!(program.values[y].kind, ValueKind::Stored { .. }) {
            slots[y].bytes = bytes(y);
            slots[y].life.include(index, index);
        }
    }
    // The logits' tangent is read by the loss, after the pass.
    let count = program.nodes.len();
    slots[program.output()].life.include(count, count);
    slots[program.input()].bytes = 0;
    slots
}

struct AdjointSlots {
    slots: Vec<Slot>,
    /// By value id.
    slot_of: Vec<usize>,
}

/// Adjoints: written from the first contribution on (node numbers count backwards from the last node), read by the
/// value's producer; aliases share one slot.
fn adjoint_slots<T>(
    program: &Program,
    nodes: &[NodePlan<T>],
    bytes: &dyn Fn(ValueId) -> usize,
) -> AdjointSlots {
    let count = program.nodes.len();
    let mut slots: Vec<Slot> = (0..program.values.len())
        .map(|_| Slot {
            bytes: 0,
            life: Life::NONE,
            region: Region::default(),
        })
        .collect();
    let mut slot_of: Vec<usize> = (0..program.values.len()).collect();
    let output = program.output();
    slots[output].bytes = bytes(output);
    slots[output].life.include(0, 0);
    for (index, node) in program.nodes.iter().enumerate().rev() {
        let time = count - 1 - index;
        let y = slot_of[node.output()];
        slots[y].life.include(time, time);
        for (input, contribution) in node.inputs().into_iter().zip(&nodes[index].adjoints) {
            let Some(contribution) = contribution else {
                continue;
            };
            if contribution.how == How::Alias {
                slot_of[input] = y;
                continue;
            }
            let slot = &mut slots[slot_of[input]];
            slot.bytes = bytes(input);
            slot.life.include(time, time);
        }
    }
    AdjointSlots { slots, slot_of }
}

/// Gives every slot a region at or behind `base`; returns the end of the pool. Largest first, each at the lowest place
/// that no slot alive at the same time holds.
fn place(slots: &mut [Slot], base: usize, reuse: Reuse, guards: &mut Vec<Region>) -> usize {
    let mut order: Vec<usize> = (0..slots.len()).filter(|&i| slots[i].bytes > 0).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(slots[i].bytes), i));
    let mut placed: Vec<usize> = Vec::new();
    let mut end = base;
    for i in order {
        let need = slots[i].bytes.next_multiple_of(ALIGN) + if reuse == Reuse::Isolated { GUARD } else { 0 };
        let mut taken: Vec<Range<usize>> = placed
            .iter()
            .map(|&j| &slots[j])
            .filter(|s| reuse == Reuse::Isolated || s.life.meets(slots[i].life))
            .map(|s| {
                let guard = if reuse == Reuse::Isolated { GUARD } else { 0 };
                s.region.offset..s.region.end().next_multiple_of(ALIGN) + guard
            })
            .collect();
        taken.sort_by_key(|r| r.start);
        let mut offset = base;
        for range in taken {
            if offset + need <= range.start {
                break;
            }
            offset = offset.max(range.end);
        }
        slots[i].region = Region {
            offset,
            bytes: slots[i].bytes,
        };
        if reuse == Reuse::Isolated {
            guards.push(Region {
                offset: offset + slots[i].bytes.next_multiple_of(ALIGN),
                bytes: GUARD,
            });
        }
        placed.push(i);
        end = end.max(offset + need);
    }
    end
}
