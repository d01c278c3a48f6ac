//! Which clean images a step takes: no image twice, each as often as any other, classes by their share.

use std::collections::BTreeSet;

use l2b::data::dataset::Dataset;
use l2b::data::meta_draw::MetaDraw;
use l2b::data::source::Access;
use l2b::data::split::Subset;

use crate::common::tiny;

/// Seven images, ids 0..7, with these labels.
fn seven(labels: [i32; 7]) -> Subset {
    let folder = tempfile::tempdir().unwrap();
    let split = Dataset::open(&tiny(&folder), Access::Map)
        .unwrap()
        .split("train")
        .unwrap();
    Subset::new(split, (0..7).collect(), &labels).unwrap()
}

#[test]
fn every_image_is_equally_likely_and_none_comes_twice() {
    let clean = seven([0, 0, 1, 0, 2, 1, 0]);
    for draw in [MetaDraw::Uniform, MetaDraw::Stratified] {
        for m in 1..=7 {
            let mut counts = [0_u32; 7];
            for step in 0..7000 {
                let ids = draw.ids(1, step, &clean, m);
                assert_eq!(ids.len(), m as usize);
                assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), m as usize, "{ids:?}");
                ids.iter().for_each(|&id| counts[id as usize] += 1);
            }
            // σ ≤ √(7000·¼) = 41.8 for independent steps; 5σ.
            let wrong = |&&count: &&u32| count.abs_diff(1000 * m) > 209;
            assert_eq!(
                counts.iter().filter(wrong).count(),
                0,
                "{draw:?}, m = {m}: {counts:?}"
            );
        }
    }
}

#[test]
fn strata_keep_the_shares_of_the_classes() {
    let labels = [5, 5, 1, 5, 2, 1, 5];
    let clean = seven(labels);
    let of = |ids: &[u32], class| ids.iter().filter(|&&id| labels[id as usize] == class).count();
    for m in 1..=7 {
        for step in 0..200 {
            let ids = MetaDraw::Stratified.ids(3, step, &clean, m);
            for (class, images) in [(5, 4), (1, 2), (2, 1)] {
                let (least, most) = (images * m / 7, (images * m).div_ceil(7));
                let found = of(&ids, class) as u32;
                assert!((least..=most).contains(&found), "m = {m}, class {class}: {ids:?}");
            }
        }
    }
    // A uniform draw does not.
    let all_alike = |step| of(&MetaDraw::Uniform.ids(3, step, &clean, 3), 5) == 3;
    assert!((0..200).any(all_alike));
}

/// ⌈7/m⌉ steps, from any multiple of that.
#[test]
fn a_pass_of_stratified_draws_takes_every_image() {
    let clean = seven([0, 1, 1, 0, 2, 1, 0]);
    for m in 1..=7_u32 {
        let steps = 7_u32.div_ceil(m);
        for pass in 0..50 {
            let seen: BTreeSet<u32> = (pass * steps..(pass + 1) * steps)
                .flat_map(|step| MetaDraw::Stratified.ids(9, step, &clean, m))
                .collect();
            assert_eq!(seen.len(), 7, "m = {m}, pass {pass}");
        }
    }
}

#[test]
fn draws_are_functions_of_seed_and_step() {
    let clean = seven([0, 1, 1, 0, 2, 1, 0]);
    for draw in [MetaDraw::Uniform, MetaDraw::Stratified] {
        let steps = |seed| {
            (0..50)
                .map(|step| draw.ids(seed, step, &clean, 3))
                .collect::<Vec<_>>()
        };
        assert_eq!(steps(4), steps(4));
        assert_ne!(steps(4), steps(5));
        assert!(steps(4).iter().collect::<BTreeSet<_>>().len() > 10);
    }
}
