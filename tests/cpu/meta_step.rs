//! `meta-step` on the CPU against the double-backprop reference, and against hostile files.

use std::path::Path;

use crate::fixtures::{self, Bound};
use l2b::Error;
use l2b::device::cpu::Cpu;
use l2b::engine::InnerProduct;

fn frozen(case: &str) -> bool {
    case.starts_with("frozen")
}

#[test]
fn f64_is_the_reference_to_1e_9() {
    for case in fixtures::cases() {
        let cpu = Cpu::<f64>::new(None).unwrap();
        let ratio = fixtures::check(cpu, &case, InnerProduct::Tangent, Bound::F64(1e-9));
        println!("{case}: {ratio:.2e} of the bound");
    }
}

#[test]
fn f32_is_within_the_noise_of_the_reference() {
    for case in fixtures::cases() {
        let cpu = Cpu::<f32>::new(None).unwrap();
        let ratio = fixtures::check(cpu, &case, InnerProduct::Tangent, Bound::F32 { floor: 2e-5 });
        println!("{case}: {ratio:.2e} of the bound");
    }
}

#[test]
fn contraction_is_the_reference_where_samples_are_uncoupled_and_refused_elsewhere() {
    for case in fixtures::cases() {
        if frozen(&case) {
            fixtures::check(
                Cpu::<f64>::new(None).unwrap(),
                &case,
                InnerProduct::Contraction,
                Bound::F64(1e-9),
            );
            fixtures::check(
                Cpu::<f32>::new(None).unwrap(),
                &case,
                InnerProduct::Contraction,
                Bound::F32 { floor: 2e-5 },
            );
        } else {
            let folder = tempfile::tempdir().unwrap();
            let output = folder.path().join("out");
            let cpu = Cpu::<f64>::new(None).unwrap();
            let error = l2b::meta_step::run(cpu, &fixtures::input(&case), &output, InnerProduct::Contraction);
            let error = error.unwrap_err();
            assert_eq!(error.exit_code(), 2, "{error}");
            assert!(error.to_string().contains("frozen"), "{error}");
            assert!(!output.exists());
        }
    }
}

fn run(bytes: &[u8]) -> (tempfile::TempDir, Result<(), Error>) {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in.safetensors");
    std::fs::write(&input, bytes).unwrap();
    let output = folder.path().join("out.safetensors");
    let result = l2b::meta_step::run(
        Cpu::<f64>::new(Some(1)).unwrap(),
        &input,
        &output,
        InnerProduct::Tangent,
    );
    assert_eq!(
        output.exists(),
        result.is_ok(),
        "an output exactly where the step was done"
    );
    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        1 + usize::from(result.is_ok()),
        "nothing half-written"
    );
    (folder, result)
}

/// A small case with one thing changed in header and payload.
fn changed(change: impl Fn(&mut serde_json::Map<String, serde_json::Value>, &mut Vec<u8>)) -> Vec<u8> {
    let bytes = std::fs::read(fixtures::input("frozen-momentum-n1")).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Map<_, _> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let mut payload = bytes[8 + length..].to_vec();
    change(&mut header, &mut payload);
    let header = serde_json::to_vec(&header).unwrap();
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header);
    out.extend(payload);
    out
}

fn settings(header: &mut serde_json::Map<String, serde_json::Value>, key: &str, value: serde_json::Value) {
    let text = header["__metadata__"]["l2b"].as_str().unwrap();
    let mut settings: serde_json::Map<_, _> = serde_json::from_str(text).unwrap();
    settings.insert(key.to_owned(), value);
    header["__metadata__"]["l2b"] = serde_json::to_string(&settings).unwrap().into();
}

#[test]
fn hostile_settings_are_refused_by_name() {
    assert!(run(&changed(|_, _| ())).1.is_ok(), "the unchanged case");
    let bad = [
        ("width", serde_json::json!(0)),
        ("width", serde_json::json!(-1)),
        ("width", serde_json::json!(1_000_000_000)),
        ("width", serde_json::json!(5)),
        ("blocks", serde_json::json!([])),
        (
            "blocks",
            serde_json::json!([1000, 1000, 1000, 1000, 1000, 1000, 1000, 1000]),
        ),
        ("blocks", serde_json::json!([2])),
        ("in_channels", serde_json::json!(0)),
        ("image_size", serde_json::json!(0)),
        ("image_size", serde_json::json!(9)),
        ("image_size", serde_json::json!([16000, 16000])),
        ("num_classes", serde_json::json!(1)),
        ("num_classes", serde_json::json!(2)),
        ("norm", serde_json::json!("instance")),
        ("mode", serde_json::json!("nesterov")),
        ("meta_depth", serde_json::json!(5)),
        ("meta_depth", serde_json::json!(-1)),
        ("meta_depth", serde_json::json!("most")),
        ("model", serde_json::json!("vgg")),
        ("lambda", serde_json::json!(-0.1)),
        ("lambda", serde_json::json!("0.1")),
        ("lr", serde_json::json!(null)),
        ("weights", serde_json::json!("none")),
        ("temperature", serde_json::json!(0)),
    ];
    for (key, value) in bad {
        let bytes = changed(|header, _| settings(header, key, value.clone()));
        let error = run(&bytes).1.expect_err(&format!("{key} = {value}"));
        assert!([2, 3].contains(&error.exit_code()), "{key} = {value}: {error}");
        let text = error.to_string();
        assert!(
            text.contains("expected") && text.contains("found"),
            "{key} = {value}: {text}"
        );
    }
}

