//! Kernels on the CPU. What is asked for wrongly is a panic: this is for tests.

use std::{
    alloc::{Layout, alloc, dealloc},
    collections::BTreeMap,
    ffi::{CString, c_char, c_int, c_uint, c_void},
    slice,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use half::{bf16, f16};

use crate::{
    CudaError, Number,
    executor::{Arg, Done, Executor, Extent, Gemm, Pin},
    meeting::Meeting,
};

unsafe extern "C" {
    fn tandem_emulator_launch(
        name: *const c_char,
        grid: *const c_uint,
        block: *const c_uint,
        shared_bytes: c_uint,
        arguments: *mut *mut c_void,
    ) -> c_int;
}

/// Bytes before and after each buffer that nothing may write to.
const GUARD: usize = 256;
const GUARD_BYTE: u8 = 0xa5;
/// What is in memory that nobody has written to: no number.
const FRESH_BYTE: u8 = 0xff;

/// A device in this process's memory.
#[derive(Debug, Default)]
pub(crate) struct Emulator {
    /// Sizes by address.
    allocated: Mutex<BTreeMap<u64, usize>>,
    graphs: Mutex<Graphs>,
    /// Kernels that are still carried out before it fails; `None` for one that does not.
    lasts: Option<AtomicUsize>,
    fault: Fault,
    pinned: Mutex<BTreeMap<u64, PinnedBytes>>,
}

/// What becomes of a device that fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    #[default]
    Error,
    /// As of a mistake in the program.
    Panic,
}

/// Memory that stands for pinned memory.
#[derive(Debug)]
struct PinnedBytes {
    bytes: usize,
    event: u64,
    /// A copy of it was not waited for.
    is_copied: bool,
}

#[derive(Debug, Default)]
struct Graphs {
    recording: Option<Vec<Call>>,
    recorded: BTreeMap<u64, Vec<Call>>,
    next: u64,
}

#[derive(Clone, Debug)]
enum Call {
    Launch { kernel: String, extent: Extent, arguments: Vec<Arg> },
    Gemm(Gemm),
    Together { meeting: Arc<Meeting>, rank: usize, collective: Collective },
}

/// What a rank does with the others.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Collective {
    AllReduce { address: u64, count: usize },
    Gather { from: u64, count: usize, to: u64 },
    Broadcast { address: u64, count: usize },
}

impl Emulator {
    /// One that fails after so many kernels.
    pub(crate) fn failing_after(kernels: usize, fault: Fault) -> Self {
        Self { lasts: Some(AtomicUsize::new(kernels)), fault, ..Self::default() }
    }

    /// Carries out what a rank does with the others, or writes it down.
    ///
    /// # Safety
    /// There are so many numbers at its addresses, aligned as numbers are.
    pub(crate) unsafe fn together(&self, meeting: &Arc<Meeting>, rank: usize, collective: Collective) -> Done {
        let call = Call::Together { meeting: Arc::clone(meeting), rank, collective };
        if self.recorded(|| call.clone()) { Ok(()) } else { self.run(&call) }
    }

    /// Writes the call down if calls are being written down.
    fn recorded(&self, call: impl FnOnce() -> Call) -> bool {
        let mut graphs = self.graphs.lock().expect("no test panics while it holds this");
        match &mut graphs.recording {
            Some(calls) => {
                calls.push(call());
                true
            }
            None => false,
        }
    }

    /// A copy from pinned memory or to it, which nobody may touch before it is waited for.
    fn begin_copy(&self, pin: Pin, bytes: usize) {
        let mut pinned = self.pinned.lock().expect("no test panics while it holds this");
        let pinned = pinned.get_mut(&pin.host).expect("it is pinned");
        assert!(bytes <= pinned.bytes && !pinned.is_copied, "one copy at a time, of no more than there is");
        pinned.is_copied = true;
    }

    fn is_recording(&self) -> bool {
        self.graphs.lock().expect("no test panics while it holds this").recording.is_some()
    }

