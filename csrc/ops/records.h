// What those ops take that the CPU's and the device's kernels are told in the same words: plain structs, no torch.
#pragma once

#include <cstdint>

namespace moelens {

enum class Element : uint8_t { kFloat32, kBFloat16 };
enum class Scoring : uint8_t { kSoftmax, kTopkSoftmax };
enum class Activation : uint8_t { kSilu, kGelu, kGeluTanh };

// x [T, W] -> out [T, W]
struct NormArgs {
    Element x_element;  // element, or float32
    Element element;    // of weight and out
    int64_t rows, width;
    const void* x;
    const void* weight;
    void* out;
    float eps;
};

// What a norm multiplies by: `width` elements, and the root mean square is taken over as many. Null: no norm.
struct NormWeight {
    const void* data;
    int64_t width;
};

// joined [T, (Q + 2K) D], positions [T], inverse_frequencies [pairs] -> q [T, Q, D], k, v [T, K, D]: q and k
// normalised, all held to [-limit, limit], then elements i and i + pairs of each head of q and k rotated.
struct SplitQkvArgs {
    Element joined_element;  // element, or float32
    Element element;         // of the norms' weights, q, k and v
    int64_t rows, query_heads, kv_heads, head_dim, pairs;
    const void* joined;
    const int32_t* positions;
    const float* inverse_frequencies;
    float magnitude;
    NormWeight q_norm, k_norm;
    float eps, limit;
    void* q;
    void* k;
    void* v;
};

// logits [T, E] -> ids [T, A], weights [T, A]; norm 0: the weights are left as they are.
struct RouteArgs {
    int64_t rows, experts, active;
    Scoring scoring;
    float norm;
    const float* logits;
    int32_t* ids;
    float* weights;
};

}  // namespace moelens
