// The product of a few rows and 32 columns, whose sums stay in registers: the inner loop of every matrix product.
//
// Both operands are panels that are read from front to back, `step` by step. A step is one k (float32) or a pair of ks
// (bfloat16). In a panel of B a step is 32 columns of one word (a float, or a pair of bfloat16): 128 bytes. In a panel
// of A, a step holds for each of its rows the same ks in the form that the multiplication wants:
//
//   Singles      float32 by float32       one float
//   WidePairs    bfloat16 pairs, widened  a float for the first k of every row, then one for the second k of every row
//   DotPairs     bfloat16 pairs           one pair, as it is
//
// Each sum takes its products in ascending order of k, one rounding after another, whatever the number of rows: that is
// what makes a row's result independent of the rows beside it. Sums can be continued, so a split of k changes nothing.

constexpr int kPanelColumns = 32;
constexpr int kMaxRows = 12;
constexpr int64_t kStepBytes = kPanelColumns * 4;

struct Singles {
    using Element = float;
    static constexpr int kDepth = 1;         // ks in a step
    static constexpr int kUnitsPerStep = 1;  // words of A per row and step

    template <int R, int V>
    static MOELENS_INLINE void step(F32 (&sums)[R][V], const float* a, int64_t, const float* b) {
        F32 columns[V];
        for (int v = 0; v < V; ++v) columns[v] = load(b + v * kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const F32 row = splat(a[r]);
#pragma GCC unroll 16
            for (int v = 0; v < V; ++v) sums[r][v] = fma(row, columns[v], sums[r][v]);
        }
    }
};

struct WidePairs {
    using Element = Bf16;
    static constexpr int kDepth = 2;
    static constexpr int kUnitsPerStep = 2;

    template <int R, int V>
    static MOELENS_INLINE void step(F32 (&sums)[R][V], const float* a, int64_t rows, const float* b) {
        F32 pairs[V], columns[V];
        for (int v = 0; v < V; ++v) pairs[v] = load(b + v * kLanes);
        for (int v = 0; v < V; ++v) columns[v] = first_of_pairs(pairs[v]);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const F32 row = splat(a[r]);
#pragma GCC unroll 16
            for (int v = 0; v < V; ++v) sums[r][v] = fma(row, columns[v], sums[r][v]);
        }
        for (int v = 0; v < V; ++v) columns[v] = second_of_pairs(pairs[v]);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const F32 row = splat(a[rows + r]);
#pragma GCC unroll 16
            for (int v = 0; v < V; ++v) sums[r][v] = fma(row, columns[v], sums[r][v]);
        }
    }
};

#ifdef MOELENS_DOT_PAIRS
struct DotPairs {
    using Element = Bf16;
    static constexpr int kDepth = 2;
    static constexpr int kUnitsPerStep = 1;

    template <int R, int V>
    static MOELENS_INLINE void step(F32 (&sums)[R][V], const float* a, int64_t, const float* b) {
        F32 columns[V];
        for (int v = 0; v < V; ++v) columns[v] = load(b + v * kLanes);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
            const F32 row = splat(a[r]);
#pragma GCC unroll 16
            for (int v = 0; v < V; ++v) sums[r][v] = dot_pairs(row, columns[v], sums[r][v]);
        }
    }
};
using Pairs = DotPairs;
#else
using Pairs = WidePairs;
#endif

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

// What is prefetched while a tile is multiplied: 128 bytes a step, which are never read here.
struct InOrder {  // one panel from front to back
    // Fewer rows wait for memory, and the processor's own prefetching keeps more of it busy (measured on Zen 4 with
    // cold weights: at 2 rows 15 % faster without, at 8 rows 20 % faster with).
    static constexpr int kFewestRows = 3;
    const float* at;

    MOELENS_INLINE void fetch() {
        __builtin_prefetch(at, 0, 2);
        __builtin_prefetch(at + 16, 0, 2);
        at += kPanelColumns;
    }
};