    fn run(&self, call: &Call) -> Done {
        match call {
            Call::Launch { kernel, extent, arguments } => {
                let left = self.lasts.as_ref().map(|lasts| {
                    lasts.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |kernels| kernels.checked_sub(1))
                });
                if let Some(Err(_)) = left {
                    assert!(self.fault == Fault::Error, "the emulated device was made to panic here");
                    let reason = "the emulated device was made to fail here".to_owned();
                    return Err(CudaError::Failed { call: "cuLaunchKernel", reason });
                }
                let name = CString::new(kernel.as_str()).expect("a name without zeros");
                let block = [extent.threads, 1, 1];
                self.check_addresses(kernel, arguments);
                let mut arguments: Vec<u64> = arguments.iter().map(|argument| argument.bits()).collect();
                let mut pointers: Vec<*mut c_void> = arguments.iter_mut().map(|bits| (&raw mut *bits).cast()).collect();
                // SAFETY: the caller vouches for the arguments; each pointer is to eight bytes that outlive the call.
                let ran = unsafe {
                    tandem_emulator_launch(
                        name.as_ptr(),
                        extent.grid.as_ptr(),
                        block.as_ptr(),
                        extent.shared_bytes,
                        pointers.as_mut_ptr(),
                    )
                };
                assert!(ran == 1, "there is no kernel {kernel}, or it asks for too much: {extent:?}");
                self.check_guards(kernel);
            }
            Call::Gemm(call) => {
                gemm(call);
                self.check_guards("a product");
            }
            // SAFETY: the addresses were vouched for when it was asked for; no other rank touches this device's memory.
            Call::Together { meeting, rank, collective } => unsafe { together(meeting, *rank, *collective) }?,
        }
        Ok(())
    }

    /// A graph may work on what is no longer there.
    fn check_addresses(&self, kernel: &str, arguments: &[Arg]) {
        let allocated = self.allocated.lock().expect("no test panics while it holds this");
        for argument in arguments {
            let &Arg::Address(address) = argument else { continue };
            let buffer = allocated.range(..=address).next_back();
            let lives = address == 0 || buffer.is_some_and(|(start, bytes)| address <= start + *bytes as u64);
            assert!(lives, "{kernel} works on memory that was freed");
        }
    }

    fn check_guards(&self, after: &str) {
        for (&address, &bytes) in &*self.allocated.lock().expect("no test panics while it holds this") {
            for guard in [address - GUARD as u64, address + bytes as u64] {
                // SAFETY: each buffer lies between two guards.
                let guard = unsafe { slice::from_raw_parts(guard as *const u8, GUARD) };
                assert!(guard.iter().all(|byte| *byte == GUARD_BYTE), "{after} wrote beyond a buffer of {bytes} bytes");
            }
        }
    }
}

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes + 2 * GUARD, GUARD).expect("a size that a test asks for")
}

impl Executor for Emulator {
    fn name(&self) -> String {
        "emulator".to_owned()
    }

    fn memory(&self) -> Result<(u64, u64), CudaError> {
        let taken: usize = self.allocated.lock().expect("no test panics while it holds this").values().sum();
        let all = 1 << 30;
        Ok((all - taken as u64, all))
    }

    fn processors(&self) -> u32 {
        4
    }

    fn allocate(&self, bytes: usize) -> Result<u64, CudaError> {
        assert!(!self.is_recording(), "nothing is allocated by a graph");
        if bytes as u64 > self.memory()?.0 {
            return Err(CudaError::OutOfMemory { what: format!("{bytes} bytes") });
        }
        // SAFETY: the layout has a size.
        let start = unsafe { alloc(layout(bytes)) };
        assert!(!start.is_null(), "the host has no {bytes} bytes");
        // SAFETY: so many bytes were allocated.
        unsafe {
            start.write_bytes(GUARD_BYTE, bytes + 2 * GUARD);
            start.add(GUARD).write_bytes(FRESH_BYTE, bytes);
        }
        let address = start as u64 + GUARD as u64;
        self.allocated.lock().expect("no test panics while it holds this").insert(address, bytes);
        Ok(address)
    }