/// Sizes that no network has are the file's fault, also where its tensors agree with them.
#[test]
fn a_size_of_nothing_names_the_file() {
    let no_pixels = changed(|header, payload| {
        settings(header, "image_size", serde_json::json!(0));
        let range = |value: &serde_json::Value| {
            let at = |i: usize| value["data_offsets"][i].as_u64().unwrap() as usize;
            at(0)..at(1)
        };
        let mut names: Vec<String> = header.keys().filter(|n| *n != "__metadata__").cloned().collect();
        names.sort_by_key(|name| range(&header[name]).start);
        let mut rest = Vec::new();
        for name in names {
            let (start, bytes) = (rest.len(), range(&header[&name]));
            if name.ends_with(".images") {
                let shape = header[&name]["shape"].as_array_mut().unwrap();
                (shape[2], shape[3]) = (0.into(), 0.into());
            } else {
                rest.extend_from_slice(&payload[bytes]);
            }
            header[&name]["data_offsets"] = serde_json::json!([start, rest.len()]);
        }
        *payload = rest;
    });
    let no_channels = changed(|header, _| settings(header, "width", serde_json::json!(0)));
    for bytes in [no_pixels, no_channels] {
        let error = run(&bytes).1.unwrap_err();
        assert_eq!(error.exit_code(), 3, "{error}");
        let text = error.to_string();
        assert!(
            text.contains("in.safetensors") && text.contains("found 0"),
            "{text}"
        );
    }
}

#[test]
fn hostile_tensors_are_refused_by_name() {
    let bytes = std::fs::read(fixtures::input("frozen-momentum-n1")).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let all: Vec<&String> = header.keys().filter(|name| *name != "__metadata__").collect();
    for name in all {
        // Missing: rename it.
        let missing = changed(|header, _| {
            let value = header.remove(name).unwrap();
            header.insert(format!("{name}_"), value);
        });
        let error = run(&missing).1.expect_err(name);
        assert_eq!(error.exit_code(), 3, "{error}");
        assert!(error.to_string().contains(name.as_str()), "{error}");

        // Wrong element type of the same size.
        let mistyped = changed(|header, _| {
            let dtype = if header[name]["dtype"] == "I64" {
                "F64"
            } else {
                "I32"
            };
            header[name]["dtype"] = dtype.into();
        });
        let error = run(&mistyped).1.expect_err(name);
        assert_eq!(error.exit_code(), 3, "{error}");
        assert!(error.to_string().contains(name.as_str()), "{error}");

        // Not a number; for labels, out of range.
        let poisoned = changed(|header, payload| {
            let start = header[name]["data_offsets"][0].as_u64().unwrap() as usize;
            payload[start..start + 4].fill(0xff);
        });
        let error = run(&poisoned).1.expect_err(name);
        assert_eq!(error.exit_code(), 3, "{name}: {error}");
        assert!(error.to_string().contains(name.as_str()), "{error}");

        // Of the floats only variances must not be below 0.
        let negative = changed(|header, payload| {
            let start = header[name]["data_offsets"][0].as_u64().unwrap() as usize;
            payload[start..start + 4].copy_from_slice(&(-1f32).to_le_bytes());
        });
        if name.ends_with("running_var") {
            let text = run(&negative).1.expect_err(name).to_string();
            assert!(text.contains("a variance") && text.contains("found -1"), "{text}");
        } else if !name.ends_with("labels") {
            run(&negative).1.expect(name);
        }
    }
}

#[test]
fn every_truncation_is_refused() {
    let bytes = std::fs::read(fixtures::input("frozen-momentum-n1")).unwrap();
    for length in (0..bytes.len()).step_by(61) {
        let error = run(&bytes[..length]).1.expect_err(&format!("{length} bytes"));
        assert_eq!(error.exit_code(), 3, "{length}: {error}");
    }
}

#[test]
fn a_missing_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("nowhere.safetensors");
    let cpu = Cpu::<f64>::new(Some(1)).unwrap();
    let error = l2b::meta_step::run(cpu, &input, Path::new("unused"), InnerProduct::Tangent).unwrap_err();
    assert_eq!(error.exit_code(), 1);
    assert!(error.to_string().contains("nowhere.safetensors"), "{error}");
}
