// Eight floats in a YMM register.
#include "vec/bf16.inl.h"

// Two steps of a tile in one go: where others run on the same core, it is the number of instructions that limits us.
#define MOELENS_UNROLL_STEPS 1

constexpr int kLanes = 8;
constexpr int kTileRows = 6;  // rows and vectors of a product's sub-tile: 12 accumulators of 16 registers
constexpr int kTileVectors = 2;
constexpr bool kFused = true;  // fma() rounds once

struct F32 {
    __m256 v;
};

MOELENS_INLINE F32 splat(float a) {
    return {_mm256_set1_ps(a)};
}
MOELENS_INLINE F32 zeros() {
    return {_mm256_setzero_ps()};
}
MOELENS_INLINE F32 operator+(F32 a, F32 b) {
    return {_mm256_add_ps(a.v, b.v)};
}
MOELENS_INLINE F32 operator-(F32 a, F32 b) {
    return {_mm256_sub_ps(a.v, b.v)};
}
MOELENS_INLINE F32 operator*(F32 a, F32 b) {
    return {_mm256_mul_ps(a.v, b.v)};
}
MOELENS_INLINE F32 operator/(F32 a, F32 b) {
    return {_mm256_div_ps(a.v, b.v)};
}
MOELENS_INLINE F32 fma(F32 a, F32 b, F32 c) {
    return {_mm256_fmadd_ps(a.v, b.v, c.v)};
}
// sum += a b, rounded once. Left to itself, the compiler writes the result over a factor and moves sums through memory.
MOELENS_INLINE void accumulate(F32 a, F32 b, F32& sum) {
    asm("vfmadd231ps %2, %1, %0" : "+x"(sum.v) : "x"(a.v), "x"(b.v));
}
MOELENS_INLINE F32 max(F32 a, F32 b) {
    return {_mm256_max_ps(a.v, b.v)};
}  // b where either is a NaN
MOELENS_INLINE F32 min(F32 a, F32 b) {
    return {_mm256_min_ps(a.v, b.v)};
}
MOELENS_INLINE F32 where_less(F32 a, F32 b, F32 yes, F32 no) {
    return {_mm256_blendv_ps(no.v, yes.v, _mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ))};
}
MOELENS_INLINE F32 sqrt(F32 a) {
    return {_mm256_sqrt_ps(a.v)};
}
MOELENS_INLINE F32 round_even(F32 a) {
    return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// a * 2^n for whole n in [-126, 127]; at kZeroPower the result is zero.
constexpr float kZeroPower = -127;
MOELENS_INLINE F32 times_power_of_two(F32 a, F32 n) {
    const __m256i bits = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127)), 23);
    return {_mm256_mul_ps(a.v, _mm256_castsi256_ps(bits))};
}

MOELENS_INLINE __m256i first_lanes(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

MOELENS_INLINE F32 load(const float* p) {
    return {_mm256_loadu_ps(p)};
}
MOELENS_INLINE F32 load(const Bf16* p) {
    const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(words, 16))};
}
MOELENS_INLINE F32 load_first(const float* p, int n) {
    return {_mm256_maskload_ps(p, first_lanes(n))};
}
MOELENS_INLINE F32 load_first(const Bf16* p, int n) {
    Bf16 padded[kLanes] = {};
    memcpy(padded, p, static_cast<size_t>(n) * sizeof(Bf16));
    return load(padded);
}
MOELENS_INLINE __m128i to_bf16(F32 a) {
    const __m256i bits = _mm256_castps_si256(a.v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
    const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}
MOELENS_INLINE void store(float* p, F32 a) {
    _mm256_storeu_ps(p, a.v);
}
MOELENS_INLINE void store(Bf16* p, F32 a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_bf16(a));
}
MOELENS_INLINE void store_first(float* p, F32 a, int n) {
    _mm256_maskstore_ps(p, first_lanes(n), a.v);
}
MOELENS_INLINE void store_first(Bf16* p, F32 a, int n) {
    Bf16 all[kLanes];
    store(all, a);
    memcpy(p, all, static_cast<size_t>(n) * sizeof(Bf16));
}

MOELENS_INLINE float sum(F32 a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
MOELENS_INLINE float largest(F32 a) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_movehdup_ps(s)));
}

// Lanes as pairs of bfloat16: the first (low half) and the second of each, widened; and two rows joined into pairs.
MOELENS_INLINE F32 first_of_pairs(F32 a) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a.v), 16))};
}
// The mask is read from memory: held in a register, it would leave one too few for the sums of a tile.
alignas(32) constexpr uint32_t kHighHalves[kLanes] = {0xffff0000u, 0xffff0000u, 0xffff0000u, 0xffff0000u,
                                                      0xffff0000u, 0xffff0000u, 0xffff0000u, 0xffff0000u};
MOELENS_INLINE F32 second_of_pairs(F32 a) {
    asm("vandps %1, %0, %0" : "+x"(a.v) : "m"(kHighHalves));
    return a;
}
// The same of pairs in memory, whose first ones are at hand: as the low halves of these are zeros, no mask is needed.
// Read anew, the pairs take no register.
MOELENS_INLINE F32 second_of_pairs(const float* pairs, F32 first) {
    asm("vpblendw $0xaa, %1, %0, %0" : "+x"(first.v) : "m"(*reinterpret_cast<const __m256*>(pairs)));
    return first;
}
MOELENS_INLINE F32 join_pairs(const Bf16* first, const Bf16* second) {
    const __m256i low = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(first)));
    return {_mm256_or_ps(_mm256_castsi256_ps(low), load(second).v)};
}

MOELENS_INLINE void transpose(F32 (&a)[kLanes]) {
    __m256 t[8], u[8];
    for (int i = 0; i < 4; ++i) {
        t[2 * i] = _mm256_unpacklo_ps(a[2 * i].v, a[2 * i + 1].v);
        t[2 * i + 1] = _mm256_unpackhi_ps(a[2 * i].v, a[2 * i + 1].v);
    }
    for (int h = 0; h < 2; ++h) {
        u[4 * h] = _mm256_shuffle_ps(t[4 * h], t[4 * h + 2], 0x44);
        u[4 * h + 1] = _mm256_shuffle_ps(t[4 * h], t[4 * h + 2], 0xee);
        u[4 * h + 2] = _mm256_shuffle_ps(t[4 * h + 1], t[4 * h + 3], 0x44);
        u[4 * h + 3] = _mm256_shuffle_ps(t[4 * h + 1], t[4 * h + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
        a[i].v = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
        a[i + 4].v = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
    }
}

#include "vec/avx2_int8.inl.h"
