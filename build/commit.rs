//! Which commit the binary is built from: `L2B_COMMIT` ("unknown" outside of a git checkout) and `L2B_DIRTY` ("true",
//! "false", "unknown").

use std::path::Path;
use std::process::Command;

pub fn find() {
    let commit = git(&["rev-parse", "HEAD"]);
    let dirty = match commit {
        Some(_) => git(&["status", "--porcelain", "--untracked-files=no"]).map(|files| !files.is_empty()),
        None => None,
    };
    let text = |known: Option<String>| known.unwrap_or_else(|| "unknown".into());
    println!("cargo:rustc-env=L2B_COMMIT={}", text(commit));
    println!("cargo:rustc-env=L2B_DIRTY={}", text(dirty.map(|d| d.to_string())));
    // What moves when a commit is made or checked out, and what makes the checkout dirty.
    for name in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--git-path", name]).filter(|p| Path::new(p).exists()) {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    for path in ["src", "Cargo.toml", "Cargo.lock"] {
        println!("cargo:rerun-if-changed={path}");
    }
}

/// Output of a git command in this package's checkout; None without git, or where the package is not a checkout of its own.
fn git(arguments: &[&str]) -> Option<String> {
    if !Path::new(".git").exists() {
        return None;
    }
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
