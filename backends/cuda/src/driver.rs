//! A card, through the CUDA driver and cuBLAS, both found at run time.

use std::{
    collections::BTreeMap,
    ffi::{CString, c_void},
    fmt, ptr, slice,
    sync::{Arc, Mutex},
};

use cudarc::{
    cublas::{result as blas, sys as blas_sys},
    driver::{CudaContext, CudaStream, DriverError, result, sys},
};

use crate::{
    CudaError, Number,
    executor::{Arg, Done, Executor, Extent, Gemm, Pin},
};

/// What cuBLAS may use beside its operands; graphs need it to be given beforehand. As much as its documentation has for Hopper
/// (`cublasSetWorkspace`).
const WORKSPACE: usize = 32 << 20;

/// Drivers from which on overlapping kernels can be captured: 12.3.
const OVERLAP_CAPTURE: i32 = 12_030;

/// The driver reads structures from an image, so it begins where they may.
#[repr(C, align(16))]
struct Aligned<T: ?Sized>(T);

macro_rules! images {
    ($($name:literal),*) => {
        [$({
            const IMAGE: &Aligned<[u8]> = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".fatbin")));
            &IMAGE.0
        }),*]
    };
}

/// What nvcc made of each file in `kernels/`.
const IMAGES: [&[u8]; 8] =
    images!["attention", "elementwise", "experts", "narrow", "prefill", "product", "rope_store", "sample"];
#[cfg(feature = "flash-attn")]
const FLASH_ATTENTION: &[&[u8]] = &images![
    "flash_bf16_64",
    "flash_bf16_96",
    "flash_bf16_128",
    "flash_bf16_256",
    "flash_f16_64",
    "flash_f16_96",
    "flash_f16_128",
    "flash_f16_256"
];
#[cfg(not(feature = "flash-attn"))]
const FLASH_ATTENTION: &[&[u8]] = &[];

/// A card with one stream. The thread that uses it need not be the one that opened it.
pub(crate) struct Driver {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    modules: Vec<Module>,
    functions: Mutex<BTreeMap<String, Function>>,
    blas: Blas,
    workspace: sys::CUdeviceptr,
    graphs: Mutex<Graphs>,
    processors: u32,
    shared_bytes: i32,
    /// Whether kernels may begin before the one before them has ended. They wait for it themselves (`wait_for_previous` in `portable.cuh`).
    overlaps: bool,
}

#[derive(Default)]
struct Graphs {
    known: BTreeMap<u64, (RawGraph, RawExec)>,
    next: u64,
}

#[derive(Clone, Copy)]
struct Module(sys::CUmodule);
#[derive(Clone, Copy)]
struct Function(sys::CUfunction);
#[derive(Clone, Copy)]
struct Blas(blas_sys::cublasHandle_t);
#[derive(Clone, Copy)]
struct RawGraph(sys::CUgraph);
#[derive(Clone, Copy)]
struct RawExec(sys::CUgraphExec);

// SAFETY: handles of the driver and of cuBLAS belong to a context and to no thread; each call binds the context first.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}
// SAFETY: as above.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Send for Blas {}
// SAFETY: as above; the engine has one thread, and cuBLAS itself locks its handles.
unsafe impl Sync for Blas {}
// SAFETY: as above.
unsafe impl Send for RawGraph {}
// SAFETY: as above.
unsafe impl Send for RawExec {}

impl Driver {
    /// Cards that follow each other, all of which there have to be.
    pub(crate) fn open_all(first: usize, count: usize) -> Result<Vec<Self>, CudaError> {
        look_for_driver()?;
        let there = CudaContext::device_count().map_err(|error| unavailable(first, error))?.unsigned_abs() as usize;
        if count > 1 && first + count > there {
            return Err(CudaError::Unavailable(format!(
                "a model on {count} GPUs from GPU {first} on cannot be had: the NVIDIA driver has {there} in all"
            )));
        }
        (first..first + count).map(Self::open).collect()
    }

