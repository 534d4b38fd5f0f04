// Whole numbers in four lanes, which F32 carries as it carries floats: one of 32 bits, or four of 8 bits in each.

// sums + a0 b0 + a1 b1 + a2 b2 + a3 b3, lane by lane; a's bytes are in [0, 255], b's in [-128, 127].
MOELENS_INLINE F32 dot_quads(F32 a, F32 b, F32 sums) {
    const Words x = reinterpret_cast<Words>(a.v), y = reinterpret_cast<Words>(b.v);
    Ints total = reinterpret_cast<Ints>(sums.v);
    for (int byte = 0; byte < 4; ++byte) {
        const Ints left = reinterpret_cast<Ints>((x >> (8 * byte)) & 0xff);
        total += left * (reinterpret_cast<Ints>(y << (24 - 8 * byte)) >> 24);
    }
    return {reinterpret_cast<Floats>(total)};
}

// The 32-bit numbers less `offset`, as floats.
MOELENS_INLINE F32 to_floats(F32 whole, int32_t offset) {
    return {__builtin_convertvector(reinterpret_cast<Ints>(whole.v) - offset, Floats)};
}

// Floats that are whole numbers in [-128, 127].
MOELENS_INLINE void store_int8(int8_t* p, F32 a) {
    for (int i = 0; i < kLanes; ++i) p[i] = static_cast<int8_t>(a.v[i]);
}