// Several pieces of memory, 128 bytes of each in turn. A processor follows many streams at a time but needs a while to
// gather speed on each one, so short pieces that are fetched one after another come at a third of the memory's rate.
struct InTurns {
    static constexpr int kFewestRows = 1;
    static constexpr int kPieces = 8;  // a power of two
    const float* const* pieces;        // [8]
    uint64_t tick;                     // turns taken so far

    MOELENS_INLINE void fetch() {
        const float* at = pieces[tick % kPieces] + tick / kPieces * kPanelColumns;
        __builtin_prefetch(at, 0, 2);
        __builtin_prefetch(at + 16, 0, 2);
        ++tick;
    }
};

// The order of the operands of one tile. `rows` ≤ 12 is also the number of rows of A's panel.
struct Tile {
    const float* a;
    const float* b;
    int64_t steps;
    int rows;
    float* sums;  // [rows][32], row r at sums + r * stride
    int64_t stride;
    bool continued;  // start from the sums that are there, not from zero
};

template <class F, int R, int V, class Ahead>
MOELENS_INLINE void multiply_part(const Tile& t, int row, int column, Ahead ahead) {
    F32 sums[R][V];
    float* out = t.sums + row * t.stride + column;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) sums[r][v] = t.continued ? load(out + r * t.stride + v * kLanes) : zeros();
    }
    const float* a = t.a + row;
    const float* b = t.b + column;
    const int64_t a_step = static_cast<int64_t>(t.rows) * F::kUnitsPerStep;
    for (int64_t s = 0; s < t.steps; ++s) {
        if constexpr (R >= Ahead::kFewestRows) ahead.fetch();
        F::template step<R, V>(sums, a, t.rows, b);
        a += a_step;
        b += kPanelColumns;
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) store(out + r * t.stride + v * kLanes, sums[r][v]);
    }
}

// R rows from `row` on, all columns.
template <class F, int R, class Ahead>
__attribute__((noinline)) void multiply_rows(const Tile& t, int row, Ahead ahead) {
    // Few rows leave registers for more columns; more sums at a time hide the latency of the multiplications.
    constexpr int kAll = kPanelColumns / kLanes;
    constexpr int kWanted = kTileRows * kTileVectors / R;
    constexpr int kVectors = kWanted >= kAll ? kAll : kWanted >= 2 * kTileVectors ? 2 * kTileVectors : kTileVectors;
    multiply_part<F, R, kVectors>(t, row, 0, ahead);
    for (int column = kVectors * kLanes; column < kPanelColumns; column += kVectors * kLanes) {
        multiply_part<F, R, kVectors>(t, row, column, InOrder{t.b});
    }
}

template <class F, class Ahead>
MOELENS_INLINE void multiply_tile(const Tile& t, Ahead ahead) {
    for (int row = 0; row < t.rows; row += kTileRows) {
        switch (t.rows - row < kTileRows ? t.rows - row : kTileRows) {
            case 1:
                multiply_rows<F, 1>(t, row, ahead);
                break;
            case 2:
                multiply_rows<F, 2>(t, row, ahead);
                break;
            case 3:
                multiply_rows<F, 3>(t, row, ahead);
                break;
            case 4:
                multiply_rows<F, 4>(t, row, ahead);
                break;
            case 5:
                multiply_rows<F, 5>(t, row, ahead);
                break;
            case 6:
                multiply_rows<F, 6>(t, row, ahead);
                break;
#ifdef MOELENS_TALL_TILES
            case 7:
                multiply_rows<F, 7>(t, row, ahead);
                break;
            case 8:
                multiply_rows<F, 8>(t, row, ahead);
                break;
            case 9:
                multiply_rows<F, 9>(t, row, ahead);
                break;
            case 10:
                multiply_rows<F, 10>(t, row, ahead);
                break;
            case 11:
                multiply_rows<F, 11>(t, row, ahead);
                break;
            case 12:
                multiply_rows<F, 12>(t, row, ahead);
                break;
#endif
        }
    }
}
