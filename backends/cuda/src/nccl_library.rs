//! As much of NCCL as is used, found at run time. Under the name by which programs find it (`libnccl.so.2`), which cudarc does not look for,
//! and with results as numbers: a library that is newer than this program may give others than are known here.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use libloading::Library;

use crate::CudaError;

const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

pub(crate) const SUCCESS: c_int = 0;
pub(crate) const IN_PROGRESS: c_int = 7;
pub(crate) const INTEGER: c_int = 2;
pub(crate) const FLOAT: c_int = 7;
pub(crate) const SUM: c_int = 0;

/// The first version that has communicators which do not block as this uses them.
const OLDEST: c_int = 21_800;

#[repr(transparent)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Communicator(*mut c_void);

// SAFETY: a communicator belongs to no thread; its uses are under a lock.
unsafe impl Send for Communicator {}

impl Communicator {
    pub(crate) const NONE: Self = Self(std::ptr::null_mut());
}

#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct UniqueId([c_char; 128]);

/// `ncclConfig_t` of NCCL 2.18; later versions are longer and take this one for what it is, by its size and version.
#[repr(C)]
pub(crate) struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
    split_share: c_int,
}

impl Config {
    /// No call waits for another rank: it says that it is in progress, so that whoever asked can be told that there is no more to wait for.
    pub(crate) fn not_blocking() -> Self {
        let default = c_int::MIN;
        Self {
            size: size_of::<Self>(),
            magic: 0xcafe_beef,
            version: OLDEST.unsigned_abs(),
            blocking: 0,
            cga_cluster_size: default,
            min_ctas: default,
            max_ctas: default,
            net_name: std::ptr::null(),
            split_share: default,
        }
    }
}

macro_rules! functions {
    ($($field:ident = $name:literal: fn($($argument:ty),*) -> $result:ty;)*) => {
        /// Its functions, as NCCL's documentation has them.
        pub(crate) struct Functions {
            $(pub(crate) $field: unsafe extern "C" fn($($argument),*) -> $result,)*
            /// Kept for as long as they are.
            _library: Library,
        }

        impl Functions {
            fn of(library: Library) -> Result<Self, libloading::Error> {
                // SAFETY: these are the types of the functions of these names in NCCL 2.
                unsafe { Ok(Self { $($field: *library.get(concat!($name, "\0").as_bytes())?,)* _library: library }) }
            }
        }
    };
}

functions! {
    get_version = "ncclGetVersion": fn(*mut c_int) -> c_int;
    get_error_string = "ncclGetErrorString": fn(c_int) -> *const c_char;
    get_unique_id = "ncclGetUniqueId": fn(*mut UniqueId) -> c_int;
    init_rank = "ncclCommInitRankConfig": fn(*mut Communicator, c_int, UniqueId, c_int, *mut Config) -> c_int;
    abort = "ncclCommAbort": fn(Communicator) -> c_int;
    get_async_error = "ncclCommGetAsyncError": fn(Communicator, *mut c_int) -> c_int;
    group_start = "ncclGroupStart": fn() -> c_int;
    group_end = "ncclGroupEnd": fn() -> c_int;
    all_reduce = "ncclAllReduce": fn(u64, u64, usize, c_int, c_int, Communicator, *mut c_void) -> c_int;
    broadcast = "ncclBroadcast": fn(u64, u64, usize, c_int, c_int, Communicator, *mut c_void) -> c_int;
    send = "ncclSend": fn(u64, usize, c_int, c_int, Communicator, *mut c_void) -> c_int;
    receive = "ncclRecv": fn(u64, usize, c_int, c_int, Communicator, *mut c_void) -> c_int;
}

impl Functions {
    pub(crate) fn load() -> Result<Self, CudaError> {
        // SAFETY: what NCCL does when it is loaded is safe at any time.
        let library = NAMES.into_iter().find_map(|name| unsafe { Library::new(name) }.ok());
        let library = library.ok_or_else(|| {
            CudaError::Unavailable(
                "NCCL was not found (libnccl.so.2), which a model on several GPUs needs: install it (package libnccl2), or name its folder \
                 in LD_LIBRARY_PATH"
                    .to_owned(),
            )
        })?;
        let old = |reason: String| CudaError::Unavailable(format!("NCCL 2.18 or later is needed: {reason}"));
        let functions = Self::of(library).map_err(|error| old(error.to_string()))?;
        let mut version = 0;
        // SAFETY: it writes one number.
        unsafe { (functions.get_version)(&raw mut version) };
        if version < OLDEST { Err(old(format!("this one is {version}"))) } else { Ok(functions) }
    }

    /// What a result that is no success says.
    pub(crate) fn error(&self, call: &'static str, result: c_int) -> CudaError {
        // SAFETY: it gives back a text that is never freed.
        let text = unsafe {
            let text = (self.get_error_string)(result);
            if text.is_null() { String::new() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
        };
        CudaError::Failed { call, reason: format!("{text} ({result})") }
    }
}