    pub(crate) fn open(ordinal: usize) -> Result<Self, CudaError> {
        look_for_driver()?;
        // SAFETY: it only looks for a library.
        if !unsafe { blas_sys::is_culib_present() } {
            let reason = "cuBLAS was not found (libcublas.so.13): install the CUDA 13 runtime libraries, or name their folder in LD_LIBRARY_PATH";
            return Err(CudaError::Unavailable(reason.to_owned()));
        }
        let context = CudaContext::new(ordinal).map_err(|error| unavailable(ordinal, error))?;
        let (major, minor) = context.compute_capability().map_err(failed("cuDeviceGetAttribute"))?;
        if major < 8 {
            let reason = format!(
                "GPU {ordinal} has compute capability {major}.{minor}, and 8.0 (Ampere) is the least that is supported"
            );
            return Err(CudaError::Unavailable(reason));
        }
        let attribute = |which| context.attribute(which).map_err(failed("cuDeviceGetAttribute"));
        use sys::CUdevice_attribute as Attribute;
        let processors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let shared_bytes = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let stream = context.new_stream().map_err(failed("cuStreamCreate"))?;
        let load = |image: &&[u8]| {
            // SAFETY: an image that nvcc made, with its length inside.
            let module = unsafe { result::module::load_data(image.as_ptr().cast()) };
            module.map(Module).map_err(|error| match error.0 {
                sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU => CudaError::Unavailable(format!(
                    "this program has no code for GPU {ordinal}, whose compute capability is {major}.{minor}"
                )),
                sys::CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION | sys::CUresult::CUDA_ERROR_INVALID_IMAGE => {
                    CudaError::Unavailable(
                        "the NVIDIA driver is older than the toolkit that this program was built with".to_owned(),
                    )
                }
                _ => failed("cuModuleLoadData")(error),
            })
        };
        let modules = IMAGES.iter().chain(FLASH_ATTENTION).map(load).collect::<Result<_, _>>()?;
        let handle = blas::create_handle().map_err(|error| failed_blas("cublasCreate", error))?;
        // SAFETY: handle and stream were just made; the memory outlives the handle.
        let workspace = unsafe {
            blas::set_stream(handle, stream.cu_stream().cast())
                .map_err(|error| failed_blas("cublasSetStream", error))?;
            let workspace = result::malloc_sync(WORKSPACE).map_err(allocation(WORKSPACE))?;
            let status = blas_sys::cublasSetWorkspace_v2(handle, workspace as *mut c_void, WORKSPACE);
            status.result().map_err(|error| failed_blas("cublasSetWorkspace", error))?;
            workspace
        };
        Ok(Self {
            context,
            stream,
            modules,
            functions: Mutex::default(),
            blas: Blas(handle),
            workspace,
            graphs: Mutex::default(),
            processors: processors.unsigned_abs(),
            shared_bytes,
            overlaps: major >= 9 && driver_version()? >= OVERLAP_CAPTURE,
        })
    }

    /// Where everything is done in its order.
    pub(crate) fn stream(&self) -> sys::CUstream {
        self.stream.cu_stream()
    }

    /// Makes what the thread asks for next, of whatever library, be for this card.
    pub(crate) fn bind(&self) -> Done {
        self.context.bind_to_thread().map_err(failed("cuCtxSetCurrent"))
    }

    /// Found once, and allowed all the shared memory that there is.
    fn function(&self, name: &str) -> Result<sys::CUfunction, CudaError> {
        let mut functions = self.functions.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if let Some(known) = functions.get(name) {
            return Ok(known.0);
        }
        let c_name = CString::new(name).expect("names of kernels have no zeros");
        // SAFETY: modules are those that were loaded and are never unloaded.
        let found = self
            .modules
            .iter()
            .find_map(|module| unsafe { result::module::get_function(module.0, c_name.clone()) }.ok());
        let function =
            found.ok_or_else(|| CudaError::Failed { call: "cuModuleGetFunction", reason: name.to_owned() })?;
        use sys::CUfunction_attribute as Attribute;
        // SAFETY: the function was just found.
        unsafe {
            let fixed =
                result::function::get_function_attribute(function, Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES);
            let dynamic = self.shared_bytes - fixed.map_err(failed("cuFuncGetAttribute"))?;
            let which = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            result::function::set_function_attribute(function, which, dynamic).map_err(failed("cuFuncSetAttribute"))?;
        }
        functions.insert(name.to_owned(), Function(function));
        Ok(function)
    }
}

