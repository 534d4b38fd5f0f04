// What each op of the device takes, and the functions that start it: pointers, sizes and a stream's handle; no torch.
//
// Pointers are to device memory and stay valid until the stream has passed the call. Sizes are at least 1, and the ids
// and slots in range, which the callers see to. Errors of CUDA are thrown as std::runtime_error.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../ops/records.h"

namespace moelens {

// A cudaStream_t as an integer.
using Stream = uintptr_t;

// The number of CUDA devices, and CUDA's words for why there is none.
int count_devices(const char** reason);

void rms_norm(const NormArgs& args, Stream stream);
void layer_norm(const NormArgs& args, Stream stream);
void split_qkv(const SplitQkvArgs& args, Stream stream);

constexpr int64_t kMaxExperts = 512, kMaxActive = 32;  // that route takes
void route(const RouteArgs& args, Stream stream);

// x [T, K] bfloat16, weight: panels [N/32][K/2][32][2] -> out [T, N] = residual + scale * (x Wᵀ + bias).
// Rows of x are x_stride elements apart, a multiple of 8 that is at least K; elements past K are finite.
struct LinearArgs {
    Element out_element;  // of residual and out
    int64_t rows, inner, columns, x_stride;
    const void* x;
    const void* weight;
    const void* bias;      // bfloat16, may be null
    const void* residual;  // may be null
    void* out;
    float scale;
};
void linear(const LinearArgs& args, Stream stream);

// x [T, H] bfloat16, ids and scores [T, A]; gate_up: panels of 16 gates and 16 ups, down: panels, one after another for
// each expert -> out [T, H] = residual + scale * Σ_a scores[t, a] * down(act(gate x) ⊙ up x); x as in LinearArgs.
struct ExpertsArgs {
    Element out_element;  // of residual and out
    Activation activation;
    int64_t tokens, hidden, experts, active, width, x_stride;
    const void* x;
    const void* gate_up;
    const void* down;
    const int32_t* ids;
    const float* scores;
    const void* residual;  // may be null
    void* out;
    void* workspace;  // experts_workspace_bytes, aligned to 256
    float scale;
};
void experts(const ExpertsArgs& args, Stream stream);
int64_t experts_workspace_bytes(int64_t tokens, int64_t hidden, int64_t experts, int64_t active, int64_t width);

// k, v [T, K, D] bfloat16 and the blocks of a cache, as csrc/cpu lays them out (see kv.cuh), by slots [T].
struct KvArgs {
    int64_t tokens, kv_heads, head_dim, block_tokens;
    void* k;
    void* v;
    void* keys;
    void* values;
    const int32_t* slots;
};
void write_kv(const KvArgs& args, Stream stream);  // k, v -> keys, values
void read_kv(const KvArgs& args, Stream stream);   // keys, values -> k, v

}  // namespace moelens
