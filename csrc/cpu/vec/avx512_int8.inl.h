// Whole numbers in a ZMM register, which F32 carries as it carries floats: sixteen of 32 bits, or four of 8 bits in
// each.

// sums + a0 b0 + a1 b1 + a2 b2 + a3 b3, lane by lane; a's bytes are in [0, 255], b's in [-128, 127].
MOELENS_INLINE F32 dot_quads(F32 a, F32 b, F32 sums) {
    const __m512i x = _mm512_castps_si512(a.v), y = _mm512_castps_si512(b.v);
#ifdef MOELENS_VNNI
    return {_mm512_castsi512_ps(_mm512_dpbusd_epi32(_mm512_castps_si512(sums.v), x, y))};
#else
    const __m512i x02 = _mm512_and_si512(x, _mm512_set1_epi32(0x00ff00ff)), x13 = _mm512_srli_epi16(x, 8);
    const __m512i y02 = _mm512_srai_epi16(_mm512_slli_epi16(y, 8), 8), y13 = _mm512_srai_epi16(y, 8);
    const __m512i quads = _mm512_add_epi32(_mm512_madd_epi16(x02, y02), _mm512_madd_epi16(x13, y13));
    return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(sums.v), quads))};
#endif
}

// The 32-bit numbers less `offset`, as floats.
MOELENS_INLINE F32 to_floats(F32 whole, int32_t offset) {
    return {_mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_castps_si512(whole.v), _mm512_set1_epi32(offset)))};
}

// Floats that are whole numbers in [-128, 127].
MOELENS_INLINE void store_int8(int8_t* p, F32 a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a.v)));
}
