#include "emulator.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <map>
#include <string>
#include <vector>

#ifndef __x86_64__
#include <ucontext.h>
#endif

namespace emulator {

thread_local Index thread_index, block_index, block_extent, grid_extent;
thread_local unsigned char *shared_memory;

namespace {

constexpr int MAX_THREADS = 1024, LANES = 32, MAX_WORDS = 8;
// Some more than a power of two: the tops of all stacks, which is all that most kernels use, would lie in the same few lines of the caches.
constexpr size_t STACK = (64 << 10) + (4 << 10) + 9 * 64, SHARED = 256 << 10;

struct Barrier {
    int members = 0, waiting = 0;
    unsigned generation = 0;
    // Whoever has left is not waited for.
    bool complete() {
        if (waiting == 0 || waiting < members) return false;
        waiting = 0;
        generation++;
        return true;
    }
};

struct Warp {
    Barrier barrier;
    uint64_t slots[2][LANES];
    uint32_t words[2][LANES * MAX_WORDS];
};

#ifdef __x86_64__
typedef void *Context;
extern "C" void emulator_switch(Context *from, Context to);
asm(R"(
.text
.globl emulator_switch
.type emulator_switch, @function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulator_switch, .-emulator_switch
)");
#else
typedef ucontext_t Context;
#endif

// 16 bytes that are to be copied, and the group they belong to.
struct Copy {
    void *to;
    const void *from;
    bool there;
    int group;
};

struct Fiber {
    Context context;
    Index index;
    bool done, has_waited;
    unsigned char exchanges, gathers;
    std::vector<Copy> copies;
    // How many were committed.
    int groups;
    // What it waits at, and the number of that wait.
    const Barrier *barrier;
    unsigned generation;
    bool waits() const { return barrier && barrier->generation == generation; }
};

struct Machine {
    Fiber fibers[MAX_THREADS];
    Warp warps[MAX_THREADS / LANES];
    Barrier block;
    Context scheduler;
    int current = 0, alive = 0;
    bool progress = false;
    Trampoline kernel = nullptr;
    void **arguments = nullptr;
    unsigned char *stacks, *shared;
    unsigned shared_bytes = 0;

    Machine() {
        void *memory = mmap(nullptr, MAX_THREADS * STACK + SHARED, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) abort();
        stacks = static_cast<unsigned char *>(memory);
        shared = stacks + MAX_THREADS * STACK;
    }
};

thread_local Machine *machine = nullptr;

std::map<std::string, Trampoline> &exports() {
    static std::map<std::string, Trampoline> all;
    return all;
}

Fiber &me() { return machine->fibers[machine->current]; }
Warp &my_warp() { return machine->warps[machine->current / LANES]; }

void yield() {
#ifdef __x86_64__
    emulator_switch(&me().context, machine->scheduler);
#else
    swapcontext(&me().context, &machine->scheduler);
#endif
}

void wait(Barrier &barrier) {
    unsigned generation = barrier.generation;
    barrier.waiting++;
    if (barrier.complete()) {
        machine->progress = true;
        return;
    }
    me().barrier = &barrier;
    me().generation = generation;
    yield();
}

void leave(Barrier &barrier) {
    barrier.members--;
    barrier.complete();
}

[[noreturn]] void fail(const char *what) {
    fprintf(stderr, "%s\n", what);
    abort();
}

void run() {
    machine->kernel(machine->arguments);
    if (!me().copies.empty()) fail("a thread ends before its copies do");
    if (!me().has_waited) fail("a kernel does not wait for those before it");
    me().done = true;
    machine->alive--;
    machine->progress = true;
    leave(my_warp().barrier);
    leave(machine->block);
    for (;;) yield();
}

void start(int at) {
    unsigned char *top = machine->stacks + (at + 1) * STACK;
    Fiber &fiber = machine->fibers[at];
#ifdef __x86_64__
    // What the switch pops: six registers and where to go; a function finds the stack eight off a multiple of sixteen.
    void **frame = reinterpret_cast<void **>(top) - 8;
    memset(frame, 0, 8 * sizeof *frame);
    frame[6] = reinterpret_cast<void *>(&run);
    fiber.context = frame;
#else
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = top - STACK;
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run, 0);
#endif
}

void run_block(int threads) {
    machine->block = Barrier{threads};
    for (int warp = 0; warp * LANES < threads; warp++) {
        machine->warps[warp].barrier = Barrier{threads - warp * LANES < LANES ? threads - warp * LANES : LANES};
    }
    for (int at = 0; at < threads; at++) {
        Fiber &fiber = machine->fibers[at];
        fiber.done = fiber.has_waited = false;
        fiber.exchanges = fiber.gathers = 0;
        fiber.groups = 0;
        fiber.barrier = nullptr;
        fiber.index.x = at % block_extent.x;
        fiber.index.y = at / block_extent.x % block_extent.y;
        fiber.index.z = at / block_extent.x / block_extent.y;
        start(at);
    }
    machine->alive = threads;
    while (machine->alive > 0) {
        bool any = false;
        for (int first = 0; first < threads; first += LANES) {
            // A warp runs until all its lanes wait for others. So warps are as far from each other as barriers let them be; the one that comes
            // to a barrier last is the first behind it.
            do {
                machine->progress = false;
                for (int at = first; at < first + LANES && at < threads; at++) {
                    if (machine->fibers[at].done || machine->fibers[at].waits()) continue;
                    machine->current = at;
                    thread_index = machine->fibers[at].index;
#ifdef __x86_64__
                    emulator_switch(&machine->scheduler, machine->fibers[at].context);
#else
                    swapcontext(&machine->scheduler, &machine->fibers[at].context);
#endif
                }
                any |= machine->progress;
            } while (machine->progress);
        }
        if (!any) fail("a kernel's threads wait for each other at different barriers");
    }
}

}  // namespace

