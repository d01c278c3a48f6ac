//! Networks: the program (what is computed), the plan (where everything lies), the pass (running it on a device).

mod absorb;
mod pass;
mod plan;
mod program;
mod reach;

pub use pass::{Pass, Sink};
pub use plan::{Contribution, FilterPlan, How, NodePlan, NormPlan, Plan, Reuse};
pub use program::{
    Node, NormId, NormLayer, Param, ParamId, ParamRole, Program, Storage, Value, ValueId, ValueKind,
};
pub use reach::Reach;
