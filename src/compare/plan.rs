//! What a comparison trains: variants, noise rates, seeds.

use clap::ValueEnum;
use serde::Serialize;

use crate::Result;
use crate::budget::{MetaBudget, MetaDepth};
use crate::config::{Method, RunConfig};
use crate::data::meta_draw::MetaDraw;

/// What to compare.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Everything but method, budget, noise and seed.
    pub base: RunConfig,
    pub methods: Vec<Method>,
    /// Settings of the methods with a meta pass, every combination of these; empty: that of `base`.
    pub meta_budgets: Vec<MetaBudget>,
    pub meta_batches: Vec<u32>,
    pub meta_draws: Vec<MetaDraw>,
    pub meta_depths: Vec<MetaDepth>,
    /// Nominal rates; one None where the labels are those of a file.
    pub noise: Vec<Option<f64>>,
    /// How many seeds, from `base.seed` on.
    pub seeds: u32,
}

/// What is trained: a method, and where several meta passes are compared one of them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Variant {
    pub method: Method,
    pub meta_budget: Option<MetaBudget>,
    pub meta_batch: Option<u32>,
    pub meta_draw: Option<MetaDraw>,
    pub meta_depth: Option<MetaDepth>,
}

impl From<Method> for Variant {
    fn from(method: Method) -> Self {
        Variant {
            method,
            meta_budget: None,
            meta_batch: None,
            meta_draw: None,
            meta_depth: None,
        }
    }
}

impl Variant {
    /// In words.
    pub fn name(&self) -> String {
        fn word<T: ValueEnum>(value: T) -> Option<String> {
            Some(value.to_possible_value()?.get_name().to_owned())
        }
        let budget = self.meta_budget.and_then(word);
        let batch = self.meta_batch.map(|m| format!("m = {m}"));
        let draw = self.meta_draw.and_then(word);
        let depth = self.meta_depth.map(|depth| match depth {
            MetaDepth::All => "all".to_owned(),
            MetaDepth::Stages(0) => "head".to_owned(),
            MetaDepth::Stages(count) => format!("last {count}"),
        });
        let method = Some(self.method.name().to_owned());
        let parts = [method, budget, batch, draw, depth];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }

    /// Whether it sets a meta pass apart from that of the base.
    pub(super) fn varies_meta_pass(&self) -> bool {
        *self != Variant::from(self.method)
    }

    pub(super) fn configure(&self, base: &RunConfig) -> RunConfig {
        RunConfig {
            method: self.method,
            meta_budget: self.meta_budget.unwrap_or(base.meta_budget),
            meta_batch: self.meta_batch.or(base.meta_batch),
            meta_draw: self.meta_draw.or(base.meta_draw),
            meta_depth: self.meta_depth.or(base.meta_depth),
            ..base.clone()
        }
    }
}

/// One run of the comparison, its configuration resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    pub variant: Variant,
    pub config: RunConfig,
}

impl Plan {
    /// What is compared, method by method.
    pub fn variants(&self) -> Vec<Variant> {
        /// Each variant with each of the values; as it is where there are none.
        fn each<T: Copy>(variants: Vec<Variant>, values: &[T], set: fn(&mut Variant, T)) -> Vec<Variant> {
            if values.is_empty() {
                return variants;
            }
            let with = |variant: Variant| {
                values.iter().map(move |&value| {
                    let mut variant = variant;
                    set(&mut variant, value);
                    variant
                })
            };
            variants.into_iter().flat_map(with).collect()
        }
        let of = |&method: &Method| {
            let plain = vec![Variant::from(method)];
            if !method.objective().is_meta() {
                return plain;
            }
            let variants = each(plain, &self.meta_budgets, |v, budget| {
                v.meta_budget = Some(budget)
            });
            let variants = each(variants, &self.meta_batches, |v, m| v.meta_batch = Some(m));
            let variants = each(variants, &self.meta_draws, |v, draw| v.meta_draw = Some(draw));
            each(variants, &self.meta_depths, |v, depth| v.meta_depth = Some(depth))
        };
        self.methods.iter().flat_map(of).collect()
    }

    /// All runs, by noise, then seed, then variant.
    ///
    /// # Errors
    /// `Config` for the first that cannot be.
    pub fn runs(&self) -> Result<Vec<Run>> {
        let mut runs = Vec::new();
        for &noise in &self.noise {
            for seed in 0..u64::from(self.seeds) {
                for variant in self.variants() {
                    let config = RunConfig {
                        noise,
                        seed: self.base.seed + seed,
                        ..variant.configure(&self.base)
                    };
                    let config = config.resolve()?;
                    runs.push(Run { variant, config });
                }
            }
        }
        Ok(runs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_of_meta_passes_and_no_other_method_twice() {
        let plan = Plan {
            base: RunConfig::default(),
            methods: vec![Method::Ce, Method::L2b],
            meta_budgets: vec![MetaBudget::Full, MetaBudget::Fast],
            meta_batches: Vec::new(),
            meta_draws: vec![MetaDraw::Uniform, MetaDraw::Stratified],
            meta_depths: vec![MetaDepth::Stages(1)],
            noise: vec![Some(0.4)],
            seeds: 1,
        };
        let names: Vec<_> = plan.variants().iter().map(Variant::name).collect();
        let want = [
            "ce",
            "l2b, full, uniform, last 1",
            "l2b, full, stratified, last 1",
            "l2b, fast, uniform, last 1",
            "l2b, fast, stratified, last 1",
        ];
        assert_eq!(names, want);
        let runs = plan.runs().unwrap();
        let draws: Vec<_> = runs[1..].iter().map(|run| run.config.draw()).collect();
        assert_eq!(draws, [MetaDraw::Uniform, MetaDraw::Stratified].repeat(2));
    }
}
