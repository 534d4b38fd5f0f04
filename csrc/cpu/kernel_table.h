// What a kernel takes, as plain structs, and the table of one variant's kernels.
#pragma once

#include <cstdint>

#include "../ops/records.h"
#include "scratch.h"
#include "team.h"

namespace moelens {

// What every kernel that works in parallel gets: the team (locked) and memory to work in.
struct Context {
    Team& team;
    Scratch& scratch;
};

// table [V, H], token_ids [T] (all in [0, V)) -> out [T, H]
struct EmbedArgs {
    Element element;      // of table
    Element out_element;  // element, or float32
    int64_t rows, width;
    const void* table;
    const int32_t* token_ids;
    void* out;
};

// x -> out, element by element; `parameter` is scale's factor.
struct ElementwiseArgs {
    Element element;
    int64_t count;
    const void* x;
    void* out;
    float parameter;
};

// x [T, K], weight: packed [N, K] -> out [T, N] = residual + scale * (x Wᵀ + bias); bias and residual may be null.
struct LinearArgs {
    Element element;      // of x, weight and bias
    Element out_element;  // of residual and out: element, or float32
    int64_t rows, inner, columns;
    const void* x;
    const void* weight;
    const void* bias;
    const void* residual;
    void* out;
    float scale;
};

// norm, linear and split_qkv in turn; what each would read from the one before, and write for the next, is unused.
// Heads are whole panels of the weight, and q and k are normalised head by head or not at all.
struct ProjectQkvArgs {
    NormArgs norm;
    bool centred;  // the norm is a layer_norm
    LinearArgs product;
    SplitQkvArgs split;
};

// linear, a norm of its result, linear of that and route in turn; what the last three would read from the one before is
// unused, but for the norm's out.
struct ProjectAndRouteArgs {
    LinearArgs projection;
    NormArgs norm;
    bool centred;  // the norm is a layer_norm
    LinearArgs router;
    RouteArgs route;
};

// Rows of a matrix W [N, K] into storage; W[n, k] lies at source + n * row_stride + k * column_stride (in elements,
// one of the strides is 1).
struct MatrixSource {
    const void* data;
    int64_t rows, columns;
    int64_t row_stride, column_stride;
};

// x [T, H], ids [T, A] (all in [0, E)), scores [T, A], gate_up: packed [E, 2, I, H], down: packed [E, H, I] ->
// out [T, H] = residual + scale * Σ_a scores[t, a] * down(act(gate x) ⊙ up x); residual may be null.
struct ExpertsArgs {
    Element element;      // of x, gate_up and down
    Element out_element;  // of residual and out: element, or float32
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

// k, v [T, K, D] into the blocks of keys and values, at slots [T].
struct WriteKvArgs {
    Element element;
    int64_t tokens, kv_heads, head_dim, block_tokens;
    const void* k;
    const void* v;
    void* keys;
    void* values;
    const int32_t* slots;
};

// q [T, Q, D], rows as in AttentionRows (starts [S + 1], cached [S], block_ids [S, block_columns]) -> out [T, Q, D].
// A row at position p sees the keys at p - window + 1 … p.
struct AttentionArgs {
    Element element;
    int64_t requests, query_heads, kv_heads, head_dim, block_tokens, block_columns;
    const void* q;
    const void* keys;
    const void* values;
    const int32_t* starts;
    const int32_t* cached;
    const int32_t* block_ids;
    void* out;  // may be q: a task reads all rows of q that it writes, before it writes any
    float scale;
    int64_t window;
};

// allowed [M, V/32 rounded up], bit i of word w is token 32 w + i -> logits [R, V] at rows [M] (all in [0, R)), in
// place.
struct MaskArgs {
    int64_t masks, vocab;
    const int32_t* allowed;
    const int32_t* rows;
    float* logits;
};

// logits [R, V], the rest [R] -> ids [R], -1 where a row holds a NaN (or nothing finite to sample from).
struct SampleArgs {
    int64_t rows, vocab;
    const float* logits;
    const float* temperature;
    const int32_t* top_k;
    const float* top_p;
    const float* min_p;
    const float* uniform;
    int32_t* ids;
};

// data: `count` floats to read, or two vectors to multiply; results: one number for each thread, of no meaning.
struct CeilingArgs {
    const float* data;
    int64_t count;
    float* results;
    int64_t* flops;  // done by all threads
};

struct KernelTable {
    const char* isa;
    void (*rms_norm)(const Context&, const NormArgs&);
    void (*layer_norm)(const Context&, const NormArgs&);
    void (*embed)(const Context&, const EmbedArgs&);
    void (*split_qkv)(const Context&, const SplitQkvArgs&);
    void (*scale)(const Context&, const ElementwiseArgs&);
    void (*sigmoid)(const Context&, const ElementwiseArgs&);
    void (*route)(const Context&, const RouteArgs&);
    void (*linear)(const Context&, const LinearArgs&);
    void (*linear_int8)(const Context&, const LinearArgs&);  // by a weight that pack_matrix_int8 packed
    void (*project_qkv)(const Context&, const ProjectQkvArgs&);
    void (*project_and_route)(const Context&, const ProjectAndRouteArgs&);
    void (*experts)(const Context&, const ExpertsArgs&);
    void (*experts_int8)(const Context&, const ExpertsArgs&);
    void (*write_kv)(const Context&, const WriteKvArgs&);
    void (*attention)(const Context&, const AttentionArgs&);
    void (*mask_logits)(const Context&, const MaskArgs&);
    void (*sample)(const Context&, const SampleArgs&);
    void (*read_memory)(const Context&, const CeilingArgs&);
    void (*multiply_registers)(const Context&, const CeilingArgs&);
    void (*multiply_quads)(const Context&, const CeilingArgs&);  // the same of 8-bit whole numbers
    // Fills whole panels: rows past source.rows in the last panel become zero. Runs on the calling thread.
    void (*pack_matrix)(Element, const MatrixSource&, void* storage);
    void (*pack_matrix_int8)(Element, const MatrixSource&, void* storage);  // quantised (see quads.inl.h)
    // Gate and up of one expert: panels of 16 rows of gate beside the same 16 rows of up.
    void (*pack_gate_up)(Element, const MatrixSource& gate, const MatrixSource& up, void* storage);
    void (*pack_gate_up_int8)(Element, const MatrixSource& gate, const MatrixSource& up, void* storage);
};

}  // namespace moelens
