// The emulation's collectives of a warp, and the host's halves of what device.h writes in PTX.
#pragma once

#include "emulation.h"

namespace moelens::emulation {

constexpr int kWarpLanes = 32;

template <class T>
struct Exchange {
    T given;
    int source;
    T taken;
};

template <class T>
T exchange(const char* name, unsigned mask, T given, int source, int line) {
    Exchange<T> mine{given, source, given};
    meet_in_warp(name, mask, &mine, line, [](void** arguments) {
        auto lanes = reinterpret_cast<Exchange<T>**>(arguments);
        for (int i = 0; i < kWarpLanes; ++i) {
            if (lanes[i] == nullptr) continue;
            if (lanes[lanes[i]->source] == nullptr) fail("a shuffle reads a lane outside its mask");
            lanes[i]->taken = lanes[lanes[i]->source]->given;
        }
    });
    return mine.taken;
}

// The lanes of `mask` whose values are equal to this lane's.
template <class T>
unsigned equal_lanes(const char* name, unsigned mask, T value, int line) {
    struct Vote {
        T value;
        unsigned equal;
    } mine{value, 0};
    meet_in_warp(name, mask, &mine, line, [](void** arguments) {
        auto lanes = reinterpret_cast<Vote**>(arguments);
        for (int i = 0; i < kWarpLanes; ++i) {
            for (int j = 0; j < kWarpLanes; ++j) {
                if (lanes[i] && lanes[j] && lanes[i]->value == lanes[j]->value) lanes[i]->equal |= 1u << j;
            }
        }
    });
    return mine.equal;
}

}  // namespace moelens::emulation

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int line = __builtin_LINE()) {
    return moelens::emulation::exchange("__shfl_xor_sync", mask, value,
                                        static_cast<int>(moelens::emulation::current->lane) ^ bits, line);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, int delta, int line = __builtin_LINE()) {
    const int lane = static_cast<int>(moelens::emulation::current->lane);
    return moelens::emulation::exchange("__shfl_up_sync", mask, value, lane < delta ? lane : lane - delta, line);
}
inline unsigned __match_any_sync(unsigned mask, int value, int line = __builtin_LINE()) {
    return moelens::emulation::equal_lanes("__match_any_sync", mask, value, line);
}
inline unsigned __ballot_sync(unsigned mask, bool vote, int line = __builtin_LINE()) {
    const unsigned equal = moelens::emulation::equal_lanes("__ballot_sync", mask, vote, line);
    return vote ? equal : mask & ~equal;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, int line = __builtin_LINE()) {
    moelens::emulation::meet_in_warp("__syncwarp", mask, nullptr, line, [](void**) {}, true);
}
inline int __popc(unsigned bits) {
    return __builtin_popcount(bits);
}
inline int __ffs(unsigned bits) {
    return __builtin_ffs(static_cast<int>(bits));
}
inline uint32_t __float_as_uint(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}
inline float __uint_as_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

namespace moelens {

inline uint16_t narrow_bits(float a) {
    const uint32_t bits = __float_as_uint(a);
    if (a != a) return 0x7fff;
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline void multiply_fragments(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                               int line = __builtin_LINE()) {
    struct Fragments {
        float* d;
        const uint32_t* a;
        uint32_t b[2];
    } mine{d, a, {b0, b1}};
    emulation::meet_in_warp("mma.m16n8k16", 0xffffffffu, &mine, line, [](void** arguments) {
        auto lanes = reinterpret_cast<Fragments**>(arguments);
        float rows[16][16], columns[16][8];  // a, and b as [k][n]
        for (int lane = 0; lane < 32; ++lane) {
            const int group = lane / 4, k = lane % 4 * 2;
            for (int q = 0; q < 4; ++q) {
                const uint32_t pair = lanes[lane]->a[q];
                float* at = &rows[group + q % 2 * 8][k + q / 2 * 8];
                at[0] = __uint_as_float(pair << 16);
                at[1] = __uint_as_float(pair & 0xffff0000u);
            }
            for (int q = 0; q < 2; ++q) {
                columns[k + q * 8][group] = __uint_as_float(lanes[lane]->b[q] << 16);
                columns[k + q * 8 + 1][group] = __uint_as_float(lanes[lane]->b[q] & 0xffff0000u);
            }
        }
        float sums[16][8] = {};
        for (int row = 0; row < 16; ++row) {
            for (int k = 0; k < 16; ++k) {
                for (int n = 0; n < 8; ++n) sums[row][n] += rows[row][k] * columns[k][n];
            }
        }
        for (int lane = 0; lane < 32; ++lane) {
            for (int q = 0; q < 4; ++q) lanes[lane]->d[q] += sums[lane / 4 + q / 2 * 8][lane % 4 * 2 + q % 2];
        }
    });
}

inline void load_fragments(uint32_t (&r)[4], const void* shared, int line = __builtin_LINE()) {
    struct Rows {
        uint32_t* r;
        uint32_t row[4];
    } mine{r, {}};
    if (reinterpret_cast<uintptr_t>(shared) % 16 != 0) emulation::fail("ldmatrix: an address is not 16-byte aligned");
    std::memcpy(mine.row, shared, 16);  // each lane reads its row itself, so that a sanitizer knows who does
    emulation::meet_in_warp("ldmatrix.x4", 0xffffffffu, &mine, line, [](void** arguments) {
        auto lanes = reinterpret_cast<Rows**>(arguments);
        for (int matrix = 0; matrix < 4; ++matrix) {
            for (int lane = 0; lane < 32; ++lane) {
                lanes[lane]->r[matrix] = lanes[matrix * 8 + lane / 4]->row[lane % 4];
            }
        }
    });
}

template <class Vector, class T>
Vector* as_vector(T* p) {
    if (reinterpret_cast<uintptr_t>(p) % sizeof(Vector) != 0) emulation::fail("a vector is not aligned to its size");
    return reinterpret_cast<Vector*>(p);
}

inline void copy_async(void* shared, const void* global, bool valid) {
    if ((reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(valid ? global : nullptr)) % 16 != 0) {
        emulation::fail("cp.async: an address is not 16-byte aligned");
    }
    std::memset(shared, 0xff, 16);  // NaN for whoever reads before the wait
    emulation::current->copies.push_back({shared, valid ? global : nullptr, emulation::current->group});
}

inline void commit_copies() {
    ++emulation::current->group;
}

template <int Pending>
void wait_for_copies() {
    auto& thread = *emulation::current;
    std::vector<emulation::Copy> kept;
    for (const emulation::Copy& copy : thread.copies) {
        if (copy.group >= thread.group - Pending) {
            kept.push_back(copy);
        } else if (copy.global != nullptr) {
            std::memcpy(copy.shared, copy.global, 16);
        } else {
            std::memset(copy.shared, 0, 16);
        }
    }
    thread.copies.swap(kept);
}

}  // namespace moelens
