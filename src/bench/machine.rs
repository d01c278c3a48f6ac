//! What was measured on: device, driver, clocks, commit, date.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::device::choice::DeviceChoice;
use crate::device::cuda;

/// Commit that the binary was built from, and whether files differed from it; "unknown" and None outside of a checkout.
pub const COMMIT: &str = env!("L2B_COMMIT");
pub const DIRTY: Option<bool> = match env!("L2B_DIRTY").as_bytes() {
    b"true" => Some(true),
    b"false" => Some(false),
    _ => None,
};

/// A device in a record. What cannot be found out is absent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Machine {
    /// As `l2b devices` calls it.
    pub name: String,
    /// The processor.
    pub model: String,
    /// Threads of the CPU device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<usize>,
    /// CUDA version that the driver supports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Compute capability.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capability: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<usize>,
}

impl Machine {
    /// The device `name` that a resolved choice stands for.
    pub fn new(choice: DeviceChoice, name: String, threads: Option<usize>) -> Self {
        let mut machine = Machine {
            name,
            model: cpu_model(),
            threads: None,
            driver: None,
            capability: None,
            memory_bytes: None,
        };
        match choice {
            DeviceChoice::Cuda(ordinal) => {
                if let Ok(listing) = cuda::devices() {
                    machine.driver = listing.driver.map(|(major, minor)| format!("{major}.{minor}"));
                    if let Some(gpu) = listing.gpus.into_iter().find(|g| g.ordinal == ordinal as usize) {
                        machine.capability = Some(format!("{}.{}", gpu.capability.0, gpu.capability.1));
                        machine.memory_bytes = Some(gpu.memory);
                        machine.model = gpu.name;
                    }
                }
            }
            DeviceChoice::Emulator => {}
            DeviceChoice::Cpu | DeviceChoice::Auto => {
                let all = || std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
                machine.threads = Some(threads.unwrap_or_else(all));
            }
        }
        machine
    }
}

fn cpu_model() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("model name"));
    line.map_or("unknown processor", |line| {
        line.trim_start_matches([' ', '\t', ':'])
    })
    .to_owned()
}

/// Clocks in MHz, while the device is at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clocks {
    pub sm_mhz: u32,
    pub memory_mhz: u32,
}

/// The driver's management library, where there is one: `libnvidia-ml.so.1`, opened at run time.
pub struct Nvml {
    device: *mut c_void,
    clock: extern "C" fn(*mut c_void, c_int, *mut c_uint) -> c_int,
}

impl Nvml {
    /// For the GPU of a choice; None for other devices, and where the library is absent or refuses.
    pub fn open(choice: DeviceChoice) -> Option<Self> {
        let DeviceChoice::Cuda(ordinal) = choice else {
            return None;
        };
        let bus = cuda::bus_id(ordinal)?;
        type Init = extern "C" fn() -> c_int;
        type Handle = extern "C" fn(*const c_char, *mut *mut c_void) -> c_int;
        type Clock = extern "C" fn(*mut c_void, c_int, *mut c_uint) -> c_int;
        // SAFETY: the driver's library under its fixed name, and functions with the types of nvml.h.
        unsafe {
            let library = libc::dlopen(c"libnvidia-ml.so.1".as_ptr(), libc::RTLD_NOW);
            if library.is_null() {
                return None;
            }
            let symbol = |name: &CStr| {
                let symbol = libc::dlsym(library, name.as_ptr());
                (!symbol.is_null()).then_some(symbol)
            };
            let init = std::mem::transmute::<*mut c_void, Init>(symbol(c"nvmlInit_v2")?);
            let handle =
                std::mem::transmute::<*mut c_void, Handle>(symbol(c"nvmlDeviceGetHandleByPciBusId_v2")?);
            let clock = std::mem::transmute::<*mut c_void, Clock>(symbol(c"nvmlDeviceGetClockInfo")?);
            let mut device = std::ptr::null_mut();
            (init() == 0 && handle(bus.as_ptr(), &mut device) == 0).then_some(Nvml { device, clock })
        }
    }

    /// The clocks now.
    pub fn clocks(&self) -> Option<Clocks> {
        let read = |kind: c_int| {
            let mut mhz = 0;
            ((self.clock)(self.device, kind, &mut mhz) == 0).then_some(mhz)
        };
        // NVML_CLOCK_SM, NVML_CLOCK_MEM.
        Some(Clocks {
            sm_mhz: read(1)?,
            memory_mhz: read(2)?,
        })
    }
}

/// Now, in UTC, as RFC 3339 writes it.
pub fn now() -> String {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs());
    date(seconds)
}

/// Seconds since 1970 as a date. Years are counted from March, so that the leap day is a year's last.
fn date(seconds: u64) -> String {
    let (days, time) = (seconds / 86400 + 719_468, seconds % 86400);
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    let year = era * 400 + year + carry;
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        for (seconds, want) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_798_761_599, "2026-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(date(seconds), want);
        }
    }
}
