//! Files and folders that appear whole or not at all: written under a temporary name beside the target, synced to
//! disk, renamed, and the parent folder synced. A crash leaves at most a `.NAME.tmp-…` sibling, never a half file.

use crate::{Error, Result};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// Writes `bytes` to `path`; an existing file is replaced in one step, so maps of the old one stay valid.
///
/// # Errors
/// `Io`, naming the target; the temporary file is removed.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let (temporary, mut file) = beside(path, |path| File::create_new(path))?;
    let mut write = || {
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_folder(parent(path))
    };
    write().map_err(|source| {
        // The file may be missing: then there is nothing to remove.
        let _ = fs::remove_file(&temporary);
        Error::io(path, source)
    })
}

/// Refuses to write to a path that something already has, be it a dangling link. `option` is what named it.
///
/// # Errors
/// `Config` with the `hint`.
pub fn require_free(option: &str, path: &Path, hint: &str) -> Result<()> {
    if fs::symlink_metadata(path).is_err() {
        return Ok(());
    }
    let found = path.display().to_string();
    Err(Error::config(
        option,
        "a path that does not exist yet",
        found,
        hint,
    ))
}

/// `PATH-1`, `PATH-2`, …
pub fn numbered(path: &Path) -> impl Iterator<Item = PathBuf> {
    (1u32..).map(|number| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!("-{number}"));
        name.into()
    })
}

/// Makes something new called by the first of `names` that nothing has yet and that no other process is given first.
///
/// # Errors
/// `Io`: that of `make`, or of the last name where all are taken.
pub fn first_free(
    names: impl IntoIterator<Item = PathBuf>,
    make: impl Fn(&Path) -> std::io::Result<()>,
) -> Result<PathBuf> {
    let mut refused = Error::Internal("no name to choose from".into());
    for name in names {
        let made = match fs::symlink_metadata(&name) {
            // Empty folders too, which a rename would replace.
            Ok(_) => Err(ErrorKind::AlreadyExists.into()),
            Err(_) => make(&name),
        };
        let Err(error) = made else { return Ok(name) };
        let taken = matches!(
            error.kind(),
            ErrorKind::AlreadyExists | ErrorKind::DirectoryNotEmpty
        );
        refused = Error::io(name, error);
        if !taken {
            break;
        }
    }
    Err(refused)
}

/// A folder under construction; dropped before [`NewFolder::commit`], it is removed with all it holds.
#[derive(Debug)]
pub struct NewFolder {
    temporary: PathBuf,
    target: PathBuf,
    committed: bool,
}

impl NewFolder {
    /// Starts a folder that will become `target`; its parents are created.
    ///
    /// # Errors
    /// `Io`.
    pub fn create(target: &Path) -> Result<Self> {
        fs::create_dir_all(parent(target)).map_err(|e| Error::io(parent(target), e))?;
        let (temporary, ()) = beside(target, |path| fs::create_dir(path))?;
        Ok(NewFolder {
            temporary,
            target: target.to_owned(),
            committed: false,
        })
    }

    /// Where the files go until [`NewFolder::commit`].
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// The final path.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Gives the folder its final name.
    ///
    /// # Errors
    /// `Io`, also when something is there; the temporary folder is then removed.
    pub fn commit(self) -> Result<()> {
        let target = self.target.clone();
        self.commit_first([target]).map(drop)
    }

    /// Gives the folder the first of these names, all beside its target, that nothing has.
    ///
    /// # Errors
    /// As [`NewFolder::commit`].
    pub fn commit_first(mut self, names: impl IntoIterator<Item = PathBuf>) -> Result<PathBuf> {
        sync_folder(&self.temporary).map_err(|e| Error::io(&self.target, e))?;
        let name = first_free(names, |name| fs::rename(&self.temporary, name))?;
        self.committed = true;
        sync_folder(parent(&name)).map_err(|e| Error::io(&name, e))?;
        Ok(name)
    }
}

impl Drop for NewFolder {
    fn drop(&mut self) {
        if !self.committed {
            let _ = fs::remove_dir_all(&self.temporary);
        }
    }
}

