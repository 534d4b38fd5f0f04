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

MOELENS_INLINE F32 gelu(F32 x) {
    float lanes[kLanes];
    store(lanes, x);
    for (int i = 0; i < kLanes; ++i) lanes[i] = 0.5f * lanes[i] * (1.0f + erff(lanes[i] * 0.70710678f));
    return load(lanes);
}

// What an activation other than GELU divides x by.
MOELENS_INLINE F32 activation_divisor(Activation activation, F32 x) {
    if (activation == Activation::kSilu) return splat(1.0f) + exp(zeros() - x);
    // tanh form of GELU: 0.5 x (1 + tanh u) = x sigmoid(2 u)
    const F32 inner = x * fma(splat(0.044715f), x * x, splat(1.0f));
    return splat(1.0f) + exp(inner * splat(-1.5957691216f));  // -2 sqrt(2/π)
}

// Of x and its divisor.
MOELENS_INLINE F32 activate(Activation activation, F32 x, F32 divisor) {
    return activation == Activation::kGelu ? gelu(x) : x / divisor;
}

// Within some units of 1e-7 for |x| up to about a million: positions times the fastest frequency, 1.
MOELENS_INLINE void sincos(F32 x, F32& cosine, F32& sine) {
    if (!kFused) {  // the reduction below needs the exact product
        float angles[kLanes], cosines[kLanes], sines[kLanes];
        store(angles, x);
        for (int i = 0; i < kLanes; ++i) {
            cosines[i] = cosf(angles[i]);
            sines[i] = sinf(angles[i]);
        }
        cosine = load(cosines);
        sine = load(sines);
        return;
    }
    const F32 n = round_even(x * splat(0.63661977f));  // quarter turns
    F32 r = fma(n, splat(-1.57079637f), x);            // π/2 in three parts
    r = fma(n, splat(4.37113883e-8f), r);
    r = fma(n, splat(1.71512489e-15f), r);
    const F32 square = r * r;
    F32 s = fma(splat(-1.9515296e-4f), square, splat(8.3321609e-3f));
    s = fma(s, square, splat(-1.6666655e-1f));
    s = fma(s * square, r, r);
    F32 c = fma(splat(2.4433157e-5f), square, splat(-1.3887316e-3f));
    c = fma(c, square, splat(4.1666646e-2f));
    c = fma(c * square, square, fma(splat(-0.5f), square, splat(1.0f)));
    // n modulo 4 says which of s, c, -s, -c is the sine; the cosine is a quarter turn ahead.
    const F32 quarter = n - splat(4.0f) * round_even(fma(n, splat(0.25f), splat(-0.375f)));
    const auto pick = [&](F32 a, F32 b, F32 c, F32 d) {
        const F32 low = where_less(quarter, splat(0.5f), a, b), high = where_less(quarter, splat(2.5f), c, d);
        return where_less(quarter, splat(1.5f), low, high);
    };
    const F32 minus_s = zeros() - s, minus_c = zeros() - c;
    sine = pick(s, c, minus_s, minus_c);
    cosine = pick(c, minus_s, minus_c, s);
}
