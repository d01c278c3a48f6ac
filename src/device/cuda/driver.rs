//! Which CUDA driver this process talks to, and what kernels the binary carries for it.
//!
//! cudarc opens `libcuda.so` by name at its first call. The emulator is a library with that very soname
//! (`kernels/emulator`, cargo feature `emulator`): loaded before, by its path, it is what cudarc then gets. So a process
//! has one driver for its whole life, the real one or the emulator, and no code beyond this file knows which.

use crate::{Error, Result};
use cudarc::driver::DriverError;
use std::ffi::{CStr, CString, c_char, c_void};
use std::sync::OnceLock;

/// Machine code of all kernels for `Ptx::from_binary`; empty in a build without nvcc. The emulator does not look at it.
pub static FATBIN: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/kernels.fatbin"));

/// What the machine code is for, e.g. "sm_80,sm_90a,compute_80"; empty in a build without nvcc.
pub const ARCHITECTURES: &str = env!("L2B_FATBIN_ARCHITECTURES");

/// Names of the kernels of `kernels/*.cu` that every architecture has, found by the build script.
pub const KERNEL_NAMES: &[&str] = include!(concat!(env!("OUT_DIR"), "/kernel_names.rs"));

/// Names of the kernels of `kernels/*_sm90.cu`: compiled for sm_90a alone, so there at compute capability 9.0 only.
pub const SM90_KERNEL_NAMES: &[&str] = include!(concat!(env!("OUT_DIR"), "/sm90_kernel_names.rs"));

/// The emulator, once loaded.
static EMULATOR: OnceLock<std::result::Result<Library, String>> = OnceLock::new();

/// An open shared library, never closed.
struct Library(*mut c_void);

// SAFETY: a handle of dlopen may be used from any thread.
unsafe impl Send for Library {}
unsafe impl Sync for Library {}

impl Library {
    fn open(path: &CStr) -> std::result::Result<Self, String> {
        // SAFETY: the path is a C string; the library's initialisers only enter kernels into a table of its own.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
        if !handle.is_null() {
            return Ok(Library(handle));
        }
        // SAFETY: after a failed dlopen, dlerror gives a C string that stays until this thread's next call.
        Err(unsafe { CStr::from_ptr(libc::dlerror()) }
            .to_string_lossy()
            .into_owned())
    }

    /// Address of a function; null if there is none of that name.
    fn symbol(&self, name: &CStr) -> *mut c_void {
        // SAFETY: the handle is open and the name a C string.
        unsafe { libc::dlsym(self.0, name.as_ptr()) }
    }
}

/// Makes the emulator this process's driver. Must come before the first use of cudarc; calling it again does nothing.
/// The library is the one built with the crate (feature `emulator`), or what `L2B_EMULATOR_LIB` names.
///
/// # Errors
/// The build holds no emulator, the library cannot be loaded, or another driver was loaded before.
pub fn load_emulator() -> Result<()> {
    EMULATOR
        .get_or_init(open_emulator)
        .as_ref()
        .map(|_| ())
        .map_err(|detail| {
            let hint = "build with `--features emulator`; L2B_EMULATOR_LIB names a library built elsewhere";
            Error::device("emulator", detail, hint)
        })
}

fn open_emulator() -> std::result::Result<Library, String> {
    let path = match std::env::var("L2B_EMULATOR_LIB") {
        Ok(path) => path,
        Err(_) => option_env!("L2B_EMULATOR_LIB")
            .ok_or("this build holds no emulator")?
            .to_owned(),
    };
    // dlopen gives what is loaded already under that soname; the real driver would answer in the emulator's place.
    let name = c"libcuda.so";
    // SAFETY: a C string; with RTLD_NOLOAD nothing is loaded and no initialiser runs.
    let loaded = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD) };
    let loaded = (!loaded.is_null()).then_some(Library(loaded));
    if loaded.is_some_and(|library| library.symbol(c"l2b_emulator_last_error").is_null()) {
        return Err("the CUDA driver of a GPU is already loaded in this process".into());
    }
    let path = CString::new(path).map_err(|_| "the path of the emulator holds a zero byte".to_owned())?;
    Library::open(&path)
}

/// Whether there is a driver: the emulator once loaded, else the system's. To be asked before `CudaContext::new`, which
/// panics without one. Says nothing about a GPU being there.
pub fn present() -> bool {
    // SAFETY: opens the system's libraries of that name, as every CUDA program does.
    unsafe { cudarc::driver::sys::is_culib_present() }
}

/// What the emulator has to say about this thread's last driver error: kernel, block, thread, what happened. `None` on a
/// real driver, and before any error.
pub fn emulator_last_error() -> Option<String> {
    let symbol = emulator_symbol(c"l2b_emulator_last_error")?;
    // SAFETY: the emulator declares it as `const char* l2b_emulator_last_error()`; the string stays valid until this
    // thread's next driver call and is copied here.
    let text = unsafe {
        let function: extern "C" fn() -> *const c_char = std::mem::transmute(symbol);
        CStr::from_ptr(function()).to_string_lossy().into_owned()
    };
    (!text.is_empty()).then_some(text)
}

/// A function of the loaded emulator by its exported name, for tests that steer it (`kernels/emulator/options.h`).
pub fn emulator_symbol(name: &CStr) -> Option<*mut c_void> {
    let library = EMULATOR.get()?.as_ref().ok()?;
    let symbol = library.symbol(name);
    (!symbol.is_null()).then_some(symbol)
}

/// A driver error as the library's own, with the emulator's diagnosis where there is one. `what` is the operation or
/// kernel.
pub fn device_error(what: impl Into<String>, error: DriverError) -> Error {
    let name = error.error_name().map_or("unknown driver error".into(), |n| {
        n.to_string_lossy().into_owned()
    });
    let text = error
        .error_string()
        .map_or(String::new(), |t| format!(" ({})", t.to_string_lossy()));
    let diagnosis = emulator_last_error().map_or(String::new(), |d| format!(": {d}"));
    Error::device(what, format!("{name}{text}{diagnosis}"), "")
}

#[cfg(all(test, not(feature = "emulator")))]
mod tests {
    #[test]
    fn a_build_without_the_emulator_says_how_to_get_one() {
        let error = super::load_emulator()
            .expect_err("there is nothing to load")
            .to_string();
        assert!(error.contains("--features emulator"), "{error}");
    }
}
