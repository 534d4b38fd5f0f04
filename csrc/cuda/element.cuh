// Elements of activations: float32, and bfloat16 that is computed with as float32.
#pragma once

#include <cmath>

#include "device.h"

namespace moelens {

struct Bf16 {
    uint16_t bits;
};

__device__ __forceinline__ float widen(float a) {
    return a;
}
__device__ __forceinline__ float widen(Bf16 a) {
    return __uint_as_float(static_cast<uint32_t>(a.bits) << 16);
}

template <class T>
__device__ __forceinline__ T narrow(float a);
template <>
__device__ __forceinline__ float narrow<float>(float a) {
    return a;
}
template <>
__device__ __forceinline__ Bf16 narrow<Bf16>(float a) {
    return {narrow_bits(a)};
}

// Four neighbouring elements at a multiple of four of them.
__device__ __forceinline__ void load_four(const float* p, float (&a)[4]) {
    const float4 four = *as_vector<const float4>(p);
    a[0] = four.x, a[1] = four.y, a[2] = four.z, a[3] = four.w;
}
__device__ __forceinline__ void load_four(const Bf16* p, float (&a)[4]) {
    const uint2 four = *as_vector<const uint2>(p);
    a[0] = __uint_as_float(four.x << 16), a[1] = __uint_as_float(four.x & 0xffff0000u);
    a[2] = __uint_as_float(four.y << 16), a[3] = __uint_as_float(four.y & 0xffff0000u);
}
__device__ __forceinline__ void store_four(float* p, const float (&a)[4]) {
    *as_vector<float4>(p) = {a[0], a[1], a[2], a[3]};
}
__device__ __forceinline__ void store_four(Bf16* p, const float (&a)[4]) {
    *as_vector<uint2>(p) = {narrow_bits(a[0]) | static_cast<uint32_t>(narrow_bits(a[1])) << 16,
                            narrow_bits(a[2]) | static_cast<uint32_t>(narrow_bits(a[3])) << 16};
}

constexpr unsigned kAllLanes = 0xffffffffu;

// The sum over the warp, in an order that is the same for every lane.
__device__ __forceinline__ float sum_over_warp(float a) {
#pragma unroll
    for (int bits = 16; bits > 0; bits /= 2) a += __shfl_xor_sync(kAllLanes, a, bits);
    return a;
}

__host__ __device__ constexpr int64_t divide_rounding_up(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}
__host__ __device__ constexpr int64_t round_up(int64_t a, int64_t multiple) {
    return divide_rounding_up(a, multiple) * multiple;
}

}  // namespace moelens