impl Executor for Driver {
    fn name(&self) -> String {
        let name = self.context.name().unwrap_or_else(|_| "GPU".to_owned());
        match self.context.compute_capability() {
            Ok((major, minor)) => format!("{name} (compute capability {major}.{minor})"),
            Err(_) => name,
        }
    }

    fn memory(&self) -> Result<(u64, u64), CudaError> {
        self.bind()?;
        let (free, all) = result::mem_get_info().map_err(failed("cuMemGetInfo"))?;
        Ok((free as u64, all as u64))
    }

    fn processors(&self) -> u32 {
        self.processors
    }

    fn has_flash_attention(&self) -> bool {
        !FLASH_ATTENTION.is_empty()
    }

    fn allocate(&self, bytes: usize) -> Result<u64, CudaError> {
        self.bind()?;
        // SAFETY: nobody reads what nobody has written.
        unsafe { result::malloc_sync(bytes) }.map_err(allocation(bytes))
    }

    unsafe fn free(&self, address: u64) {
        // A context that is lost has nothing to give back.
        let freed = self.bind().and_then(|()| {
            // SAFETY: the caller's; the driver waits for what still uses it.
            unsafe { result::free_sync(address) }.map_err(failed("cuMemFree"))
        });
        if let Err(error) = freed {
            tracing::warn!(%error, "memory of the GPU was not given back");
        }
    }

    unsafe fn upload(&self, address: u64, bytes: &[u8]) -> Done {
        self.bind()?;
        // SAFETY: the caller's. That the driver has copied what is not pinned before it returns is usual and not promised, so it is waited for.
        unsafe { result::memcpy_htod_async(address, bytes, self.stream.cu_stream()) }
            .map_err(failed("cuMemcpyHtoDAsync"))?;
        self.stream.synchronize().map_err(failed("cuStreamSynchronize"))
    }

    unsafe fn download(&self, address: u64, bytes: &mut [u8]) -> Done {
        self.bind()?;
        // SAFETY: the caller's; it is waited for below.
        unsafe { result::memcpy_dtoh_async(bytes, address, self.stream.cu_stream()) }
            .map_err(failed("cuMemcpyDtoHAsync"))?;
        self.stream.synchronize().map_err(failed("cuStreamSynchronize"))
    }

    fn pin(&self, bytes: usize) -> Result<Pin, CudaError> {
        self.bind()?;
        // No time is taken, which would cost some.
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        let event = result::event::create(flags).map_err(failed("cuEventCreate"))?;
        // SAFETY: nobody reads what nobody has written.
        let host = unsafe { result::malloc_host(bytes, 0) };
        let host = host.map_err(|error| {
            // SAFETY: it was just made, and nobody else knows it.
            let _ = unsafe { result::event::destroy(event) };
            allocation(bytes)(error)
        })?;
        Ok(Pin { host: host as u64, event: event as u64 })
    }

    unsafe fn unpin(&self, pin: Pin) {
        // SAFETY: the caller's. A context that is lost has nothing to give back.
        let freed = self.bind().and_then(|()| unsafe {
            result::event::destroy(pin.event as sys::CUevent).map_err(failed("cuEventDestroy"))?;
            result::free_host(pin.host().cast()).map_err(failed("cuMemFreeHost"))
        });
        if let Err(error) = freed {
            tracing::warn!(%error, "pinned memory was not given back");
        }
    }

    unsafe fn upload_later(&self, address: u64, pin: Pin, bytes: usize) -> Done {
        self.bind()?;
        let stream = self.stream.cu_stream();
        // SAFETY: the caller's: what is pinned stays as it is until the event is waited for.
        unsafe {
            if bytes > 0 {
                let content = slice::from_raw_parts(pin.host(), bytes);
                result::memcpy_htod_async(address, content, stream).map_err(failed("cuMemcpyHtoDAsync"))?;
            }
            result::event::record(pin.event as sys::CUevent, stream).map_err(failed("cuEventRecord"))
        }
    }

