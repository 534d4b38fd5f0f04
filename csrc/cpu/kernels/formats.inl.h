// What products multiply: two panels that are read from front to back, `step` by step. A step is one k (float32) or a
// pair of ks (bfloat16). In a panel of B a step is 32 columns of one word (a float, or a pair of bfloat16): 128 bytes.
// In a panel of A, a step holds for each of its rows the same ks in the form that the multiplication wants:
//
//   Singles      float32 by float32       one float
//   WidePairs    bfloat16 pairs, widened  a float for the first k of every row, then one for the second k of every row
//   DotPairs     bfloat16 pairs           one pair, as it is
//   TilePairs    bfloat16 pairs           one pair, as it is; 16 steps of a row lie together (see tile_registers.inl.h)

constexpr int kPanelColumns = 32;
#ifdef MOELENS_TILES
constexpr int kMaxRows = kMostTileRows;
constexpr bool kEvenTiles = false;  // rows are cut into whole tiles and the rest, not into tiles as even as can be
#else
constexpr int kMaxRows = 12;
constexpr bool kEvenTiles = true;
#endif
constexpr int64_t kStepBytes = kPanelColumns * 4;

// sums[r][v] = add(row(r), column(v), what was there). Whichever are fewer, rows or vectors of columns, stay in
// registers.
template <int R, int V, class Row, class Column, class Add>
MOELENS_INLINE void add_products(F32 (&sums)[R][V], const Row& row, const Column& column, const Add& add) {
    F32 held[R < V ? R : V];
    if constexpr (R < V) {
        for (int r = 0; r < R; ++r) held[r] = row(r);
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) {
            const F32 other = column(v);
#pragma GCC unroll 16
            for (int r = 0; r < R; ++r) add(held[r], other, sums[r][v]);
        }
    } else {
        for (int v = 0; v < V; ++v) held[v] = column(v);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const F32 other = row(r);
#pragma GCC unroll 16
            for (int v = 0; v < V; ++v) add(other, held[v], sums[r][v]);
        }
    }
}

// A step of a format in which the words of both sides are multiplied as they are.
template <int R, int V, class Add>
MOELENS_INLINE void add_words(F32 (&sums)[R][V], const float* a, int next_row, const float* b, const Add& add) {
    const auto column = [&](int v) { return load(b + v * kLanes); };
    add_products(sums, [&](int r) { return splat(a[r * next_row]); }, column, add);
}

// In each format, `next_row` is the distance from a row of A to the next, in floats: 1 in a panel, more where each row
// is stored in one piece; `second` is the distance from the first k of a pair to the second, where they are apart.

struct Singles {
    using Element = float;
    static constexpr int kDepth = 1;          // ks in a step
    static constexpr int kUnitsPerStep = 1;   // words of A per row and step
    static constexpr int kUnitsTogether = 1;  // of a row in A's panel

    template <int R, int V>
    static MOELENS_INLINE void step(F32 (&sums)[R][V], const float* a, int next_row, int64_t, const float* b) {
        add_words(sums, a, next_row, b, accumulate);
    }
};

struct WidePairs {
    using Element = Bf16;
    static constexpr int kDepth = 2;
    static constexpr int kUnitsPerStep = 2;
    static constexpr int kUnitsTogether = 1;

    template <int R, int V>
    static MOELENS_INLINE void step(F32 (&sums)[R][V], const float* a, int next_row, int64_t second, const float* b) {
        const auto first_row = [&](int r) { return splat(a[r * next_row]); };
        const auto second_row = [&](int r) { return splat(a[r * next_row + second]); };
        const auto first_column = [&](int v) { return first_of_pairs(load(b + v * kLanes)); };
        if constexpr (R < V) {
            const auto second_column = [&](int v) { return second_of_pairs(load(b + v * kLanes)); };
            add_products(sums, first_row, first_column, accumulate);
            add_products(sums, second_row, second_column, accumulate);
        } else {
            F32 first[V];
            for (int v = 0; v < V; ++v) first[v] = first_column(v);
            const auto second_column = [&](int v) { return second_of_pairs(b + v * kLanes, first[v]); };
            add_products(sums, first_row, [&](int v) { return first[v]; }, accumulate);
            add_products(sums, second_row, second_column, accumulate);
        }
    }
};

#ifdef MOELENS_DOT_PAIRS
struct DotPairs {
    using Element = Bf16;
    static constexpr int kDepth = 2;
    static constexpr int kUnitsPerStep = 1;
    static constexpr int kUnitsTogether = 1;

    template <int R, int V>
    static MOELENS_INLINE void step(F32 (&sums)[R][V], const float* a, int next_row, int64_t, const float* b) {
        add_words(sums, a, next_row, b, [](F32 row, F32 column, F32& sum) { sum = dot_pairs(row, column, sum); });
    }
};
#endif

#if defined(MOELENS_TILES)
struct TilePairs {
    using Element = Bf16;
    static constexpr int kDepth = 2;
    static constexpr int kUnitsPerStep = 1;
    static constexpr int kUnitsTogether = 16;  // a row of a tile register

    template <int S, class T, class Ahead, class Beside>
    static MOELENS_INLINE void multiply(const T& t, Ahead ahead, const Beside& beside);
};
using Pairs = TilePairs;
#elif defined(MOELENS_DOT_PAIRS)
using Pairs = DotPairs;
#else
using Pairs = WidePairs;
#endif

// Whether products of a format are those of tile registers.
template <class F>
constexpr bool kUsesTiles = F::kUnitsTogether > 1;

template <class Element>
struct FormatOf;
template <>
struct FormatOf<float> {
    using type = Singles;
};
template <>
struct FormatOf<Bf16> {
    using type = Pairs;
};
template <class Element>
using Format = typename FormatOf<Element>::type;
