//! Runs in memory: what the weights of a trained network look like, and what a run on clean images leaves alone.

use l2b::config::{Method, RunConfig};
use l2b::device::cpu::Cpu;
use l2b::run_folder::prepare;
use l2b::tensor_file::TensorFile;
use l2b::train::Trainer;

use crate::common::run;

fn train(config: RunConfig) -> Trainer<Cpu<f32>> {
    let mut config = config.resolve().unwrap();
    let task = prepare(&mut config).unwrap();
    run_all(Trainer::new(Cpu::new(Some(1)).unwrap(), config, task).unwrap())
}

fn run_all(mut trainer: Trainer<Cpu<f32>>) -> Trainer<Cpu<f32>> {
    while !trainer.is_done() {
        trainer.epoch(|_| ()).unwrap();
    }
    trainer
}

fn integers(file: &TensorFile, name: &str) -> Vec<i64> {
    let bytes = file.tensors[name].bytes.chunks_exact(8);
    bytes.map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
}

/// P13 (METHOD 1.8): a wrongly labelled sample whose pseudo-label is right trusts the pseudo-label more.
#[test]
fn p13_corrupted_samples_trust_a_right_pseudo_label() {
    let trainer = train(RunConfig {
        epochs: 6,
        ..RunConfig::default()
    });
    let file = trainer.sample_weights.encode();
    let (label, clean, pseudo) = (
        integers(&file, "label"),
        integers(&file, "clean_label"),
        integers(&file, "pseudo_label"),
    );
    let weights = |name: &str| {
        let values = file.tensors[name].to_f64().unwrap();
        let chosen = (0..values.len()).filter(|&i| label[i] != clean[i] && pseudo[i] == clean[i]);
        let chosen: Vec<f64> = chosen.map(|i| values[i]).collect();
        // 36 % of 1337 labels are wrong; after six epochs most of their predictions are right.
        assert!(chosen.len() > 200, "{} samples", chosen.len());
        chosen.iter().sum::<f64>() / chosen.len() as f64
    };
    let (alpha, beta) = (weights("alpha"), weights("beta"));
    // Seen: 2.0.
    assert!(beta > 1.3 * alpha, "α {alpha}, β {beta}");
}

/// Images on the device or sent with each step, results looked at steps later: the bits of one call at a time.
#[test]
fn all_ways_of_feeding_a_run_agree() {
    // The CPU records nothing.
    run::all_ways_agree(|| Cpu::<f32>::new(Some(1)).unwrap(), 0);
}

#[test]
fn divergence_is_named_and_undone() {
    run::divergence_is_named_and_undone(|| Cpu::<f32>::new(Some(1)).unwrap());
}

/// The clean split is larger than train: its sample ids are no ids of train, whose images are not even read.
#[test]
fn training_on_a_clean_split_touches_no_train_sample() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("set");
    run::dataset(&data);
    let shard = data.join("train-00000.safetensors");
    let config = RunConfig {
        data,
        method: Method::Clean,
        meta_split: Some("trusted".into()),
        noise: Some(0.5),
        epochs: 2,
        batch: 4,
        blocks: vec![1],
        width: 4,
        ..RunConfig::default()
    };
    let mut config = config.resolve().unwrap();
    let task = prepare(&mut config).unwrap();
    let whole = std::fs::File::options().write(true).open(shard).unwrap();
    whole.set_len(9).unwrap();
    let mut trainer = run_all(Trainer::with(Cpu::<f32>::new(Some(1)).unwrap(), config, task, false).unwrap());
    assert_eq!(trainer.task.meta.len(), 30);
    let file = trainer.sample_weights.encode();
    assert_eq!(integers(&file, "id").len(), 11);
    assert_eq!(integers(&file, "pseudo_label"), [-1; 11]);
    // What is trained on is clean: both accuracies are the same.
    trainer.config.epochs += 1;
    trainer.continue_from(trainer.state).unwrap();
    let record = trainer.epoch(|_| ()).unwrap();
    assert_eq!(record.train_clean_accuracy, Some(record.train_accuracy));
}
