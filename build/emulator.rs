//! `kernels/*.cu` + `kernels/emulator/*.cpp` -> `libcuda.so`, which runs the kernels on the CPU (kernels/emulator/driver.h).
//! The planted faults of tests/faults join it: no build of l2b holds them.
//!
//! Its soname is that of the real driver: once it has been loaded by its path, whoever opens `libcuda.so` gets it.

use crate::cache::{self, Job};
use crate::scan::Source;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Never below -O2, even in debug builds: kernels would be twenty times slower. No contraction of a * b + c, so that
/// results do not depend on the compiler's mood; strict aliasing is not what CUDA code is written for.
const FLAGS: &[&str] = &[
    "-std=c++20",
    "-O2",
    "-march=x86-64-v3",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wno-unknown-pragmas",
    "-Wno-psabi",
    "-Ikernels",
    "-Ikernels/emulator",
];

pub fn build(sources: &[Source], faults: &[Source], out: &Path) -> Result<(), String> {
    if std::env::var("CARGO_CFG_TARGET_ARCH").as_deref() != Ok("x86_64") {
        return Err(
            "the feature `emulator` needs an x86-64 machine: its fibers are switched in assembly".into(),
        );
    }
    let generated = out.join("emulator");
    std::fs::create_dir_all(&generated).map_err(|e| format!("{}: {e}", generated.display()))?;

    let mut units = cache::files(Path::new("kernels/emulator"), &["cpp"])?;
    let mut registrations = Vec::new();
    for source in sources.iter().chain(faults) {
        let folder = source
            .path
            .parent()
            .and_then(Path::file_name)
            .unwrap_or_default()
            .to_string_lossy();
        let unit = generated.join(format!("{folder}_{}.cpp", source.stem()));
        cache::write_if_changed(&unit, &registration(source));
        units.push(unit.clone());
        registrations.push(unit);
    }
    // For scripts/sanitize, which compiles the same units with other options.
    cache::write_if_changed(&generated.join("flags"), &lines(FLAGS));
    let list: Vec<_> = units.iter().map(|u| u.to_string_lossy()).collect();
    cache::write_if_changed(&generated.join("units"), &lines(&list));

    let mut headers = cache::files(Path::new("kernels"), &["cuh"])?;
    headers.extend(cache::files(Path::new("kernels/emulator"), &["h"])?);
    let version =
        cache::version("g++").map_err(|e| format!("the feature `emulator` needs g++ 12 or later: {e}"))?;
    let mut compilation = vec![version.clone()];
    compilation.extend(FLAGS.iter().map(|f| f.to_string()));
    let mut jobs = Vec::new();
    for unit in &units {
        let mut inputs = headers.clone();
        inputs.push(unit.clone());
        if let Some(at) = registrations.iter().position(|r| r == unit) {
            inputs.push(
                sources
                    .iter()
                    .chain(faults)
                    .nth(at)
                    .expect("one unit per source")
                    .path
                    .clone(),
            );
        }
        let name = unit.file_stem().expect("a unit has a name").to_string_lossy();
        let product = cache::product(out, &format!("{name}.o"), cache::key(&inputs, &compilation)?);
        let mut command = Command::new("g++");
        command.args(FLAGS).arg("-c").arg(unit);
        jobs.push(Job { command, product });
    }
    let objects: Vec<PathBuf> = jobs.iter().map(|j| j.product.clone()).collect();
    let names: Vec<String> = objects.iter().map(|o| o.to_string_lossy().into_owned()).collect();
    // For scripts/planted-faults, which replaces one of them: in the order of the units.
    cache::write_if_changed(&generated.join("objects"), &lines(&names));
    cache::run(jobs)
        .map_err(|e| format!("building the emulator (feature `emulator`, needs g++ 12 or later):\n{e}"))?;

    let mut command = Command::new("g++");
    command
        .args(["-shared", "-Wl,-soname,libcuda.so", "-Wl,--no-undefined"])
        .args(&objects)
        .arg("-lpthread");
    // All that the linker is told; the objects' names stand for their contents.
    let mut link = vec![version];
    link.extend(command.get_args().map(|a| a.to_string_lossy().into_owned()));
    let product = cache::product(out, "libcuda.so", cache::key(&[], &link)?);
    cache::run(vec![Job {
        command,
        product: product.clone(),
    }])?;
    // Replaced in one step: a running test may have the old one mapped.
    let (library, part) = (out.join("libcuda.so"), out.join("libcuda.so.part"));
    std::fs::copy(&product, &part)
        .and_then(|_| std::fs::rename(&part, &library))
        .map_err(|e| format!("{}: {e}", library.display()))?;
    println!("cargo:rustc-env=L2B_EMULATOR_LIB={}", library.display());
    Ok(())
}

/// A translation unit that holds a source file and enters its kernels in the emulator's table.
fn registration(source: &Source) -> String {
    let path = std::path::absolute(&source.path).expect("the build runs in a folder that exists");
    let mut text = format!(
        "// Written by build/emulator.rs.\n#include \"{}\"\n\n#include \"registry.h\"\n",
        path.display()
    );
    if source.kernels.is_empty() {
        return text;
    }
    text += "\nstatic const emulator::Kernel kernels[] = {\n";
    for kernel in &source.kernels {
        let (name, threads, sm90) = (&kernel.name, &kernel.max_threads, source.sm90());
        text += &format!("    EMULATOR_KERNEL({name}, {threads}, {sm90}),\n");
    }
    text += "};\nstatic const emulator::Registration registration(kernels);\n";
    text
}

/// One item a line, the last one ended too: what a shell's `read` wants.
fn lines(items: &[impl AsRef<str>]) -> String {
    items.iter().map(|item| format!("{}\n", item.as_ref())).collect()
}
