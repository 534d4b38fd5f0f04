// Functions of vectors: exp, sigmoid, sine and cosine, and the activations of feed-forward blocks.

// e^x, within about 1 unit in the last place; results below 2.5e-38 are zero. A NaN stays one.
MOELENS_INLINE F32 exp(F32 x) {
    const F32 lowest = splat(-86.6f), highest = splat(88.72283f);
    const F32 n = round_even(min(max(x, lowest), highest) * splat(1.44269504f));
    const F32 held = where_less(x, lowest, lowest, where_less(highest, x, highest, x));  // keeps a NaN
    F32 r = fma(n, splat(-0.693359375f), held);  // ln 2 in two parts; the first has few bits, so n times it is exact
    r = fma(n, splat(2.12194440e-4f), r);
    F32 p = splat(1.9875691500e-4f);
    p = fma(p, r, splat(1.3981999507e-3f));
    p = fma(p, r, splat(8.3334519073e-3f));
    p = fma(p, r, splat(4.1665795894e-2f));
    p = fma(p, r, splat(1.6666665459e-1f));
    p = fma(p, r, splat(5.0000001201e-1f));
    p = fma(p, r * r, r) + splat(1.0f);
    // 2^128 is no float: the largest results are reached by doubling.
    const F32 half = times_power_of_two(p, n - splat(1.0f));
    const F32 y = half + half;
    return where_less(x, lowest, zeros(), where_less(highest, x, splat(INFINITY), y));
}

MOELENS_INLINE F32 sigmoid(F32 x) {
    return splat(1.0f) / (splat(1.0f) + exp(zeros() - x));
}

// tanh form of GELU: 0.5 x (1 + tanh u) = x sigmoid(2 u)
MOELENS_INLINE F32 gelu_tanh(F32 x) {
    const F32 inner = x * fma(splat(0.044715f), x * x, splat(1.0f));
    return x / (splat(1.0f) + exp(inner * splat(-1.5957691216f)));  // -2 sqrt(2/π)
}

MOELENS_INLINE F32 gelu(F32 x) {
    float lanes[kLanes];
    store(lanes, x);
    for (int i = 0; i < kLanes; ++i) lanes[i] = 0.5f * lanes[i] * (1.0f + erff(lanes[i] * 0.70710678f));
    return load(lanes);
}

MOELENS_INLINE F32 silu(F32 x) {
    return x / (splat(1.0f) + exp(zeros() - x));
}

MOELENS_INLINE F32 activate(Activation activation, F32 x) {
    switch (activation) {
        case Activation::kSilu:
            return silu(x);
        case Activation::kGelu:
            return gelu(x);
        case Activation::kGeluTanh:
            return gelu_tanh(x);
    }
    return x;
}
