// rotary: pairs (i, i + pairs) of each head turn; angles and products in float32. A block per row.
#pragma once

#include "element.cuh"

namespace moelens {

constexpr int kRotaryThreads = 128;

template <class T>
struct RotaryRows {
    const T* x;
    const int32_t* positions;
    const float* inverse_frequencies;
    T* out;
    int heads, head_dim, pairs;
    float magnitude;
};

template <class T>
__global__ void __launch_bounds__(kRotaryThreads) rotary_kernel(RotaryRows<T> args) {
    MOELENS_DYNAMIC_SHARED(float, cosines);  // [pairs], then as many sines
    float* const sines = cosines + args.pairs;
    const float position = static_cast<float>(args.positions[blockIdx.x]);
    for (int i = threadIdx.x; i < args.pairs; i += kRotaryThreads) {
        float sine, cosine;
        sincosf(position * args.inverse_frequencies[i], &sine, &cosine);
        cosines[i] = cosine * args.magnitude;
        sines[i] = sine * args.magnitude;
    }
    __syncthreads();
    const int width = args.heads * args.head_dim;
    const T* x = args.x + static_cast<int64_t>(blockIdx.x) * width;
    T* out = args.out + static_cast<int64_t>(blockIdx.x) * width;
    for (int at = threadIdx.x; at < width; at += kRotaryThreads) {
        const int i = at % args.head_dim;  // within its head
        if (i >= 2 * args.pairs) {
            out[at] = x[at];
        } else if (i < args.pairs) {
            const float a = widen(x[at]), b = widen(x[at + args.pairs]);
            out[at] = narrow<T>(a * cosines[i] - b * sines[i]);
            out[at + args.pairs] = narrow<T>(b * cosines[i] + a * sines[i]);
        }
    }
}

}  // namespace moelens