    unsafe fn free(&self, address: u64) {
        let bytes = self.allocated.lock().expect("no test panics while it holds this").remove(&address);
        let bytes = bytes.expect("it was allocated");
        // SAFETY: it was allocated with this layout.
        unsafe { dealloc((address - GUARD as u64) as *mut u8, layout(bytes)) }
    }

    unsafe fn upload(&self, address: u64, bytes: &[u8]) -> Done {
        assert!(!self.is_recording(), "nothing is written by a graph");
        // SAFETY: the caller's, and the host's memory is elsewhere.
        unsafe { (address as *mut u8).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    unsafe fn download(&self, address: u64, bytes: &mut [u8]) -> Done {
        assert!(!self.is_recording(), "nothing is read by a graph");
        // SAFETY: the caller's, and the host's memory is elsewhere.
        unsafe { bytes.as_mut_ptr().copy_from_nonoverlapping(address as *const u8, bytes.len()) };
        Ok(())
    }

    fn pin(&self, bytes: usize) -> Result<Pin, CudaError> {
        // SAFETY: the layout has a size.
        let start = unsafe { alloc(layout(bytes)) };
        assert!(!start.is_null(), "the host has no {bytes} bytes");
        let mut pinned = self.pinned.lock().expect("no test panics while it holds this");
        let event = pinned.values().map(|other| other.event + 1).max().unwrap_or(0);
        pinned.insert(start as u64, PinnedBytes { bytes, event, is_copied: false });
        Ok(Pin { host: start as u64, event })
    }

    unsafe fn unpin(&self, pin: Pin) {
        let pinned = self.pinned.lock().expect("no test panics while it holds this").remove(&pin.host);
        let PinnedBytes { bytes, is_copied, .. } = pinned.expect("it was pinned");
        assert!(!is_copied, "a copy is still under way");
        // SAFETY: it was allocated with this layout.
        unsafe { dealloc(pin.host(), layout(bytes)) }
    }

    unsafe fn upload_later(&self, address: u64, pin: Pin, bytes: usize) -> Done {
        self.begin_copy(pin, bytes);
        // SAFETY: the caller's.
        unsafe { self.upload(address, slice::from_raw_parts(pin.host(), bytes)) }
    }

    unsafe fn download_later(&self, address: u64, pin: Pin, bytes: usize) -> Done {
        self.begin_copy(pin, bytes);
        // SAFETY: the caller's.
        unsafe { self.download(address, slice::from_raw_parts_mut(pin.host(), bytes)) }
    }

    unsafe fn wait(&self, pin: Pin) -> Done {
        let mut pinned = self.pinned.lock().expect("no test panics while it holds this");
        let pinned = pinned.get_mut(&pin.host).expect("it is pinned");
        assert_eq!(pinned.event, pin.event, "an event of its own");
        pinned.is_copied = false;
        Ok(())
    }

    unsafe fn zero(&self, address: u64, bytes: usize) -> Done {
        // SAFETY: the caller's.
        unsafe { (address as *mut u8).write_bytes(0, bytes) };
        Ok(())
    }

    unsafe fn copy(&self, from: u64, to: u64, bytes: usize) -> Done {
        // SAFETY: the caller's.
        unsafe { (to as *mut u8).copy_from_nonoverlapping(from as *const u8, bytes) };
        Ok(())
    }

    fn synchronize(&self) -> Done {
        Ok(())
    }

    unsafe fn launch(&self, kernel: &str, extent: Extent, arguments: &[Arg]) -> Done {
        let call = Call::Launch { kernel: kernel.to_owned(), extent, arguments: arguments.to_vec() };
        if self.recorded(|| call.clone()) { Ok(()) } else { self.run(&call) }
    }

    unsafe fn gemm(&self, gemm: &Gemm) -> Done {
        if self.recorded(|| Call::Gemm(*gemm)) { Ok(()) } else { self.run(&Call::Gemm(*gemm)) }
    }

    fn begin_capture(&self) -> Done {
        let mut graphs = self.graphs.lock().expect("no test panics while it holds this");
        assert!(graphs.recording.replace(Vec::new()).is_none(), "one graph at a time");
        Ok(())
    }

    fn end_capture(&self) -> Result<u64, CudaError> {
        let mut graphs = self.graphs.lock().expect("no test panics while it holds this");
        let calls = graphs.recording.take().expect("a graph was begun");
        graphs.next += 1;
        let number = graphs.next;
        graphs.recorded.insert(number, calls);
        Ok(number)
    }

    unsafe fn replay(&self, graph: u64) -> Done {
        let calls = self.graphs.lock().expect("no test panics while it holds this").recorded[&graph].clone();
        calls.iter().try_for_each(|call| self.run(call))
    }

    fn drop_graph(&self, graph: u64) {
        self.graphs.lock().expect("no test panics while it holds this").recorded.remove(&graph);
    }
}

/// What ranks do with each other, in this process's memory: each shows a copy of its words and writes to its own alone.
///
/// # Safety
/// There are so many words at the addresses, aligned as they have to be.
unsafe fn together(meeting: &Meeting, rank: usize, collective: Collective) -> Done {
    let show = |address: u64, count: usize| {
        // SAFETY: the caller's.
        let own = unsafe { slice::from_raw_parts(address as *const u32, count) };
        meeting.exchange(rank, own.to_vec())
    };
    match collective {
        Collective::AllReduce { address, count } => {
            let shown = show(address, count)?;
            // SAFETY: the caller's.
            let own = unsafe { slice::from_raw_parts_mut(address as *mut f32, count) };
            // In the order of ranks, so that all of them come to the same sum, and to the same the next time.
            for (at, sum) in own.iter_mut().enumerate() {
                *sum = shown.iter().map(|words| f32::from_bits(words[at])).sum();
            }
        }
        Collective::Gather { from, count, to } => {
            let shown = show(from, count)?;
            if rank == 0 {
                // SAFETY: the caller's.
                let all = unsafe { slice::from_raw_parts_mut(to as *mut u32, count * shown.len()) };
                all.chunks_exact_mut(count).zip(&shown).for_each(|(part, words)| part.copy_from_slice(words));
            }
        }
        Collective::Broadcast { address, count } => {
            let shown = show(address, count)?;
            // SAFETY: the caller's.
            unsafe { slice::from_raw_parts_mut(address as *mut u32, count) }.copy_from_slice(&shown[0]);
        }
    }
    Ok(())
}

/// The product, added up in F64: what cuBLAS does is its own affair.
fn gemm(gemm: &Gemm) {
    let &Gemm { number, weight, x, y, rows, inputs, outputs, stride } = gemm;
    let weight = numbers(number, weight, outputs * inputs);
    let x = numbers(number, x, rows * inputs);
    for row in 0..rows {
        for output in 0..outputs {
            let pairs = x[row * inputs..][..inputs].iter().zip(&weight[output * inputs..][..inputs]);
            let sum: f64 = pairs.map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            // SAFETY: operations look at the sizes of what they are given.
            unsafe { (y as *mut f32).add(row * stride + output).write(sum as f32) };
        }
    }
}

fn numbers(number: Number, address: u64, count: usize) -> Vec<f32> {
    // SAFETY: operations look at the sizes of what they are given, and buffers begin at multiples of their guards.
    unsafe {
        match number {
            Number::F32 => slice::from_raw_parts(address as *const f32, count).to_vec(),
            Number::Bf16 => slice::from_raw_parts(address as *const bf16, count).iter().map(|x| x.to_f32()).collect(),
            Number::F16 => slice::from_raw_parts(address as *const f16, count).iter().map(|x| x.to_f32()).collect(),
            Number::F8 => panic!("nothing is multiplied in eight bits"),
        }
    }
}
