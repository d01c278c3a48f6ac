//! Which clean images a step takes.

use std::collections::BTreeMap;

use crate::data::split::Subset;
use crate::random::{Purpose, Stream};

/// How the clean images of a step are drawn: a fresh random subset in every step, each image equally likely. ∇f_val of
/// either is an unbiased estimate of that of the whole clean set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum MetaDraw {
    /// All subsets equally likely (METHOD 2.1)
    Uniform,
    /// Every class with its share of the clean images, up to one image: less noise where a step takes few
    Stratified,
}

impl MetaDraw {
    /// Ids of the `m` different clean samples of a step, 1 ≤ m ≤ their number. A pure function of its arguments.
    pub fn ids(self, seed: u64, step: u32, clean: &Subset, m: u32) -> Vec<u32> {
        let n = clean.len();
        let draw = |mut stream: Stream, m: u32| -> Vec<u32> {
            let places = stream.choose(n, m).into_iter();
            places.map(|place| clean.ids()[place as usize]).collect()
        };
        let stream = |time| Stream::new(seed, Purpose::MetaDraw).time(time);
        match self {
            MetaDraw::Uniform => draw(stream(step), m),
            MetaDraw::Stratified => {
                // Systematic sampling: of the images sorted by class every n/m-th. The next step takes the neighbour of each,
                // so that a pass of n/m steps takes every image. The order of the classes, that of their first images, the
                // order within a class and the start are random, new in each pass.
                let pass = n.div_ceil(m);
                let mut ids = draw(stream(step / pass), n);
                let mut rank = BTreeMap::new();
                for &id in &ids {
                    let next = rank.len();
                    rank.entry(clean.label(id)).or_insert(next);
                }
                ids.sort_by_key(|&id| rank[&clean.label(id)]);
                let start = stream(step / pass).view(1).below(n);
                // The numbers j·n + start for all j and start are 0..m·n, and m of them fall on each image.
                let (n, m) = (u64::from(n), u64::from(m));
                let start = (u64::from(start) + u64::from(step % pass) * m) % n;
                (0..m).map(|j| ids[((j * n + start) / m) as usize]).collect()
            }
        }
    }
}
