// write_kv and read_kv: keys and values between rows and the blocks of a cache, which lie as csrc/cpu reads them.
//
// A block of one head is tiles of 32 tokens. Keys are [D/2][32 tokens][2], values [D/32][16 pairs of tokens][32][2]: a
// block that a device has written can be copied to the host's cache as it is, and the other way round.
#pragma once

#include "element.cuh"

namespace moelens {

constexpr int kTileTokens = 32, kValueColumns = 32;
constexpr int kKvThreads = 128;

struct KvRows {
    Bf16* k;
    Bf16* v;
    Bf16* keys;
    Bf16* values;
    const int32_t* slots;
    int tokens, kv_heads, head_dim, block_tokens;
};

// Where a token's head lies: the number of its tile, and its place in it.
struct TilePlace {
    int64_t tile;
    int token;

    __device__ TilePlace(const KvRows& rows, int slot, int head) {
        const int block = slot / rows.block_tokens, within = slot % rows.block_tokens;
        tile = (static_cast<int64_t>(block) * rows.kv_heads + head) * (rows.block_tokens / kTileTokens) +
               within / kTileTokens;
        token = within % kTileTokens;
    }
    __device__ int64_t key(int head_dim, int d) const {
        return ((tile * (head_dim / 2) + d / 2) * kTileTokens + token) * 2 + d % 2;
    }
    __device__ int64_t value(int head_dim, int d) const {
        const int64_t chunk = tile * divide_rounding_up(head_dim, kValueColumns) + d / kValueColumns;
        return ((chunk * (kTileTokens / 2) + token / 2) * kValueColumns + d % kValueColumns) * 2 + token % 2;
    }
};

// A block takes 32 tokens of one head; lanes are tokens for the keys and elements for the values, as memory has them.
template <class MoveKey, class MoveValue>
__device__ __forceinline__ void for_kv(const KvRows& rows, const MoveKey& move_key, const MoveValue& move_value) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, head = blockIdx.y;
    const int first = static_cast<int>(blockIdx.x) * kTileTokens, end = min(rows.tokens, first + kTileTokens);
    if (first + lane < end) {
        const TilePlace place(rows, rows.slots[first + lane], head);
        const int64_t row = (static_cast<int64_t>(first + lane) * rows.kv_heads + head) * rows.head_dim;
        for (int d = 2 * warp; d < rows.head_dim; d += 2 * (kKvThreads / 32)) {
            move_key(row + d, place.key(rows.head_dim, d));
        }
    }
    for (int token = first + warp; token < end; token += kKvThreads / 32) {
        const TilePlace place(rows, rows.slots[token], head);
        const int64_t row = (static_cast<int64_t>(token) * rows.kv_heads + head) * rows.head_dim;
        for (int d = lane; d < rows.head_dim; d += 32) move_value(row + d, place.value(rows.head_dim, d));
    }
}

__device__ __forceinline__ void copy_pair(Bf16* to, const Bf16* from) {
    *as_vector<uint32_t>(to) = *as_vector<const uint32_t>(from);
}

__global__ void __launch_bounds__(kKvThreads) write_kv_kernel(KvRows rows) {
    for_kv(
        rows, [&](int64_t row, int64_t cached) { copy_pair(rows.keys + cached, rows.k + row); },
        [&](int64_t row, int64_t cached) { rows.values[cached] = rows.v[row]; });
}

__global__ void __launch_bounds__(kKvThreads) read_kv_kernel(KvRows rows) {
    for_kv(
        rows, [&](int64_t row, int64_t cached) { copy_pair(rows.k + row, rows.keys + cached); },
        [&](int64_t row, int64_t cached) { rows.v[row] = rows.values[cached]; });
}

}  // namespace moelens
