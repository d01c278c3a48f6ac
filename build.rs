//! Builds what the crate embeds or loads beside its Rust code. Four steps, each in a module of `build/`:
//!
//! 1. `scan`: finds the kernels in `kernels/*.cu` and writes their names to `$OUT_DIR/kernel_names.rs`,
//!    those of `*_sm90.cu`, which are for sm_90a alone, to `$OUT_DIR/sm90_kernel_names.rs`;
//! 2. `fatbin`: with nvcc, compiles them into `$OUT_DIR/kernels.fatbin`; without it the file is empty and a warning
//!    says what to do;
//! 3. `commit`: the git commit, for records of measurements;
//! 4. `emulator` (cargo feature of that name): builds `libcuda.so`, which runs the same kernels on the CPU.
//!
//! Neither step needs a GPU, and what has not changed is taken from a cache: see `cache`.

#[path = "build/cache.rs"]
mod cache;
#[path = "build/commit.rs"]
mod commit;
#[path = "build/emulator.rs"]
mod emulator;
#[path = "build/fatbin.rs"]
mod fatbin;
#[path = "build/scan.rs"]
mod scan;

use std::path::{Path, PathBuf};

fn main() {
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    for path in ["build.rs", "build", "kernels"] {
        println!("cargo:rerun-if-changed={path}");
    }

    let sources = scan::sources(Path::new("kernels")).unwrap_or_else(|message| fail(&message));
    for (sm90, file) in [(false, "kernel_names.rs"), (true, "sm90_kernel_names.rs")] {
        let names: Vec<&str> = sources
            .iter()
            .filter(|s| s.sm90() == sm90)
            .flat_map(|s| s.kernels.iter().map(|k| k.name.as_str()))
            .collect();
        cache::write_if_changed(&out.join(file), &format!("&{names:?}"));
    }

    commit::find();
    fatbin::build(&sources, &out).unwrap_or_else(|message| fail(&message));
    if std::env::var_os("CARGO_FEATURE_EMULATOR").is_some() {
        println!("cargo:rerun-if-changed=tests/faults");
        let faults = scan::sources(Path::new("tests/faults")).unwrap_or_else(|message| fail(&message));
        emulator::build(&sources, &faults, &out).unwrap_or_else(|message| fail(&message));
    }
}

/// Ends the build with a message that cargo shows as it is, without a panic's trappings.
fn fail(message: &str) -> ! {
    eprintln!("{message}");
    std::process::exit(1);
}
