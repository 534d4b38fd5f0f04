// The bfloat16 element and its scalar conversions, the same for every ISA.

struct Bf16 {
    uint16_t bits;
};

MOELENS_INLINE float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

MOELENS_INLINE uint32_t to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

MOELENS_INLINE float widen(float value) {
    return value;
}
MOELENS_INLINE float widen(Bf16 value) {
    return from_bits(static_cast<uint32_t>(value.bits) << 16);
}

// To nearest, ties to even; a NaN stays one.
MOELENS_INLINE void narrow(float value, Bf16* out) {
    const uint32_t bits = to_bits(value);
    const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    out->bits = static_cast<uint16_t>(value != value ? (bits >> 16) | 0x40 : rounded);
}
MOELENS_INLINE void narrow(float value, float* out) {
    *out = value;
}
