//! `kernels/*.cu` -> `$OUT_DIR/kernels.fatbin`: machine code for the architectures that the engine is tuned for, and PTX
//! that the driver compiles for later ones.
//!
//! One translation unit includes every file, each in a namespace of its own (kernels keep their plain names, being
//! `extern "C"`): one image to load, no device linker, and the headers are parsed once for each architecture. Files named
//! `*_sm90.cu` are seen by the pass for sm_90a alone: elsewhere the image lacks their kernels.
//!
//! What nvcc and ptxas remark is shown by cargo and kept in `$OUT_DIR/kernels.remarks`, which scripts/kernel-table judges.

use crate::cache::{self, Job};
use crate::scan::Source;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Architectures without `L2B_CUDA_ARCH`: code for A100 and H100, PTX for whatever comes later. `L2B_CUDA_ARCH=none`
/// leaves nvcc out, for builds that only run on the emulator.
const DEFAULT_ARCHITECTURES: &str = "sm_80,sm_90a,compute_80";

pub fn build(sources: &[Source], out: &Path) -> Result<(), String> {
    for variable in ["L2B_NVCC", "L2B_CUDA_ARCH", "CUDA_HOME"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let fatbin = out.join("kernels.fatbin");
    let named = std::env::var("L2B_CUDA_ARCH").ok().filter(|a| !a.is_empty());
    let none = || {
        println!("cargo:rustc-env=L2B_FATBIN_ARCHITECTURES=");
        std::fs::write(&fatbin, []).map_err(|e| format!("{}: {e}", fatbin.display()))
    };
    if named.as_deref() == Some("none") {
        return none();
    }
    let Some(nvcc) = find_nvcc()? else {
        println!(
            "cargo:warning=no nvcc: this build holds no kernels for a GPU; \
             run scripts/cuda-toolchain, or set L2B_NVCC or CUDA_HOME"
        );
        return none();
    };

    let unit = out.join("kernels.cu");
    cache::write_if_changed(&unit, &translation_unit(sources)?);
    let architectures = named.unwrap_or(DEFAULT_ARCHITECTURES.into());
    println!("cargo:rustc-env=L2B_FATBIN_ARCHITECTURES={architectures}");
    let mut arguments: Vec<String> = [
        "-fatbin",
        "-std=c++17",
        "-O3",
        "-lineinfo",
        "-Ikernels",
        "--threads",
        "0",
    ]
    .map(String::from)
    .into();
    arguments.extend(code_options(&architectures)?);

    let mut command = Command::new(&nvcc);
    command.args(&arguments).arg(&unit);
    let inputs = cache::files(Path::new("kernels"), &["cu", "cuh"])?;
    let compiler = std::fs::metadata(&nvcc).map_err(|e| format!("{}: {e}", nvcc.display()))?;
    arguments.push(format!(
        "{} {} {:?}",
        nvcc.display(),
        compiler.len(),
        compiler.modified().ok()
    ));
    let product = cache::product(out, "kernels.fatbin", cache::key(&inputs, &arguments)?);
    cache::run(vec![Job {
        command,
        product: product.clone(),
    }])?;
    let remarks =
        std::fs::read_to_string(cache::remarks(&product)).map_err(|e| format!("nvcc's remarks: {e}"))?;
    for line in remarks.lines().filter(|line| !line.trim().is_empty()) {
        println!("cargo:warning={line}");
    }
    cache::write_if_changed(&out.join("kernels.remarks"), &remarks);
    std::fs::copy(&product, &fatbin)
        .map(drop)
        .map_err(|e| format!("{}: {e}", fatbin.display()))
}

/// `L2B_NVCC`, the folder that scripts/cuda-toolchain fills, `CUDA_HOME`, `PATH`. What a variable names must exist.
fn find_nvcc() -> Result<Option<PathBuf>, String> {
    if let Some(path) = std::env::var_os("L2B_NVCC").filter(|p| !p.is_empty()) {
        let path = PathBuf::from(path);
        return if path.is_file() {
            Ok(Some(path))
        } else {
            Err(format!("L2B_NVCC={}: no such file", path.display()))
        };
    }
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let mut candidates = vec![root.join(".cuda/nvidia/cu13/bin/nvcc")];
    candidates.extend(std::env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin/nvcc")));
    if let Some(path) = std::env::var_os("PATH") {
        candidates.extend(std::env::split_paths(&path).map(|folder| folder.join("nvcc")));
    }
    Ok(candidates.into_iter().find(|c| c.is_file()))
}

fn translation_unit(sources: &[Source]) -> Result<String, String> {
    let mut text = String::from("// Written by build/fatbin.rs.\n#include \"dialect.cuh\"\n");
    // Headers first, outside of the namespaces; `#pragma once` then makes the files' own includes empty.
    for header in cache::files(Path::new("kernels"), &["cuh"])? {
        let name = header
            .file_name()
            .expect("a header has a name")
            .to_string_lossy()
            .into_owned();
        text += &format!("#include \"{name}\"\n");
    }
    for source in sources {
        let stem = source.stem();
        let include = format!("namespace {stem}_cu {{\n#include \"{stem}.cu\"\n}}\n");
        text += &if source.sm90() {
            format!("#ifdef __CUDA_ARCH_FEAT_SM90_ALL\n{include}#endif\n")
        } else {
            include
        };
    }
    Ok(text)
}

/// "sm_80,sm_90a,compute_80" as nvcc's options. What shares a compute architecture shares one compilation.
fn code_options(architectures: &str) -> Result<Vec<String>, String> {
    let mut by_compute = std::collections::BTreeMap::<String, Vec<&str>>::new();
    for architecture in architectures.split(',').map(str::trim) {
        let version = architecture
            .strip_prefix("sm_")
            .or_else(|| architecture.strip_prefix("compute_"));
        match version {
            Some(v) if v.starts_with(|c: char| c.is_ascii_digit()) => {
                by_compute
                    .entry(format!("compute_{v}"))
                    .or_default()
                    .push(architecture);
            }
            _ => {
                return Err(format!(
                    "L2B_CUDA_ARCH: {architecture} is not understood, expected like sm_90a,compute_80"
                ));
            }
        }
    }
    Ok(by_compute
        .iter()
        .map(|(compute, code)| format!("-gencode=arch={compute},code=[{}]", code.join(",")))
        .collect())
}
