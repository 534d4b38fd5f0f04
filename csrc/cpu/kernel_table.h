// What a kernel takes, as plain structs, and the table of one variant's kernels.
#pragma once

#include <cstdint>

#include "scratch.h"
#include "team.h"

namespace moelens {

enum class Element : uint8_t { kFloat32, kBFloat16 };

// What every kernel that works in parallel gets: the team (locked) and memory to work in.
struct Context {
    Team& team;
    Scratch& scratch;
};

// x [T, W] -> out [T, W]
struct NormArgs {
    Element element;
    int64_t rows, width;
    const void* x;
    const void* weight;
    void* out;
    float eps;
};

// x [T, K], weight: packed [N, K] -> out [T, N] = residual + scale * (x Wᵀ + bias); bias and residual may be null.
struct LinearArgs {
    Element element;      // of x, weight, bias and residual
    Element out_element;  // element, or float32
    int64_t rows, inner, columns;
    const void* x;
    const void* weight;
    const void* bias;
    const void* residual;
    void* out;
    float scale;
};

// Rows of a matrix W [N, K] into storage; W[n, k] lies at source + n * row_stride + k * column_stride (in elements,
// one of the strides is 1).
struct MatrixSource {
    const void* data;
    int64_t rows, columns;
    int64_t row_stride, column_stride;
};

enum class Activation : uint8_t { kSilu, kGelu, kGeluTanh };

// x [T, H], ids [T, A] (all in [0, E)), scores [T, A], gate_up: packed [E, 2, I, H], down: packed [E, H, I] ->
// out [T, H] = residual + scale * Σ_a scores[t, a] * down(act(gate x) ⊙ up x); residual may be null.
struct ExpertsArgs {
    Element element;
    Activation activation;
    int64_t tokens, hidden, experts, active, width;
    const void* x;
    const void* gate_up;
    const void* down;
    const int32_t* ids;
    const float* scores;
    const void* residual;
    void* out;
    float scale;
};

struct KernelTable {
    const char* isa;
    void (*rms_norm)(const Context&, const NormArgs&);
    void (*layer_norm)(const Context&, const NormArgs&);
    void (*linear)(const Context&, const LinearArgs&);
    void (*experts)(const Context&, const ExpertsArgs&);
    // Fills whole panels: rows past source.rows in the last panel become zero. Runs on the calling thread.
    void (*pack_matrix)(Element, const MatrixSource&, void* storage);
    // Gate and up of one expert: panels of 16 rows of gate beside the same 16 rows of up.
    void (*pack_gate_up)(Element, const MatrixSource& gate, const MatrixSource& up, void* storage);
};

}  // namespace moelens
