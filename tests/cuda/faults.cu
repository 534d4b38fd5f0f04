// Kernels with one fault each, and the same without it: what the emulation must report, and what it must not.
#include <cstring>
#include <string>

#include "device.h"

namespace {

using moelens::commit_copies;
using moelens::copy_async;
using moelens::wait_for_copies;

constexpr int kThreads = 64;
constexpr unsigned kAll = 0xffffffffu;

enum Fault {
    kNone,
    kSkippedBarrier,
    kEndedThread,
    kOtherBarrier,
    kMissingLane,
    kLaneOutsideMask,
    kOtherCollective,
    kMisalignedCopy,
    kSharedOverrun,
    kMisalignedVector,
    kMissingBarrier,
    kMissingWait,
    kLateWait,
};

// out[i] = in[63 - i] through shared memory, then doubled by a neighbour's half; in has 16-byte alignment.
__global__ void reverse_kernel(int fault, const float* in, float* out) {
    MOELENS_DYNAMIC_SHARED(float, values);
    const int i = threadIdx.x;
    if (fault == kEndedThread && i == 5) return;
    if (fault == kSharedOverrun && i == 0) values[kThreads] = 1;
    if (fault == kMisalignedVector) out[i] = moelens::as_vector<const float4>(in + 1)->x;
    if (i < kThreads / 4) copy_async(values + 4 * i + (fault == kMisalignedCopy), in + 4 * i, true);
    commit_copies();
    if (fault == kLateWait) {
        wait_for_copies<1>();
    } else if (fault != kMissingWait) {
        wait_for_copies<0>();
    }
    if (fault == kOtherBarrier && i < 32) {
        __syncthreads();
    } else if (fault != kMissingBarrier && !(fault == kSkippedBarrier && i == 7)) {
        __syncthreads();
    }
    float value = values[kThreads - 1 - i];
    if (fault == kMissingLane) {
        if (i % 32 < 16) value += __shfl_xor_sync(kAll, value, 0);
    } else if (fault == kLaneOutsideMask) {
        value += __shfl_xor_sync(i % 32 < 16 ? 0xffffu : 0xffff0000u, value, 16);
    } else if (fault == kOtherCollective && i % 32 == 3) {
        __syncwarp();
    } else {
        value += __shfl_xor_sync(kAll, value, 0);
    }
    out[i] = value;
}

__global__ void idle_kernel() {}

std::string message;

template <class F>
const char* report(const F& run) {
    try {
        run();
        message.clear();
    } catch (const std::exception& error) {
        message = error.what();
    }
    return message.c_str();
}

}  // namespace

// Runs the kernel once; returns what was reported, or nothing.
extern "C" const char* run_fault(int fault, uint64_t seed, const float* in, float* out) {
    moelens::emulation::set_seed(seed);
    return report([&] {
        MOELENS_LAUNCH(reverse_kernel, dim3(1), dim3(kThreads), kThreads * sizeof(float), nullptr, fault, in, out);
    });
}

extern "C" const char* run_launch(unsigned grid_x, unsigned grid_y, unsigned block, uint64_t shared_bytes) {
    return report([&] { MOELENS_LAUNCH(idle_kernel, dim3(grid_x, grid_y), dim3(block), shared_bytes, nullptr); });
}
