// Whole numbers in a YMM register, which F32 carries as it carries floats: eight of 32 bits, or four of 8 bits in each.

// sums + a0 b0 + a1 b1 + a2 b2 + a3 b3, lane by lane; a's bytes are in [0, 255], b's in [-128, 127].
MOELENS_INLINE F32 dot_quads(F32 a, F32 b, F32 sums) {
    const __m256i x = _mm256_castps_si256(a.v), y = _mm256_castps_si256(b.v);
    const __m256i x02 = _mm256_and_si256(x, _mm256_set1_epi32(0x00ff00ff)), x13 = _mm256_srli_epi16(x, 8);
    const __m256i y02 = _mm256_srai_epi16(_mm256_slli_epi16(y, 8), 8), y13 = _mm256_srai_epi16(y, 8);
    const __m256i quads = _mm256_add_epi32(_mm256_madd_epi16(x02, y02), _mm256_madd_epi16(x13, y13));
    return {_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(sums.v), quads))};
}

// The 32-bit numbers less `offset`, as floats.
MOELENS_INLINE F32 to_floats(F32 whole, int32_t offset) {
    return {_mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_castps_si256(whole.v), _mm256_set1_epi32(offset)))};
}

// Floats that are whole numbers in [-128, 127].
MOELENS_INLINE void store_int8(int8_t* p, F32 a) {
    const __m256i words = _mm256_cvtps_epi32(a.v);
    const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(halves, halves));
}
