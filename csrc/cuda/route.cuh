// route: the experts of each token and their weights, from the router's logits. A warp per token.
#pragma once

#include "element.cuh"
#include "launch.h"

namespace moelens {

constexpr int kRouteThreads = 128;

// Logits by size, the lower id first among equals: an order of integers. A NaN is the smallest; 0 is nobody.
__device__ __forceinline__ uint64_t rank_logit(float logit, int expert) {
    const uint32_t bits = __float_as_uint(logit + 0.0f);  // -0 is 0
    const uint32_t ordered = bits >> 31 ? ~bits : bits | 0x80000000u;
    const uint32_t size = logit == logit ? ordered : 1u;
    return static_cast<uint64_t>(size) << 32 | (0xffffffffu - static_cast<uint32_t>(expert));
}

__device__ __forceinline__ uint64_t largest_over_warp(uint64_t a) {
#pragma unroll
    for (int bits = 16; bits > 0; bits /= 2) {
        const uint64_t other = __shfl_xor_sync(kAllLanes, a, bits);
        if (other > a) a = other;
    }
    return a;
}

// Divides the lanes' weights (zeros from lane `active` on) by their p-norm.
__device__ __forceinline__ float divide_by_norm(float weight, float norm, bool is_chosen) {
    if (norm == 1.0f) return weight / sum_over_warp(weight);
    const float power = is_chosen ? powf(weight, norm) : 0.0f;
    return weight / powf(sum_over_warp(power), 1.0f / norm);
}

// Lane l holds experts l, l + 32, …, `PerLane` of them.
template <int PerLane>
__global__ void __launch_bounds__(kRouteThreads) route_kernel(RouteArgs args) {
    const int lane = threadIdx.x % 32;
    const int64_t row = static_cast<int64_t>(blockIdx.x) * (kRouteThreads / 32) + threadIdx.x / 32;
    if (row >= args.rows) return;
    const float* logits = args.logits + row * args.experts;
    float logit[PerLane];
    uint64_t rank[PerLane];
#pragma unroll
    for (int i = 0; i < PerLane; ++i) {
        const int expert = 32 * i + lane;
        logit[i] = expert < args.experts ? logits[expert] : -INFINITY;
        rank[i] = expert < args.experts ? rank_logit(logit[i], expert) : 0;
    }
    int chosen = 0;
    float chosen_logit = 0, largest_logit = 0;
    for (int place = 0; place < args.active; ++place) {
        uint64_t best = 0;
#pragma unroll
        for (int i = 0; i < PerLane; ++i) best = rank[i] > best ? rank[i] : best;
        best = largest_over_warp(best);
        const int expert = static_cast<int>(0xffffffffu - static_cast<uint32_t>(best));
#pragma unroll
        for (int i = 0; i < PerLane; ++i) rank[i] = 32 * i + lane == expert ? 0 : rank[i];
        const float its_logit = logits[expert];
        if (place == 0) largest_logit = its_logit;
        if (lane == place) chosen = expert, chosen_logit = its_logit;
    }
    const bool is_chosen = lane < args.active;
    float weight = is_chosen ? expf(chosen_logit - largest_logit) : 0.0f;
    float total = weight;
    if (args.scoring == Scoring::kSoftmax) {
        total = 0;
#pragma unroll
        for (int i = 0; i < PerLane; ++i) total += expf(logit[i] - largest_logit);
    }
    weight = weight / sum_over_warp(total);
    if (args.norm != 0) weight = divide_by_norm(weight, args.norm, is_chosen);
    if (is_chosen) {
        args.ids[row * args.active + lane] = chosen;
        args.weights[row * args.active + lane] = weight;
    }
}

}  // namespace moelens
