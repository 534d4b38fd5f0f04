// Sixteen floats in a ZMM register: all but the rounding to bfloat16, which differs between the two AVX-512 variants.
#include "vec/bf16.inl.h"

#define MOELENS_TALL_TILES 1

constexpr int kLanes = 16;
constexpr int kTileRows = 12;  // rows and vectors of a product's tile: 24 accumulators of 32 registers
constexpr int kTileVectors = 2;
constexpr bool kFused = true;  // fma() rounds once

struct F32 {
    __m512 v;
};

MOELENS_INLINE F32 splat(float a) {
    return {_mm512_set1_ps(a)};
}
MOELENS_INLINE F32 zeros() {
    return {_mm512_setzero_ps()};
}
MOELENS_INLINE F32 operator+(F32 a, F32 b) {
    return {_mm512_add_ps(a.v, b.v)};
}
MOELENS_INLINE F32 operator-(F32 a, F32 b) {
    return {_mm512_sub_ps(a.v, b.v)};
}
MOELENS_INLINE F32 operator*(F32 a, F32 b) {
    return {_mm512_mul_ps(a.v, b.v)};
}
MOELENS_INLINE F32 operator/(F32 a, F32 b) {
    return {_mm512_div_ps(a.v, b.v)};
}
MOELENS_INLINE F32 fma(F32 a, F32 b, F32 c) {
    return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
MOELENS_INLINE void accumulate(F32 a, F32 b, F32& sum) {
    sum = fma(a, b, sum);
}
MOELENS_INLINE F32 max(F32 a, F32 b) {
    return {_mm512_max_ps(a.v, b.v)};
}  // b where either is a NaN
MOELENS_INLINE F32 min(F32 a, F32 b) {
    return {_mm512_min_ps(a.v, b.v)};
}
MOELENS_INLINE F32 where_less(F32 a, F32 b, F32 yes, F32 no) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), no.v, yes.v)};
}
MOELENS_INLINE F32 sqrt(F32 a) {
    return {_mm512_sqrt_ps(a.v)};
}
MOELENS_INLINE F32 round_even(F32 a) {
    return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// a * 2^n for whole n in [-126, 127]; at kZeroPower the result is zero, and so far below the least number that no
// processor looks twice (as Intel's do at -160, for 100 ns).
constexpr float kZeroPower = -1000;
MOELENS_INLINE F32 times_power_of_two(F32 a, F32 n) {
    return {_mm512_scalef_ps(a.v, n.v)};
}

MOELENS_INLINE __mmask16 first_lanes(int n) {
    return static_cast<__mmask16>((1u << n) - 1);
}

MOELENS_INLINE F32 widen_words(__m256i halves) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))};
}
MOELENS_INLINE F32 load(const float* p) {
    return {_mm512_loadu_ps(p)};
}
MOELENS_INLINE F32 load(const Bf16* p) {
    return widen_words(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
MOELENS_INLINE F32 load_first(const float* p, int n) {
    return {_mm512_maskz_loadu_ps(first_lanes(n), p)};
}
MOELENS_INLINE F32 load_first(const Bf16* p, int n) {
    return widen_words(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}

MOELENS_INLINE __m256i to_bf16(F32 a);

MOELENS_INLINE void store(float* p, F32 a) {
    _mm512_storeu_ps(p, a.v);
}
MOELENS_INLINE void store(Bf16* p, F32 a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bf16(a));
}
MOELENS_INLINE void store_first(float* p, F32 a, int n) {
    _mm512_mask_storeu_ps(p, first_lanes(n), a.v);
}
MOELENS_INLINE void store_first(Bf16* p, F32 a, int n) {
    _mm256_mask_storeu_epi16(p, first_lanes(n), to_bf16(a));
}

MOELENS_INLINE float sum(F32 a) {
    const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
MOELENS_INLINE float largest(F32 a) {
    return _mm512_reduce_max_ps(a.v);
}

// Lanes as pairs of bfloat16: the first (low half) and the second of each, widened; and two rows joined into pairs.
MOELENS_INLINE F32 first_of_pairs(F32 a) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a.v), 16))};
}
MOELENS_INLINE F32 second_of_pairs(F32 a) {
    const __m512i mask = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a.v), mask))};
}
MOELENS_INLINE F32 second_of_pairs(const float* pairs, F32) {
    return second_of_pairs(load(pairs));
}
MOELENS_INLINE F32 join_pairs(const Bf16* first, const Bf16* second) {
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(first)));
    return {_mm512_castsi512_ps(_mm512_or_si512(low, _mm512_castps_si512(load(second).v)))};
}

MOELENS_INLINE void transpose(F32 (&a)[kLanes]) {
    __m512 t[16], u[16];
    for (int i = 0; i < 8; ++i) {
        t[2 * i] = _mm512_unpacklo_ps(a[2 * i].v, a[2 * i + 1].v);
        t[2 * i + 1] = _mm512_unpackhi_ps(a[2 * i].v, a[2 * i + 1].v);
    }
    for (int q = 0; q < 4; ++q) {  // u[4q + j], 128-bit lane l: column 4l + j of rows 4q … 4q + 3
        u[4 * q] = _mm512_shuffle_ps(t[4 * q], t[4 * q + 2], 0x44);
        u[4 * q + 1] = _mm512_shuffle_ps(t[4 * q], t[4 * q + 2], 0xee);
        u[4 * q + 2] = _mm512_shuffle_ps(t[4 * q + 1], t[4 * q + 3], 0x44);
        u[4 * q + 3] = _mm512_shuffle_ps(t[4 * q + 1], t[4 * q + 3], 0xee);
    }
    for (int j = 0; j < 4; ++j) {
        const __m512 low01 = _mm512_shuffle_f32x4(u[j], u[4 + j], 0x44),
                     low23 = _mm512_shuffle_f32x4(u[j], u[4 + j], 0xee);
        const __m512 high01 = _mm512_shuffle_f32x4(u[8 + j], u[12 + j], 0x44);
        const __m512 high23 = _mm512_shuffle_f32x4(u[8 + j], u[12 + j], 0xee);
        a[j].v = _mm512_shuffle_f32x4(low01, high01, 0x88);
        a[4 + j].v = _mm512_shuffle_f32x4(low01, high01, 0xdd);
        a[8 + j].v = _mm512_shuffle_f32x4(low23, high23, 0x88);
        a[12 + j].v = _mm512_shuffle_f32x4(low23, high23, 0xdd);
    }
}

#include "vec/avx512_int8.inl.h"
