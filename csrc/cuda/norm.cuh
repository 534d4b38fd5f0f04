// rms_norm and layer_norm: a warp per short row, a block per long one. A row's sums depend on its width alone.
#pragma once

#include "element.cuh"

namespace moelens {

constexpr int kNormThreads = 256;
constexpr int64_t kWarpWidth = 512;  // the longest row that a warp takes

// Sums over the threads of a row: its warp, or its block.
struct WarpOfRow {
    static constexpr int kThreads = 32;
    __device__ float sum(float a) const { return sum_over_warp(a); }
};

struct BlockOfRow {
    static constexpr int kThreads = kNormThreads;
    // Every thread gets the sum; `parts` is free again after the next barrier.
    __device__ float sum(float a) const {
        MOELENS_SHARED(float, parts, kNormThreads / 32);
        a = sum_over_warp(a);
        __syncthreads();  // parts may hold an earlier sum
        if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = a;
        __syncthreads();
        float total = 0;
        for (int i = 0; i < kNormThreads / 32; ++i) total += parts[i];
        return total;
    }
};

template <class X, class T>
struct NormRows {
    const X* x;
    const T* weight;
    T* out;
    int64_t rows;
    int width;
    float eps;
};

// Σ f(x[i]) over the row, by the threads of `Team`.
template <class Team, class X, class F>
__device__ __forceinline__ float sum_over_row(const X* x, int width, int thread, const F& f) {
    float total = 0;
    if (width % 4 == 0) {
        for (int i = 4 * thread; i < width; i += 4 * Team::kThreads) {
            float a[4];
            load_four(x + i, a);
            total += (f(a[0]) + f(a[1])) + (f(a[2]) + f(a[3]));
        }
    } else {
        for (int i = thread; i < width; i += Team::kThreads) total += f(widen(x[i]));
    }
    return Team().sum(total);
}

template <class Team, class X, class T>
__device__ __forceinline__ void write_normed(const NormRows<X, T>& args, int64_t row, int thread, float mean,
                                             float factor) {
    const X* x = args.x + row * args.width;
    T* out = args.out + row * args.width;
    if (args.width % 4 == 0) {
        for (int i = 4 * thread; i < args.width; i += 4 * Team::kThreads) {
            float a[4], w[4];
            load_four(x + i, a);
            load_four(args.weight + i, w);
#pragma unroll
            for (int j = 0; j < 4; ++j) a[j] = (a[j] - mean) * factor * w[j];
            store_four(out + i, a);
        }
    } else {
        for (int i = thread; i < args.width; i += Team::kThreads) {
            out[i] = narrow<T>((widen(x[i]) - mean) * factor * widen(args.weight[i]));
        }
    }
}

template <class Team, bool Centred, class X, class T>
__global__ void __launch_bounds__(kNormThreads) norm_kernel(NormRows<X, T> args) {
    const int64_t row =
        static_cast<int64_t>(blockIdx.x) * (kNormThreads / Team::kThreads) + threadIdx.x / Team::kThreads;
    if (row >= args.rows) return;
    const int thread = threadIdx.x % Team::kThreads;
    const X* x = args.x + row * args.width;
    const float width = static_cast<float>(args.width);
    float mean = 0;
    if (Centred) mean = sum_over_row<Team>(x, args.width, thread, [](float a) { return a; }) / width;
    const float squares =
        sum_over_row<Team>(x, args.width, thread, [mean](float a) { return (a - mean) * (a - mean); });
    write_normed<Team>(args, row, thread, mean, 1.0f / sqrtf(squares / width + args.eps));
}

}  // namespace moelens
