// Sorts the pairs (token, place) by their expert, in their own order within each: a counting sort by one block.
//
// Each warp takes a run of pairs. It counts its pairs per expert, the counts become places, and it goes over its pairs
// again. Lanes with the same expert find each other, so nothing depends on which thread comes first.
#pragma once

#include "element.cuh"
#include "launch.h"

namespace moelens {

constexpr int kSortThreads = 1024;
constexpr int kSortWarps = kSortThreads / 32;
constexpr int kLeastShare = 64;  // pairs of a warp: whole turns, also where there are few

struct SortArgs {
    const int32_t* ids;  // [pairs]
    int pairs, experts;
    int tile_rows;         // of the product's tiles
    int32_t* order;        // [pairs] the pair at each sorted row
    int32_t* offsets;      // [experts + 1] the first sorted row of each expert
    int32_t* tile_starts;  // [experts + 1] the tiles of all experts before
};

// The sum of `value` over the threads before this one.
__device__ __forceinline__ int sum_of_threads_before(int value, int* warp_sums) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int through = value;  // the sum over the lanes up to this one
#pragma unroll
    for (int delta = 1; delta < 32; delta *= 2) {
        const int other = __shfl_up_sync(kAllLanes, through, delta);
        if (lane >= delta) through += other;
    }
    if (lane == 31) warp_sums[warp] = through;
    __syncthreads();
    int before = through - value;
    for (int i = 0; i < warp; ++i) before += warp_sums[i];
    __syncthreads();  // warp_sums may be used again
    return before;
}

// Calls f(pair, expert, lanes with the same expert) for 32 pairs at a time; past the end, the expert is -1.
template <class F>
__device__ __forceinline__ void for_warps_pairs(const SortArgs& args, const F& f) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const int share = max(kLeastShare, static_cast<int>(divide_rounding_up(args.pairs, kSortWarps)));
    const int end = min(args.pairs, (warp + 1) * share);
    for (int first = warp * share; first < end; first += 32) {
        const int pair = first + lane;
        const int expert = pair < end ? args.ids[pair] : -1;
        f(pair, expert, __match_any_sync(kAllLanes, expert));
        __syncwarp();  // what this turn wrote to the warp's counts is there for the next
    }
}

__global__ void __launch_bounds__(kSortThreads) sort_by_expert_kernel(SortArgs args) {
    MOELENS_DYNAMIC_SHARED(int, counts);  // [warps][experts]
    MOELENS_SHARED(int, warp_sums, kSortWarps);
    const int thread = threadIdx.x, lane = thread % 32, experts = args.experts;
    int* const mine = counts + thread / 32 * experts;
    for (int i = thread; i < kSortWarps * experts; i += kSortThreads) counts[i] = 0;
    __syncthreads();
    for_warps_pairs(args, [&](int, int expert, unsigned equal) {
        if (expert >= 0 && lane == __ffs(equal) - 1) mine[expert] += __popc(equal);
    });
    __syncthreads();
    int rows = 0;
    if (thread < experts) {
        for (int warp = 0; warp < kSortWarps; ++warp) {
            const int count = counts[warp * experts + thread];
            counts[warp * experts + thread] = rows;  // of this expert, in the warps before
            rows += count;
        }
    }
    const int tiles = (rows + args.tile_rows - 1) / args.tile_rows;
    const int first_row = sum_of_threads_before(rows, warp_sums);
    const int first_tile = sum_of_threads_before(tiles, warp_sums);
    if (thread < experts) {
        for (int warp = 0; warp < kSortWarps; ++warp) counts[warp * experts + thread] += first_row;
        args.offsets[thread] = first_row;
        args.tile_starts[thread] = first_tile;
        if (thread == experts - 1) {
            args.offsets[experts] = first_row + rows;
            args.tile_starts[experts] = first_tile + tiles;
        }
    }
    __syncthreads();
    for_warps_pairs(args, [&](int pair, int expert, unsigned equal) {
        const int row = expert >= 0 ? mine[expert] + __popc(equal & ((1u << lane) - 1)) : 0;
        __syncwarp();  // all have read
        if (expert >= 0) {
            args.order[row] = pair;
            if (lane == __ffs(equal) - 1) mine[expert] += __popc(equal);
        }
    });
}

}  // namespace moelens
