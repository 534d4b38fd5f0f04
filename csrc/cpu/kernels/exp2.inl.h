// 2^x, for the weights of a softmax.

// 2^x for x < 127, within 1 unit in the last place; zero where the result is below the normal numbers, which some
// processors take a hundred times as long for. A NaN stays one.
MOELENS_INLINE F32 exp2(F32 x) {
    x = where_less(x, splat(-126.0f), splat(kZeroPower), x);
    const F32 n = round_even(x);
    const F32 r = x - n;
    F32 p = splat(1.534581243e-4f);  // the least relative error on [-1/2, 1/2]
    p = fma(p, r, splat(1.3399930904e-3f));
    p = fma(p, r, splat(9.6184890717e-3f));
    p = fma(p, r, splat(5.5503286421e-2f));
    p = fma(p, r, splat(2.4022646248e-1f));
    p = fma(p, r, splat(6.9314718246e-1f));
    p = fma(p, r, splat(1.0f));
    return times_power_of_two(p, n);
}
