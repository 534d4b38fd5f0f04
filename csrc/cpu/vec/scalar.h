// Four floats in a vector of the compiler's own, for any processor.
#include "vec/bf16.inl.h"

constexpr int kLanes = 4;
constexpr int kTileRows = 6;  // rows and vectors of a product's sub-tile: what the registers hold
constexpr int kTileVectors = 2;
constexpr bool kFused = false;  // fma() rounds twice

typedef float Floats __attribute__((vector_size(16)));
typedef uint32_t Words __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(16)));

struct F32 {
    Floats v;
};

MOELENS_INLINE F32 splat(float a) {
    return {Floats{a, a, a, a}};
}
MOELENS_INLINE F32 zeros() {
    return splat(0);
}
MOELENS_INLINE F32 operator+(F32 a, F32 b) {
    return {a.v + b.v};
}
MOELENS_INLINE F32 operator-(F32 a, F32 b) {
    return {a.v - b.v};
}
MOELENS_INLINE F32 operator*(F32 a, F32 b) {
    return {a.v * b.v};
}
MOELENS_INLINE F32 operator/(F32 a, F32 b) {
    return {a.v / b.v};
}
MOELENS_INLINE F32 fma(F32 a, F32 b, F32 c) {
    return {a.v * b.v + c.v};
}
MOELENS_INLINE void accumulate(F32 a, F32 b, F32& sum) {
    sum = fma(a, b, sum);
}
MOELENS_INLINE F32 max(F32 a, F32 b) {
    return {a.v > b.v ? a.v : b.v};
}  // b where either is a NaN
MOELENS_INLINE F32 min(F32 a, F32 b) {
    return {a.v < b.v ? a.v : b.v};
}
MOELENS_INLINE F32 where_less(F32 a, F32 b, F32 yes, F32 no) {
    return {a.v < b.v ? yes.v : no.v};
}
MOELENS_INLINE F32 sqrt(F32 a) {
    for (int i = 0; i < kLanes; ++i) a.v[i] = sqrtf(a.v[i]);
    return a;
}
MOELENS_INLINE F32 round_even(F32 a) {
    for (int i = 0; i < kLanes; ++i) a.v[i] = nearbyintf(a.v[i]);
    return a;
}
// a * 2^n for whole n in [-126, 127]; at kZeroPower the result is zero.
constexpr float kZeroPower = -127;
MOELENS_INLINE F32 times_power_of_two(F32 a, F32 n) {
    const Ints bits = (__builtin_convertvector(n.v, Ints) + 127) << 23;
    return {a.v * reinterpret_cast<Floats>(bits)};
}

MOELENS_INLINE F32 load(const float* p) {
    F32 a;
    memcpy(&a, p, sizeof a);
    return a;
}
MOELENS_INLINE F32 load(const Bf16* p) {
    F32 a;
    for (int i = 0; i < kLanes; ++i) a.v[i] = widen(p[i]);
    return a;
}
MOELENS_INLINE void store(float* p, F32 a) {
    memcpy(p, &a, sizeof a);
}
MOELENS_INLINE void store(Bf16* p, F32 a) {
    for (int i = 0; i < kLanes; ++i) narrow(a.v[i], p + i);
}
template <class T>
MOELENS_INLINE F32 load_first(const T* p, int n) {
    F32 a = zeros();
    for (int i = 0; i < n; ++i) a.v[i] = widen(p[i]);
    return a;
}
template <class T>
MOELENS_INLINE void store_first(T* p, F32 a, int n) {
    for (int i = 0; i < n; ++i) narrow(a.v[i], p + i);
}

MOELENS_INLINE float sum(F32 a) {
    return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]);
}
MOELENS_INLINE float largest(F32 a) {
    float m = a.v[0];
    for (int i = 1; i < kLanes; ++i) m = a.v[i] > m ? a.v[i] : m;
    return m;
}

// Lanes as pairs of bfloat16: the first (low half) and the second of each, widened; and two rows joined into pairs.
MOELENS_INLINE F32 first_of_pairs(F32 a) {
    return {reinterpret_cast<Floats>(reinterpret_cast<Words>(a.v) << 16)};
}
MOELENS_INLINE F32 second_of_pairs(F32 a) {
    return {reinterpret_cast<Floats>(reinterpret_cast<Words>(a.v) & 0xffff0000u)};
}
MOELENS_INLINE F32 second_of_pairs(const float* pairs, F32) {
    return second_of_pairs(load(pairs));
}
MOELENS_INLINE F32 join_pairs(const Bf16* first, const Bf16* second) {
    Words w;
    for (int i = 0; i < kLanes; ++i) w[i] = first[i].bits | static_cast<uint32_t>(second[i].bits) << 16;
    return {reinterpret_cast<Floats>(w)};
}

MOELENS_INLINE void transpose(F32 (&a)[kLanes]) {
    for (int i = 0; i < kLanes; ++i) {
        for (int j = 0; j < i; ++j) {
            const float t = a[i].v[j];
            a[i].v[j] = a[j].v[i];
            a[j].v[i] = t;
        }
    }
}

#include "vec/scalar_int8.inl.h"
