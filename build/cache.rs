//! Running compilers, several at a time, and only when their input changed.
//!
//! A product is kept under `target/kernel-cache` by a hash of everything it depends on. Cargo gives every combination of
//! profile, features and `check`/`build` its own `OUT_DIR`; without a common cache each would compile all kernels again.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

/// One compiler run: `command` is to write `product`.
pub struct Job {
    pub command: Command,
    pub product: PathBuf,
}

impl Job {
    fn is_done(&self) -> bool {
        self.product.exists() && remarks(&self.product).exists()
    }
}

/// What a compiler had to say while it made a product: kept beside it, since a successful run may still have warned.
pub fn remarks(product: &Path) -> PathBuf {
    product.with_extension("remarks")
}

/// Where a product lives whose inputs hash to `key`.
pub fn product(out: &Path, name: &str, key: u64) -> PathBuf {
    // OUT_DIR is target/<profile>/build/<package>/out.
    let target = out.ancestors().nth(4).unwrap_or(out);
    target.join("kernel-cache").join(format!("{key:016x}-{name}"))
}

/// Hash of files' names and contents and of anything else that decides a product, in the order given. Not of folders:
/// generated files lie in another `OUT_DIR` for every kind of build.
pub fn key(files: &[PathBuf], other: &[String]) -> Result<u64, String> {
    let mut hasher = DefaultHasher::new();
    for file in files {
        let content = std::fs::read(file).map_err(|e| format!("{}: {e}", file.display()))?;
        file.file_name().hash(&mut hasher);
        content.hash(&mut hasher);
    }
    other.hash(&mut hasher);
    Ok(hasher.finish())
}

/// What a compiler says of itself: part of the key, since another version makes other code of the same input.
pub fn version(compiler: &str) -> Result<String, String> {
    let output = Command::new(compiler)
        .arg("--version")
        .output()
        .map_err(|e| format!("{compiler} --version: {e}"))?;
    if !output.status.success() {
        return Err(format!("{compiler} --version: {}", output.status));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs the jobs whose product, or what was said of it, does not exist yet, as many at a time as there are cores.
pub fn run(jobs: Vec<Job>) -> Result<(), String> {
    let jobs: Vec<_> = jobs
        .into_iter()
        .filter(|j| !j.is_done())
        .map(std::sync::Mutex::new)
        .collect();
    let threads = std::thread::available_parallelism()
        .map_or(1, |n| n.get())
        .min(jobs.len());
    let next = AtomicUsize::new(0);
    let work = || -> Result<(), String> {
        while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let job = &mut *job.lock().expect("each job is taken once");
            run_one(job)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_for_each(|w| w.join().expect("a worker panicked"))
    })
}

fn run_one(job: &mut Job) -> Result<(), String> {
    let folder = job.product.parent().expect("products lie in the cache folder");
    std::fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    // Under another name first: an interrupted compiler, or two builds at once, leave no half product.
    let part = job.product.with_extension(format!("{}.part", std::process::id()));
    let command = job.command.arg("-o").arg(&part);
    let line = format!("{command:?}");
    let output = command.output().map_err(|e| format!("{line}: {e}"))?;
    if !output.status.success() {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        return Err(format!(
            "{line}\n{}{}",
            text(&output.stdout),
            text(&output.stderr)
        ));
    }
    let remarks = remarks(&job.product);
    std::fs::write(&remarks, output.stderr).map_err(|e| format!("{}: {e}", remarks.display()))?;
    std::fs::rename(&part, &job.product).map_err(|e| format!("{}: {e}", job.product.display()))
}

/// Writes a generated file unless it has this content already, so that its time of change stays.
pub fn write_if_changed(path: &Path, content: &str) {
    if std::fs::read_to_string(path).is_ok_and(|old| old == content) {
        return;
    }
    if let Err(e) = std::fs::write(path, content) {
        crate::fail(&format!("{}: {e}", path.display()));
    }
}

/// The files of a folder with one of these extensions, sorted.
pub fn files(folder: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>, String> {
    let entries = std::fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| format!("{}: {e}", folder.display()))?.path();
        if path
            .extension()
            .is_some_and(|e| extensions.iter().any(|x| e == *x))
        {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
