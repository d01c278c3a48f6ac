//! What `l2b devices` prints about CUDA.

use cudarc::driver::{CudaContext, result, sys};

use super::driver::{self, device_error};
use super::launcher::check_support;
use crate::Result;

/// A GPU as the driver describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    pub ordinal: usize,
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (i32, i32),
    pub multiprocessors: u32,
    /// Bytes of device memory.
    pub memory: usize,
}

/// Driver, GPUs and embedded kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The CUDA version that the driver supports, major and minor; None without a driver.
    pub driver: Option<(i32, i32)>,
    pub gpus: Vec<Gpu>,
    /// Kernels of this source tree.
    pub kernels: usize,
    /// Bytes of machine code in this binary; 0 for one that was built without nvcc.
    pub kernel_bytes: usize,
    /// What that code is for; empty likewise.
    pub architectures: &'static str,
}

impl Listing {
    /// The first GPU that this binary can compute on.
    pub fn usable(&self) -> Option<&Gpu> {
        let driver = self.driver?;
        self.gpus.iter().find(|gpu| {
            let what = format!("cuda:{}", gpu.ordinal);
            self.kernel_bytes > 0 && check_support(&what, &gpu.name, gpu.capability, driver).is_ok()
        })
    }
}

/// The driver's CUDA version, e.g. (13, 0).
pub(super) fn driver_version() -> Result<(i32, i32)> {
    let mut version = 0;
    // SAFETY: the driver was found by the caller; it writes one integer.
    unsafe { sys::cuDriverGetVersion(&mut version) }
        .result()
        .map_err(|error| device_error("driver version", error))?;
    Ok((version / 1000, version % 1000 / 10))
}

/// An attribute of a GPU, without making a context on it.
fn attribute(device: sys::CUdevice, attribute: sys::CUdevice_attribute) -> Result<i32> {
    // SAFETY: the device comes from the driver.
    unsafe { result::device::get_attribute(device, attribute) }.map_err(|error| device_error("GPU", error))
}

/// Compute capability of a GPU.
pub(super) fn capability(device: sys::CUdevice) -> Result<(i32, i32)> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    Ok((attribute(device, MAJOR)?, attribute(device, MINOR)?))
}

/// Its multiprocessors.
pub(super) fn multiprocessors(device: sys::CUdevice) -> Result<u32> {
    let count = attribute(
        device,
        sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
    )?;
    Ok(count as u32)
}

/// Looks for the driver and its GPUs. None of either is no error.
pub fn devices() -> Result<Listing> {
    let mut listing = Listing {
        driver: None,
        gpus: Vec::new(),
        kernels: driver::KERNEL_NAMES.len() + driver::SM90_KERNEL_NAMES.len(),
        kernel_bytes: driver::FATBIN.len(),
        architectures: driver::ARCHITECTURES,
    };
    if !driver::present() {
        return Ok(listing);
    }
    listing.driver = Some(driver_version()?);
    // A driver without a GPU answers the first call with an error.
    let count = CudaContext::device_count().unwrap_or(0);
    for ordinal in 0..count {
        let fail = |error| device_error(format!("GPU {ordinal}"), error);
        let device = result::device::get(ordinal).map_err(fail)?;
        listing.gpus.push(Gpu {
            ordinal: ordinal as usize,
            name: result::device::get_name(device).map_err(fail)?,
            capability: capability(device)?,
            multiprocessors: multiprocessors(device)?,
            // SAFETY: the device comes from the driver.
            memory: unsafe { result::device::total_mem(device) }.map_err(fail)?,
        });
    }
    Ok(listing)
}

/// PCI address of a GPU, by which the driver's management library knows it.
pub fn bus_id(ordinal: u32) -> Option<std::ffi::CString> {
    let device = result::device::get(i32::try_from(ordinal).ok()?).ok()?;
    let mut text = [0u8; 32];
    // SAFETY: the device comes from the driver, which writes at most as many bytes as it is told.
    let code = unsafe { sys::cuDeviceGetPCIBusId(text.as_mut_ptr().cast(), text.len() as i32, device) };
    code.result().ok()?;
    Some(std::ffi::CStr::from_bytes_until_nul(&text).ok()?.to_owned())
}
