//! NVTX ranges by NVTX 3's injection protocol: a profiler (Nsight Systems, Nsight Compute) names a library in
//! `NVTX_INJECTION64_PATH`; the program opens it and lends it a table of function pointers, in which the profiler enters its
//! own. No library of NVIDIA's is linked or needed, and without a profiler a range costs one load.
//!
//! Structs, numbers and order of the tables are those of NVTX 3's headers (`nvtxTypes.h`).

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

/// `NVTX_CB_MODULE_CORE` and the number of its functions, and the two that are used: `nvtxRangePushA`, `nvtxRangePop`.
const CORE: c_int = 1;
const FUNCTIONS: usize = 16;
const RANGE_PUSH: usize = 9;
const RANGE_POP: usize = 11;

/// `NvtxExportTableID`.
const CALLBACKS: u32 = 1;
const VERSION_INFO: u32 = 3;

type Slot = AtomicPtr<c_void>;
type GetExportTable = extern "C" fn(u32) -> *const c_void;
type Initialize = unsafe extern "C" fn(GetExportTable) -> c_int;

#[repr(C)]
struct ExportCallbacks {
    size: usize,
    get_function_table: extern "C" fn(c_int, *mut *const *const Slot, *mut c_uint) -> c_int,
}

#[repr(C)]
struct ExportVersion {
    size: usize,
    version: u32,
    reserved: u32,
    set_injection_version: extern "C" fn(u32),
}

static SLOTS: [Slot; FUNCTIONS] = [const { Slot::new(std::ptr::null_mut()) }; FUNCTIONS];

/// Addresses of the slots, between a null at either end, as the headers lay them out.
struct Table([*const Slot; FUNCTIONS + 1]);
// SAFETY: addresses of statics, never changed.
unsafe impl Sync for Table {}

static TABLE: Table = {
    let mut table = [std::ptr::null(); FUNCTIONS + 1];
    let mut i = 1;
    while i < FUNCTIONS {
        table[i] = &raw const SLOTS[i];
        i += 1;
    }
    Table(table)
};

static EXPORT_CALLBACKS: ExportCallbacks = ExportCallbacks {
    size: size_of::<ExportCallbacks>(),
    get_function_table,
};

static EXPORT_VERSION: ExportVersion = ExportVersion {
    size: size_of::<ExportVersion>(),
    version: 3,
    reserved: 0,
    set_injection_version,
};

extern "C" fn get_function_table(module: c_int, table: *mut *const *const Slot, size: *mut c_uint) -> c_int {
    if module != CORE {
        return 0;
    }
    // SAFETY: the profiler passes null, or the address of a variable of its own.
    unsafe {
        if !table.is_null() {
            *table = TABLE.0.as_ptr();
        }
        if !size.is_null() {
            *size = FUNCTIONS as c_uint;
        }
    }
    1
}

extern "C" fn set_injection_version(_: u32) {}

extern "C" fn get_export_table(id: u32) -> *const c_void {
    match id {
        CALLBACKS => (&raw const EXPORT_CALLBACKS).cast(),
        VERSION_INFO => (&raw const EXPORT_VERSION).cast(),
        _ => std::ptr::null(),
    }
}

/// The functions that a profiler has entered.
struct Profiler {
    push: extern "C" fn(*const c_char) -> c_int,
    pop: extern "C" fn() -> c_int,
}

impl Profiler {
    /// Asks the library that the environment names, if any.
    fn find() -> Option<Self> {
        let path = CString::new(std::env::var("NVTX_INJECTION64_PATH").ok()?).ok()?;
        // SAFETY: the user asks for this library to be loaded by setting the variable; C strings.
        let symbol = unsafe {
            let library = libc::dlopen(path.as_ptr(), libc::RTLD_LAZY);
            if library.is_null() {
                return None;
            }
            libc::dlsym(library, c"InitializeInjectionNvtx2".as_ptr())
        };
        if symbol.is_null() {
            return None;
        }
        // SAFETY: by the protocol the function of that name has this type.
        Self::attach(unsafe { std::mem::transmute::<*mut c_void, Initialize>(symbol) })
    }

