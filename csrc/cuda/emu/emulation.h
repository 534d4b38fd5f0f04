// Runs the kernels of csrc/cuda on the CPU, so that tests execute them where no GPU is.
//
// Each CUDA thread is a fiber. The fibers of a block run one at a time on one thread of the process, and switch only
// where they meet: at a barrier of the block or a collective of a warp. The order between meetings is drawn from a
// seed, so what is not ordered by a meeting shows as a result that depends on the seed (and as a race under
// ThreadSanitizer). Errors end the launch with kernel, block, thread and line: a barrier that not all threads reach, a
// collective that not all lanes of its mask reach, an address that is not aligned, a launch beyond the limits, shared
// memory written past its end. Shared memory starts as NaN, and so does the destination of a copy until it is waited
// for.
//
// What it can't show: speed, the memory model within a warp, and what a GPU makes of the PTX in device.h.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
inline int min(int a, int b) {
    return a < b ? a : b;
}
inline int max(int a, int b) {
    return a > b ? a : b;
}
struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

namespace moelens::emulation {

struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

enum class State : uint8_t { kReady, kAtBarrier, kAtCollective, kExited };

// A copy to shared memory that is under way; `global` is null if zeros are to be written.
struct Copy {
    void* shared;
    const void* global;
    int group;
};

// One CUDA thread.
struct Thread {
    dim3 index;
    unsigned number = 0, lane = 0, warp = 0;
    State state = State::kReady;
    int line = 0;                      // where it waits
    const char* collective = nullptr;  // what for, unless it is the barrier
    unsigned mask = 0;
    void* arguments = nullptr;
    std::vector<Copy> copies;
    int group = 0;
    void* stack_pointer = nullptr;  // while it does not run
    void* race_fiber = nullptr;     // ThreadSanitizer's name for it, and what its collectives synchronise on
    char collective_in = 0, collective_out = 0;
};

// What a thread's built-in variables are read from.
struct Place {
    dim3 block, block_size, grid_size;
    unsigned char* dynamic_shared;
};

extern thread_local Place place;
extern thread_local Thread* current;

// The order in which threads and blocks run: ascending for 0, else drawn from the seed.
void set_seed(uint64_t seed);

// Ends the launch with an Error.
[[noreturn]] void fail(const std::string& what);

void meet_at_barrier(int line);

// All lanes in `mask` must come to the same collective; the last to come runs compute(arguments of each lane). Only
// __syncwarp orders what the lanes do to memory, as CUDA promises no more.
void meet_in_warp(const char* name, unsigned mask, void* arguments, int line, void (*compute)(void** lanes),
                  bool orders_memory = false);

// The block's shared memory of the declaration `site`.
void* shared_memory(const void* site, size_t bytes);

// Runs all blocks before it returns.
void launch(const void* kernel, const char* name, dim3 grid, dim3 block, size_t shared_bytes,
            const std::function<void()>& body);

void allow_dynamic_shared(const void* kernel, int bytes);

}  // namespace moelens::emulation

#define threadIdx (moelens::emulation::current->index)
#define blockIdx (moelens::emulation::place.block)
#define blockDim (moelens::emulation::place.block_size)
#define gridDim (moelens::emulation::place.grid_size)
#define __syncthreads() moelens::emulation::meet_at_barrier(__LINE__)

#define MOELENS_DYNAMIC_SHARED(type, name) \
    type* const name = reinterpret_cast<type*>(moelens::emulation::place.dynamic_shared)
#define MOELENS_SHARED(type, name, count) \
    static const char name##_site = 0;    \
    type* const name = static_cast<type*>(moelens::emulation::shared_memory(&name##_site, sizeof(type) * (count)))
#define MOELENS_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                           \
    (static_cast<void>(stream), moelens::emulation::launch(reinterpret_cast<const void*>(kernel), #kernel, grid, \
                                                           block, shared_bytes, [=] { (kernel)(__VA_ARGS__); }))

// --- the part of the runtime that launchers use
using cudaError_t = int;
using cudaStream_t = void*;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1;
constexpr int cudaFuncAttributeMaxDynamicSharedMemorySize = 8;
constexpr int kMaxDynamicSharedBytes = 99 * 1024;  // of the smallest of the architectures that we compile for

inline cudaError_t cudaGetLastError() {
    return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t error) {
    return error == cudaSuccess ? "no error" : "invalid argument";
}
inline cudaError_t cudaFuncSetAttribute(const void* kernel, int, int bytes) {
    if (bytes > kMaxDynamicSharedBytes) return cudaErrorInvalidValue;
    moelens::emulation::allow_dynamic_shared(kernel, bytes);
    return cudaSuccess;
}
inline cudaError_t cudaGetDeviceCount(int* count) {
    *count = 0;
    return cudaSuccess;
}
