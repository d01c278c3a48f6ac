//! Finds kernels: `extern "C" __global__ void [__launch_bounds__(N[, M])] name(`, written out in a `.cu` file. Reading
//! the text instead of asking a compiler is what lets a build without one know the names.

use std::path::{Path, PathBuf};

/// A `.cu` file and its kernels, in the order of the text.
pub struct Source {
    pub path: PathBuf,
    pub kernels: Vec<Kernel>,
}

pub struct Kernel {
    pub name: String,
    /// First argument of `__launch_bounds__` as it stands in the source; "0" without one.
    pub max_threads: String,
}

impl Source {
    /// The file's name without folder and extension.
    pub fn stem(&self) -> String {
        self.path
            .file_stem()
            .expect("a source has a name")
            .to_string_lossy()
            .into_owned()
    }

    /// Whether it is for sm_90a alone (`*_sm90.cu`): no other architecture has what its kernels use.
    pub fn sm90(&self) -> bool {
        self.stem().ends_with("_sm90")
    }
}

/// All `.cu` files of a folder.
pub fn sources(folder: &Path) -> Result<Vec<Source>, String> {
    let mut sources = Vec::new();
    let mut names = std::collections::BTreeMap::new();
    for path in crate::cache::files(folder, &["cu"])? {
        let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let kernels = kernels(&text).map_err(|what| format!("{}: {what}", path.display()))?;
        for kernel in &kernels {
            if let Some(other) = names.insert(kernel.name.clone(), path.clone()) {
                let (a, b) = (other.display(), path.display());
                return Err(format!("kernel {} is defined in {a} and in {b}", kernel.name));
            }
        }
        sources.push(Source { path, kernels });
    }
    Ok(sources)
}

fn kernels(text: &str) -> Result<Vec<Kernel>, String> {
    let text = without_comments(text);
    if let Some(line) = text
        .lines()
        .find(|l| l.trim_start().starts_with("#define") && l.contains("__global__"))
    {
        return Err(format!(
            "a kernel made by a macro is not found by name: {}",
            line.trim()
        ));
    }
    let mut found = Vec::new();
    let mut rest = text.as_str();
    while let Some(at) = rest.find("__global__") {
        if !rest[..at].trim_end().ends_with("extern \"C\"") {
            return Err("a kernel must be declared extern \"C\" __global__ void".into());
        }
        rest = rest[at + "__global__".len()..].trim_start();
        let (kernel, after) = kernel(rest).ok_or_else(|| {
            let line = rest.lines().next().unwrap_or_default();
            format!("not understood after __global__: {line}")
        })?;
        found.push(kernel);
        rest = after;
    }
    Ok(found)
}

/// Reads `void [__launch_bounds__(N)] name(`; the bounds may also stand before `void`.
fn kernel(text: &str) -> Option<(Kernel, &str)> {
    let mut rest = text;
    let mut max_threads = "0".to_owned();
    loop {
        rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix("void") {
            rest = after;
        } else if let Some(after) = rest.strip_prefix("__launch_bounds__") {
            let (arguments, after) = parenthesised(after.trim_start())?;
            max_threads = first_argument(arguments).trim().to_owned();
            rest = after;
        } else {
            break;
        }
    }
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_')?;
    let (name, after) = rest.split_at(end);
    let valid = !name.is_empty() && after.trim_start().starts_with('(');
    valid.then(|| {
        (
            Kernel {
                name: name.to_owned(),
                max_threads,
            },
            after,
        )
    })
}

/// Splits "(a(b)c)d" into "a(b)c" and "d".
fn parenthesised(text: &str) -> Option<(&str, &str)> {
    let mut depth = 0;
    for (i, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return text[..i].strip_prefix('(').map(|inner| (inner, &text[i + 1..]));
        }
    }
    None
}

/// The text up to the first comma outside of parentheses.
fn first_argument(arguments: &str) -> &str {
    let mut depth = 0;
    for (i, c) in arguments.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => return &arguments[..i],
            _ => {}
        }
    }
    arguments
}

fn without_comments(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('/') {
        let (before, tail) = rest.split_at(at);
        kept.push_str(before);
        rest = if tail.starts_with("//") {
            tail.find('\n').map_or("", |end| &tail[end..])
        } else if tail.starts_with("/*") {
            tail.find("*/").map_or("", |end| &tail[end + 2..])
        } else {
            kept.push('/');
            &tail[1..]
        };
    }
    kept + rest
}