    unsafe fn download_later(&self, address: u64, pin: Pin, bytes: usize) -> Done {
        self.bind()?;
        let stream = self.stream.cu_stream();
        // SAFETY: the caller's: nobody looks at what is pinned until the event is waited for.
        unsafe {
            if bytes > 0 {
                let into = slice::from_raw_parts_mut(pin.host(), bytes);
                result::memcpy_dtoh_async(into, address, stream).map_err(failed("cuMemcpyDtoHAsync"))?;
            }
            result::event::record(pin.event as sys::CUevent, stream).map_err(failed("cuEventRecord"))
        }
    }

    unsafe fn wait(&self, pin: Pin) -> Done {
        self.bind()?;
        // SAFETY: the caller's. One that was never recorded is over.
        unsafe { result::event::synchronize(pin.event as sys::CUevent) }.map_err(failed("cuEventSynchronize"))
    }

    unsafe fn zero(&self, address: u64, bytes: usize) -> Done {
        self.bind()?;
        // SAFETY: the caller's.
        unsafe { result::memset_d8_async(address, 0, bytes, self.stream.cu_stream()) }
            .map_err(failed("cuMemsetD8Async"))
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Done {
        self.bind()?;
        // SAFETY: the caller's.
        unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream.cu_stream()) }
            .map_err(failed("cuMemcpyDtoDAsync"))
    }

    fn synchronize(&self) -> Done {
        self.bind()?;
        self.stream.synchronize().map_err(failed("cuStreamSynchronize"))
    }

    unsafe fn launch(&self, kernel: &str, extent: Extent, arguments: &[Arg]) -> Done {
        self.bind()?;
        let function = self.function(kernel)?;
        let mut bits: Vec<u64> = arguments.iter().map(|argument| argument.bits()).collect();
        let mut pointers: Vec<*mut c_void> = bits.iter_mut().map(|bits| (&raw mut *bits).cast()).collect();
        let mut overlap = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let [x, y, z] = extent.grid;
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: extent.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: extent.shared_bytes,
            hStream: self.stream.cu_stream(),
            attrs: &raw mut overlap,
            numAttrs: self.overlaps.into(),
        };
        // SAFETY: the caller's; the driver copies the arguments before it returns.
        unsafe { sys::cuLaunchKernelEx(&raw const config, function, pointers.as_mut_ptr(), ptr::null_mut()) }
            .result()
            .map_err(failed("cuLaunchKernelEx"))
    }

    unsafe fn gemm(&self, gemm: &Gemm) -> Done {
        self.bind()?;
        let &Gemm { number, weight, x, y, rows, inputs, outputs, stride } = gemm;
        use blas_sys::{cublasComputeType_t as Compute, cublasGemmAlgo_t as Algorithm, cublasOperation_t as Operation};
        let kind = match number {
            Number::F32 => blas_sys::cudaDataType::CUDA_R_32F,
            Number::Bf16 => blas_sys::cudaDataType::CUDA_R_16BF,
            Number::F16 => blas_sys::cudaDataType::CUDA_R_16F,
            Number::F8 => {
                let reason = "nothing is multiplied in eight bits".to_owned();
                return Err(CudaError::Failed { call: "cublasGemmEx", reason });
            }
        };
        let (one, nothing) = (1.0f32, 0.0f32);
        let [m, n, k, ldc] =
            [outputs, rows, inputs, stride].map(|size| i32::try_from(size).expect("a side of a matrix"));
        // cuBLAS counts by columns: to it our rows are columns, so that it computes yᵀ = W xᵀ.
        // SAFETY: the caller's.
        let result = unsafe {
            blas::gemm_ex(
                self.blas.0,
                Operation::CUBLAS_OP_T,
                Operation::CUBLAS_OP_N,
                m,
                n,
                k,
                (&raw const one).cast(),
                weight as *const c_void,
                kind,
                k,
                x as *const c_void,
                kind,
                k,
                (&raw const nothing).cast(),
                y as *mut c_void,
                blas_sys::cudaDataType::CUDA_R_32F,
                ldc,
                Compute::CUBLAS_COMPUTE_32F,
                Algorithm::CUBLAS_GEMM_DEFAULT,
            )
        };
        result.map_err(|error| failed_blas("cublasGemmEx", error))
    }

    fn begin_capture(&self) -> Done {
        self.bind()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as this.
        unsafe { result::stream::begin_capture(self.stream.cu_stream(), mode) }.map_err(failed("cuStreamBeginCapture"))
    }

    fn end_capture(&self) -> Result<u64, CudaError> {
        self.bind()?;
        // SAFETY: the stream lives as long as this; the graph is the one that was just captured.
        let (graph, exec) = unsafe {
            let graph = result::stream::end_capture(self.stream.cu_stream()).map_err(failed("cuStreamEndCapture"))?;
            let exec = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)).map_err(|error| {
                let _ = result::graph::destroy(graph);
                failed("cuGraphInstantiate")(error)
            });
            (graph, exec?)
        };
        let mut graphs = self.graphs.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        graphs.next += 1;
        let number = graphs.next;
        graphs.known.insert(number, (RawGraph(graph), RawExec(exec)));
        Ok(number)
    }

    unsafe fn replay(&self, graph: u64) -> Done {
        self.bind()?;
        let graphs = self.graphs.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // SAFETY: graphs are known until they are destroyed.
        unsafe { result::graph::launch(graphs.known[&graph].1.0, self.stream.cu_stream()) }
            .map_err(failed("cuGraphLaunch"))
    }

    fn drop_graph(&self, graph: u64) {
        let known = self.graphs.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).known.remove(&graph);
        let Some((graph, exec)) = known else { return };
        // A context that is lost has nothing to give back.
        let _ = self.bind();
        // SAFETY: nobody knows them any more; the driver keeps what still runs.
        let destroyed = unsafe { result::graph::exec_destroy(exec.0).and(result::graph::destroy(graph.0)) };
        if let Err(error) = destroyed {
            tracing::warn!(%error, "a graph of the GPU was not given back");
        }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // SAFETY: nothing uses the handle any more, nor the memory after it, nor the modules: graphs and buffers have a device of their own.
        unsafe {
            let _ = self.bind();
            let _ = blas::destroy_handle(self.blas.0);
            let _ = result::free_sync(self.workspace);
            for module in &self.modules {
                let _ = result::module::unload(module.0);
            }
        }
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("name", &self.name()).finish_non_exhaustive()
    }
}