/// The folder that holds `path`.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Makes something new called `.NAME.tmp-PROCESS-NUMBER` beside `path`: on the same file system, so that the rename is
/// one step. Names left by a killed process of the same number (usual in containers) are passed over.
fn beside<T>(path: &Path, make: impl Fn(&Path) -> std::io::Result<T>) -> Result<(PathBuf, T)> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mut name = OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        name.push(format!(".tmp-{}-{number}", std::process::id()));
        let temporary = parent(path).join(name);
        match make(&temporary) {
            Ok(made) => return Ok((temporary, made)),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(e) => return Err(Error::io(path, e)),
        }
    }
}

/// A rename is on disk only once its folder is.
fn sync_folder(folder: &Path) -> std::io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<OsString> {
        fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect()
    }

    #[test]
    fn file_replaces_and_failure_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        write_file(&path, b"one").unwrap();
        write_file(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(names(folder.path()), ["a"]);

        // A folder in the way makes the rename fail.
        let blocked = folder.path().join("b");
        fs::create_dir(&blocked).unwrap();
        assert_eq!(write_file(&blocked, b"x").unwrap_err().exit_code(), 1);
        assert_eq!(names(folder.path()).len(), 2);
    }

    #[test]
    fn only_a_free_path_is_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        require_free("--out", &path, "").unwrap();
        std::os::unix::fs::symlink("nowhere", &path).unwrap();
        let error = require_free("--out", &path, "choose another").unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let want = format!(
            "--out: expected a path that does not exist yet, found {}\nhint: choose another",
            path.display()
        );
        assert_eq!(error.to_string(), want);
    }

    #[test]
    fn leftovers_of_a_killed_process_are_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let leftover = |number| {
            folder
                .path()
                .join(format!(".a.tmp-{}-{number}", std::process::id()))
        };
        (0..200).for_each(|number| fs::write(leftover(number), "half").unwrap());
        write_file(&folder.path().join("a"), b"whole").unwrap();
        NewFolder::create(&folder.path().join("b"))
            .unwrap()
            .commit()
            .unwrap();
        assert_eq!(fs::read(folder.path().join("a")).unwrap(), b"whole");
        assert_eq!(fs::read(leftover(0)).unwrap(), b"half");
        assert_eq!(names(folder.path()).len(), 202);
    }

    #[test]
    fn folder_appears_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("deep/er");
        let new = NewFolder::create(&target).unwrap();
        fs::write(new.path().join("f"), "x").unwrap();
        assert!(!target.exists());
        drop(new);
        assert!(names(target.parent().unwrap()).is_empty());

        let new = NewFolder::create(&target).unwrap();
        fs::write(new.path().join("f"), "x").unwrap();
        new.commit().unwrap();
        assert_eq!(names(&target), ["f"]);
        assert_eq!(
            NewFolder::create(&target)
                .unwrap()
                .commit()
                .unwrap_err()
                .exit_code(),
            1
        );
    }

    #[test]
    fn commit_never_replaces() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("d");
        let new = NewFolder::create(&target).unwrap();
        fs::create_dir(&target).unwrap();
        assert_eq!(new.commit().unwrap_err().exit_code(), 1);
        let new = NewFolder::create(&target).unwrap();
        fs::write(target.join("theirs"), "x").unwrap();
        assert_eq!(new.commit().unwrap_err().exit_code(), 1);
        assert_eq!(names(folder.path()), ["d"]);
        assert_eq!(names(&target), ["theirs"]);
    }

    /// Two that were started together: the second finds the first one's name taken when it is done.
    #[test]
    fn the_next_number_where_one_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("d");
        let path = |number: u32| folder.path().join(format!("d-{number}"));
        let both = [(); 2].map(|()| NewFolder::create(&base).unwrap());
        fs::write(path(2), "a file").unwrap();
        let got = both.map(|new| {
            fs::write(new.path().join("f"), "x").unwrap();
            new.commit_first(numbered(&base)).unwrap()
        });
        assert_eq!(got, [path(1), path(3)]);
        assert_eq!(names(folder.path()).len(), 3);
        // Taken between the look and the making of it.
        let make = |name: &Path| match name == path(4) {
            true => Err(ErrorKind::DirectoryNotEmpty.into()),
            false => fs::create_dir(name),
        };
        assert_eq!(first_free(numbered(&base), make).unwrap(), path(5));
        // Another error is none that the next number would help.
        let refused = first_free(numbered(&base), |_| Err(ErrorKind::PermissionDenied.into())).unwrap_err();
        assert!(refused.to_string().contains("d-4"), "{refused}");
    }
}