    fn attach(initialize: Initialize) -> Option<Self> {
        // SAFETY: by the protocol it only calls back for the tables above, whose slots are ours to be written.
        if unsafe { initialize(get_export_table) } == 0 {
            return None;
        }
        let entered = |slot: usize| {
            let function = SLOTS[slot].load(Ordering::Acquire);
            (!function.is_null()).then_some(function)
        };
        let (push, pop) = (entered(RANGE_PUSH)?, entered(RANGE_POP)?);
        // SAFETY: by the protocol these slots take functions of these types.
        unsafe {
            Some(Profiler {
                push: std::mem::transmute::<*mut c_void, extern "C" fn(*const c_char) -> c_int>(push),
                pop: std::mem::transmute::<*mut c_void, extern "C" fn() -> c_int>(pop),
            })
        }
    }

    /// Ends this thread's range, and begins one of that name.
    fn range(&self, name: Option<&CStr>) {
        thread_local!(static OPEN: Cell<bool> = const { Cell::new(false) });
        if OPEN.replace(name.is_some()) {
            (self.pop)();
        }
        if let Some(name) = name {
            (self.push)(name.as_ptr());
        }
    }
}

static PROFILER: OnceLock<Option<Profiler>> = OnceLock::new();

/// Ends the range that this thread is in, if any, and begins another; None: begins none.
pub(crate) fn range(name: Option<&CStr>) {
    if let Some(profiler) = PROFILER.get_or_init(Profiler::find) {
        profiler.range(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    static SEEN: Mutex<Vec<String>> = Mutex::new(Vec::new());

    extern "C" fn push(name: *const c_char) -> c_int {
        // SAFETY: the caller passes a C string.
        let name = unsafe { CStr::from_ptr(name) }.to_str().unwrap().to_owned();
        SEEN.lock().unwrap().push(name);
        0
    }

    extern "C" fn pop() -> c_int {
        SEEN.lock().unwrap().push("end".into());
        0
    }

    /// A profiler's side of the protocol, as `nvtxTypes.h` describes it.
    unsafe extern "C" fn initialize(get: GetExportTable) -> c_int {
        assert!(get(2).is_null());
        // SAFETY: the tables have the types that their numbers promise, and slots 9 and 11 are not null.
        unsafe {
            let version = &*get(VERSION_INFO).cast::<ExportVersion>();
            assert_eq!((version.size, version.version), (24, 3));
            (version.set_injection_version)(3);
            let callbacks = &*get(CALLBACKS).cast::<ExportCallbacks>();
            assert_eq!(callbacks.size, 16);
            let (mut table, mut size) = (std::ptr::null(), 0);
            assert_eq!((callbacks.get_function_table)(2, &mut table, &mut size), 0);
            assert_eq!((callbacks.get_function_table)(CORE, &mut table, &mut size), 1);
            assert!(size as usize > RANGE_POP);
            let entries = std::slice::from_raw_parts(table, FUNCTIONS + 1);
            assert!(entries[0].is_null() && entries[FUNCTIONS].is_null());
            (*entries[RANGE_PUSH]).store(push as *mut c_void, Ordering::Release);
            (*entries[RANGE_POP]).store(pop as *mut c_void, Ordering::Release);
        }
        1
    }

    unsafe extern "C" fn refuse(_: GetExportTable) -> c_int {
        0
    }

    #[test]
    fn a_profiler_sees_one_range_after_the_other() {
        assert!(Profiler::attach(refuse).is_none());
        let profiler = Profiler::attach(initialize).unwrap();
        for name in [None, Some(c"tangent"), Some(c"weights"), None] {
            profiler.range(name);
        }
        assert_eq!(*SEEN.lock().unwrap(), ["tangent", "end", "weights", "end"]);
    }
}
