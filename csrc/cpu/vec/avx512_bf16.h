// AVX-512 with the bfloat16 instructions, which come with VNNI: rounding in one instruction, dot products of pairs and
// of quads.
#define MOELENS_VNNI 1
#include "vec/avx512_float.inl.h"

#define MOELENS_DOT_PAIRS 1

MOELENS_INLINE __m256i to_bf16(F32 a) {
    return (__m256i)_mm512_cvtneps_pbh(a.v);
}

// acc + a.first * b.first + a.second * b.second, lane by lane.
MOELENS_INLINE F32 dot_pairs(F32 a, F32 b, F32 acc) {
    return {_mm512_dpbf16_ps(acc.v, (__m512bh)_mm512_castps_si512(a.v), (__m512bh)_mm512_castps_si512(b.v))};
}