/// As in 13000 for 13.0.
fn driver_version() -> Result<i32, CudaError> {
    let mut version = 0;
    // SAFETY: it writes a number.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result().map_err(failed("cuDriverGetVersion"))?;
    Ok(version)
}

fn look_for_driver() -> Done {
    // SAFETY: it only looks for a library.
    if unsafe { sys::is_culib_present() } {
        return Ok(());
    }
    let reason = "there is no NVIDIA driver on this machine (libcuda.so.1 was not found)";
    Err(CudaError::Unavailable(reason.to_owned()))
}

fn unavailable(ordinal: usize, error: DriverError) -> CudaError {
    CudaError::Unavailable(match error.0 {
        sys::CUresult::CUDA_ERROR_NO_DEVICE => "the NVIDIA driver sees no GPU".to_owned(),
        sys::CUresult::CUDA_ERROR_INVALID_DEVICE => format!("the NVIDIA driver has no GPU {ordinal}"),
        _ => format!("GPU {ordinal} cannot be used: {error}"),
    })
}

/// Too little memory is no failure of the context, whatever it was asked for in.
fn failed(call: &'static str) -> impl Fn(DriverError) -> CudaError {
    move |error| match error.0 {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => CudaError::OutOfMemory { what: call.to_owned() },
        _ => CudaError::Failed { call, reason: error.to_string() },
    }
}

fn allocation(bytes: usize) -> impl Fn(DriverError) -> CudaError {
    move |error| match error.0 {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => out_of(bytes),
        _ => failed("cuMemAlloc")(error),
    }
}

fn out_of(bytes: usize) -> CudaError {
    CudaError::OutOfMemory { what: format!("{bytes} bytes") }
}

fn failed_blas(call: &'static str, error: blas::CublasError) -> CudaError {
    match error.0 {
        blas_sys::cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED => CudaError::OutOfMemory { what: call.to_owned() },
        _ => CudaError::Failed { call, reason: error.to_string() },
    }
}
