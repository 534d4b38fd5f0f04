// split_qkv: a joined row into q, k and v; norms of q and k, a limit, and the rotary embedding. A block per row.
//
// All in float32 and rounded once, so the row waits in shared memory. A warp sums up what is normalised together.
#pragma once

#include "element.cuh"

namespace moelens {

constexpr int kSplitThreads = 256;

// `width` elements are normalised together and multiplied by `weight`; null: none are.
template <class T>
struct HeadNorm {
    const T* weight;
    int width;
};

template <class X, class T>
struct SplitRows {
    const X* joined;
    const int32_t* positions;
    const float* inverse_frequencies;
    HeadNorm<T> q_norm, k_norm;
    T* q;
    T* k;
    T* v;
    int query_heads, kv_heads, head_dim, pairs;
    float magnitude, eps, limit;

    __host__ __device__ int row_width() const { return (query_heads + 2 * kv_heads) * head_dim; }
    // Floats of shared memory: the row, cosines and sines, and at most a factor per head.
    __host__ __device__ int shared_floats() const { return row_width() + 2 * pairs + query_heads + kv_heads; }
};

// factors[g] = 1 / root mean square of the g-th `width` elements of x.
__device__ __forceinline__ void find_factors(const float* x, int count, int width, float eps, float* factors) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int group = warp; group < count / width; group += kSplitThreads / 32) {
        float squares = 0;
        for (int i = lane; i < width; i += 32) squares += x[group * width + i] * x[group * width + i];
        squares = sum_over_warp(squares);
        if (lane == 0) factors[group] = 1.0f / sqrtf(squares / static_cast<float>(width) + eps);
    }
}

// Element `at` of x, normalised and held to the limit.
template <class T>
__device__ __forceinline__ float adjusted(const float* x, int at, const HeadNorm<T>& norm, const float* factors,
                                          float limit) {
    float a = x[at];
    if (norm.weight != nullptr) a = a * factors[at / norm.width] * widen(norm.weight[at % norm.width]);
    if (a > limit) a = limit;  // as in torch, a NaN stays one
    if (a < -limit) a = -limit;
    return a;
}

template <class X, class T>
__device__ __forceinline__ void write_turned(const SplitRows<X, T>& args, const float* x, int width,
                                             const HeadNorm<T>& norm, const float* factors, const float* cosines,
                                             T* out) {
    const float* sines = cosines + args.pairs;
    for (int at = threadIdx.x; at < width; at += kSplitThreads) {
        const int i = at % args.head_dim;
        const float a = adjusted(x, at, norm, factors, args.limit);
        if (i >= 2 * args.pairs) {
            out[at] = narrow<T>(a);
        } else if (i < args.pairs) {
            const float b = adjusted(x, at + args.pairs, norm, factors, args.limit);
            out[at] = narrow<T>(a * cosines[i] - b * sines[i]);
            out[at + args.pairs] = narrow<T>(b * cosines[i] + a * sines[i]);
        }
    }
}

template <class X, class T>
__global__ void __launch_bounds__(kSplitThreads) split_qkv_kernel(SplitRows<X, T> args) {
    MOELENS_DYNAMIC_SHARED(float, row);
    const int q_width = args.query_heads * args.head_dim, kv_width = args.kv_heads * args.head_dim;
    float* const cosines = row + args.row_width();
    float* const q_factors = cosines + 2 * args.pairs;
    float* const k_factors = q_factors + args.query_heads;
    const X* joined = args.joined + static_cast<int64_t>(blockIdx.x) * args.row_width();
    for (int i = threadIdx.x; i < args.row_width(); i += kSplitThreads) row[i] = widen(joined[i]);
    const float position = static_cast<float>(args.positions[blockIdx.x]);
    for (int i = threadIdx.x; i < args.pairs; i += kSplitThreads) {
        float sine, cosine;
        sincosf(position * args.inverse_frequencies[i], &sine, &cosine);
        cosines[i] = cosine * args.magnitude;
        cosines[args.pairs + i] = sine * args.magnitude;
    }
    __syncthreads();
    if (args.q_norm.weight != nullptr) find_factors(row, q_width, args.q_norm.width, args.eps, q_factors);
    if (args.k_norm.weight != nullptr) find_factors(row + q_width, kv_width, args.k_norm.width, args.eps, k_factors);
    __syncthreads();
    const int64_t token = blockIdx.x;
    write_turned(args, row, q_width, args.q_norm, q_factors, cosines, args.q + token * q_width);
    write_turned(args, row + q_width, kv_width, args.k_norm, k_factors, cosines, args.k + token * kv_width);
    const float* values = row + q_width + kv_width;
    const HeadNorm<T> none{nullptr, 1};
    for (int i = threadIdx.x; i < kv_width; i += kSplitThreads) {
        args.v[token * kv_width + i] = narrow<T>(adjusted(values, i, none, q_factors, args.limit));
    }
}

}  // namespace moelens
