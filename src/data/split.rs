//! Who is in train and who is clean: the meta set is taken out of train before any noise, keeps its labels, leaves
//! train for every method and counts in no noise rate.

use super::dataset::Split;
use super::labels::Overlay;
use crate::random::{Purpose, Stream};
use crate::{Error, Result};
use std::sync::Arc;

/// Some samples of a split, with the labels to train or test on.
#[derive(Clone, Debug)]
pub struct Subset {
    split: Arc<Split>,
    ids: Arc<[u32]>,
    labels: Arc<[i32]>,
}

impl Subset {
    /// Samples `ids` of a split; `labels` has a label for every sample of the split.
    ///
    /// # Errors
    /// `Internal` if an id or the number of labels does not fit the split.
    pub fn new(split: Arc<Split>, ids: Vec<u32>, labels: &[i32]) -> Result<Self> {
        if labels.len() != split.len() as usize || ids.iter().any(|&id| id >= split.len()) {
            let found = format!(
                "{} labels for {} samples, or an id beyond",
                labels.len(),
                split.len()
            );
            return Err(Error::Internal(found));
        }
        Ok(Subset {
            split,
            ids: ids.into(),
            labels: labels.into(),
        })
    }

    /// A whole split, with its true labels where it knows them.
    pub fn clean(split: Arc<Split>) -> Self {
        let labels = split.clean_labels().unwrap_or(split.labels()).into();
        Subset {
            ids: (0..split.len()).collect(),
            labels,
            split,
        }
    }

    /// The split.
    pub fn split(&self) -> &Arc<Split> {
        &self.split
    }

    /// Sample ids, in the subset's order.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Number of samples.
    pub fn len(&self) -> u32 {
        self.ids.len() as u32
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Label of a sample of this subset.
    pub fn label(&self, id: u32) -> i32 {
        self.labels[id as usize]
    }
}

/// `k` sample ids of each class, ascending: for each class a random subset of its samples, all equally likely, drawn
/// from `Stream(seed, Split).index(class)`.
///
/// # Errors
/// `Config` if a class has fewer than `k` samples, naming all such classes, or if nothing would be left for train.
pub fn draw_per_class(clean: &[i32], classes: &[String], k: u32, seed: u64) -> Result<Vec<u32>> {
    let mut members = vec![Vec::new(); classes.len()];
    for (id, &label) in (0u32..).zip(clean) {
        members[label as usize].push(id);
    }
    let small: Vec<String> = classes
        .iter()
        .zip(&members)
        .filter(|(_, ids)| ids.len() < k as usize)
        .map(|(class, ids)| format!("{class:?} with {}", ids.len()))
        .collect();
    if !small.is_empty() {
        let (expected, hint) = (
            format!("at least {k} images in every class"),
            "take fewer clean images per class",
        );
        return Err(Error::config(
            "clean images per class",
            expected,
            small.join(", "),
            hint,
        ));
    }
    if k as usize * classes.len() >= clean.len() {
        let (expected, found) = (
            "fewer than all images of the split",
            format!("{k} of each class, which is all"),
        );
        return Err(Error::config(
            "clean images per class",
            expected,
            found,
            "nothing would be left to train on",
        ));
    }
    let mut chosen = Vec::new();
    for (class, ids) in (0u32..).zip(&members) {
        let mut stream = Stream::new(seed, Purpose::Split).index(class);
        chosen.extend(
            stream
                .choose(ids.len() as u32, k)
                .into_iter()
                .map(|place| ids[place as usize]),
        );
    }
    chosen.sort_unstable();
    Ok(chosen)
}

/// The ids 0..n that are not in `taken` (ascending).
pub fn remaining(n: u32, taken: &[u32]) -> Vec<u32> {
    (0..n).filter(|id| taken.binary_search(id).is_err()).collect()
}

/// Train set (noisy labels, without the clean images) and meta set (true labels) of an overlay; with `named`, the meta
/// set is that split instead of images of train.
///
/// # Errors
/// `Config` if the overlay holds clean images and a named split is given too: they would be in neither set.
pub fn train_and_meta(
    train: &Arc<Split>,
    overlay: &Overlay,
    named: Option<Arc<Split>>,
) -> Result<(Subset, Subset)> {
    let taken = &overlay.meta_index;
    let meta = match named {
        None => Subset::new(train.clone(), taken.clone(), &overlay.clean_labels)?,
        Some(split) if taken.is_empty() => Subset::clean(split),
        Some(split) => {
            let found = format!("split {:?} and {} images of train", split.name(), taken.len());
            let hint = "drop the named split, or make labels without clean images";
            return Err(Error::config(
                "clean set",
                "a named split or images of train",
                found,
                hint,
            ));
        }
    };
    let ids = remaining(train.len(), taken);
    Ok((Subset::new(train.clone(), ids, &overlay.labels)?, meta))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(n: usize) -> Vec<String> {
        (0..n).map(|i| format!("class {i}")).collect()
    }

    #[test]
    fn balanced_sorted_and_seeded() {
        let clean: Vec<i32> = (0..600).map(|i| if i < 400 { i % 4 } else { 3 }).collect();
        let a = draw_per_class(&clean, &classes(4), 7, 1).unwrap();
        assert!(a.is_sorted_by(|x, y| x < y));
        for class in 0..4 {
            assert_eq!(a.iter().filter(|&&id| clean[id as usize] == class).count(), 7);
        }
        assert_eq!(a, draw_per_class(&clean, &classes(4), 7, 1).unwrap());
        assert_ne!(a, draw_per_class(&clean, &classes(4), 7, 2).unwrap());
        let rest = remaining(600, &a);
        assert_eq!(rest.len(), 600 - 28);
        assert!(rest.iter().all(|id| !a.contains(id)));
    }

    #[test]
    fn too_few_images_name_the_class() {
        let clean = [0, 0, 0, 1, 2, 2];
        let error = draw_per_class(&clean, &classes(3), 2, 1).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains("\"class 1\" with 1"), "{error}");
        let error = draw_per_class(&[0, 1], &classes(2), 1, 1).unwrap_err();
        assert!(error.to_string().contains("nothing would be left"), "{error}");
    }
}