// Threads of the host share nothing, so an index that was read before a switch is the fiber's own after it as well.
void block_barrier() { wait(machine->block); }
void warp_barrier() { wait(my_warp().barrier); }

uint64_t exchange(uint64_t value, int from) {
    Warp &warp = my_warp();
    // Two by turns: a lane that reads cannot be more than one call behind.
    int turn = me().exchanges++ % 2;
    warp.slots[turn][machine->current % LANES] = value;
    wait(warp.barrier);
    return warp.slots[turn][from];
}

const uint32_t *gather(const uint32_t *mine, int words) {
    if (words > MAX_WORDS) abort();
    Warp &warp = my_warp();
    int turn = me().gathers++ % 2;
    memcpy(warp.words[turn] + machine->current % LANES * words, mine, words * sizeof *mine);
    wait(warp.barrier);
    return warp.words[turn];
}

void wait_for_previous() { me().has_waited = true; }

void check_shared(const void *at) {
    size_t offset = static_cast<const unsigned char *>(at) - machine->shared;
    if (offset % 16 != 0) fail("16 bytes of shared memory at an address that is no multiple of 16");
    if (offset >= machine->shared_bytes) fail("an address that is not in shared memory");
}

void begin_copy(void *to, const void *from, bool there) {
    check_shared(to);
    if (reinterpret_cast<uintptr_t>(from) % 16 != 0) fail("a copy from an address that is no multiple of 16");
    memset(to, 0xff, 16);
    me().copies.push_back(Copy{to, from, there, me().groups});
}

void commit_copies() { me().groups++; }

void wait_copies(int but) {
    std::vector<Copy> &copies = me().copies;
    size_t left = 0;
    for (Copy &copy : copies) {
        if (copy.group >= me().groups - but) {
            copies[left++] = copy;
        } else if (copy.there) {
            memcpy(copy.to, copy.from, 16);
        } else {
            memset(copy.to, 0, 16);
        }
    }
    copies.resize(left);
}

Export::Export(const char *name, Trampoline trampoline) { exports()[name] = trampoline; }

}  // namespace emulator

float float_of_f16(uint16_t bits) {
    unsigned sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | fraction << 13);
    if (exponent > 0) return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
    float small = ldexpf((float)fraction, -24);
    return sign ? -small : small;
}

// To nearest, ties to even.
uint16_t f16_of_float(float x) {
    unsigned bits = __float_as_uint(x), sign = bits >> 16 & 0x8000;
    float size = fabsf(x);
    if (x != x) return (uint16_t)(sign | 0x7e00);
    if (size >= 65520.0f) return (uint16_t)(sign | 0x7c00);
    if (size < 6.103515625e-05f) return (uint16_t)(sign | (unsigned)rintf(ldexpf(size, 24)));
    unsigned rounded = (bits & 0x7fffffff) + 0xfff + (bits >> 13 & 1);
    return (uint16_t)(sign | (rounded - (112u << 23)) >> 13);
}

extern "C" {

// Whether there is a kernel of this name.
int tandem_emulator_has(const char *name) { return emulator::exports().count(name) > 0; }

// Runs a kernel: as cuLaunchKernel has it, `arguments` point to each of them. 0 when there is no such kernel or it asks for too much.
int tandem_emulator_launch(const char *name, const unsigned *grid, const unsigned *block, unsigned shared_bytes, void **arguments) {
    using namespace emulator;
    auto found = exports().find(name);
    unsigned threads = block[0] * block[1] * block[2];
    if (found == exports().end() || threads == 0 || threads > MAX_THREADS || shared_bytes > SHARED) return 0;
    if (!machine) machine = new Machine;
    machine->kernel = found->second;
    machine->arguments = arguments;
    shared_memory = machine->shared;
    machine->shared_bytes = shared_bytes;
    block_extent = Index{block[0], block[1], block[2]};
    grid_extent = Index{grid[0], grid[1], grid[2]};
    for (unsigned z = 0; z < grid[2]; z++)
        for (unsigned y = 0; y < grid[1]; y++)
            for (unsigned x = 0; x < grid[0]; x++) {
                block_index = Index{x, y, z};
                // What a kernel has not written is not a number.
                memset(machine->shared, 0xff, shared_bytes);
                run_block(threads);
            }
    return 1;
}
}
