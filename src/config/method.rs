//! The methods, and what sets each apart.

use serde::{Deserialize, Serialize};

use crate::step::Objective;

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// Cross-entropy on the given labels
    Ce,
    /// Given and predicted labels mixed with a fixed share
    Bootstrap,
    /// Given labels, reweighted by the clean images
    L2rw,
    /// Given and predicted labels, reweighted by the clean images
    L2b,
    /// Cross-entropy on the clean images alone, with as many updates
    Clean,
}

impl Method {
    /// Its name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Method::Ce => "ce",
            Method::Bootstrap => "bootstrap",
            Method::L2rw => "l2rw",
            Method::L2b => "l2b",
            Method::Clean => "clean",
        }
    }

    /// What a step after the warm-up minimises.
    pub fn objective(self) -> Objective {
        match self {
            Method::Ce | Method::Clean => Objective::CrossEntropy,
            Method::Bootstrap => Objective::Bootstrap,
            Method::L2rw => Objective::Reweight,
            Method::L2b => Objective::L2b,
        }
    }

    /// Whether it cannot do without clean images.
    pub fn needs_clean(self) -> bool {
        self == Method::Clean || self.objective().is_meta()
    }

    /// Whether the warm-up differs from the rest.
    pub fn warms_up(self) -> bool {
        self.objective() != Objective::CrossEntropy
    }
}
