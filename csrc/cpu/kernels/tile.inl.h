// The product of a few rows and 32 columns, whose sums stay in registers: the inner loop of every matrix product.
//
// Both operands are panels that are read from front to back, `step` by step. A step is one k (float32) or a pair of ks
// (bfloat16). In a panel of B a step is 32 columns of one word (a float, or a pair of bfloat16): 128 bytes. In a panel
// of A, a step holds for each of its rows the same ks in the form that the multiplication wants:
//
//   Singles      float32 by float32       one float
//   WidePairs    bfloat16 pairs, widened  a float for the first k of every row, then one for the second k of every row
//   DotPairs     bfloat16 pairs           one pair, as it is
//   TilePairs    bfloat16 pairs           one pair, as it is; 16 steps of a row lie together (see tile_registers.inl.h)
//
// Each sum takes its products in ascending order of k, one rounding after another, whatever the number of rows: that is
// what makes a row's result independent of the rows beside it. Sums can be continued, so a split of k (of TilePairs,
// between blocks of 16 steps) changes nothing.

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

// In each format, `next_row` is the distance from a row of A to the next, in floats: 1 in a panel, more where each row
// is stored in one piece; `second` is the distance from the first k of a pair to the second, where they are apart.

struct Singles {
    using Element = float;
    static constexpr int kDepth = 1;          // ks in a step
    static constexpr int kUnitsPerStep = 1;   // words of A per row and step
    static constexpr int kUnitsTogether = 1;  // of a row in A's panel

    template <int R, int V>
    static MOELENS_INLINE void step(F32 (&sums)[R][V], const float* a, int next_row, int64_t, const float* b) {
        const auto column = [&](int v) { return load(b + v * kLanes); };
        add_products(sums, [&](int r) { return splat(a[r * next_row]); }, column, accumulate);
    }
};

struct WidePairs {
    using Element = Bf16;
    static constexpr int kDepth = 2;
    static constexpr int kUnitsPerStep = 2;
    static constexpr int kUnitsTogether = 1;

    template <int R, int V>
    static MOELENS_INLINE void step(F32 (&sums)[R][V], const float* a, int next_row, int64_t second, const float* b) {
        const auto first_column = [&](int v) { return first_of_pairs(load(b + v * kLanes)); };
        const auto second_column = [&](int v) { return second_of_pairs(load(b + v * kLanes)); };
        add_products(sums, [&](int r) { return splat(a[r * next_row]); }, first_column, accumulate);
        add_products(sums, [&](int r) { return splat(a[r * next_row + second]); }, second_column, accumulate);
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
        const auto add = [](F32 row, F32 column, F32& sum) { sum = dot_pairs(row, column, sum); };
        const auto column = [&](int v) { return load(b + v * kLanes); };
        add_products(sums, [&](int r) { return splat(a[r * next_row]); }, column, add);
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

// Whether a tile is multiplied in several passes, each over some of its rows and columns.
template <class F>
constexpr bool kTakesPasses = !kUsesTiles<F> && (kTileRows < kMaxRows || kTileVectors * kLanes < kPanelColumns);

// What is prefetched while a tile is multiplied in one pass, and never read here: at each step, the line at the front
// of either stream, which then goes on by so many floats. kCache is the cache that it should come to: 1 for what is
// read next, 2 for what is read later.
template <int kCache>
struct Fetching {
    // Fewer rows wait for memory, and the processor's own prefetching keeps more of it busy than what is fetched to the
    // second-level cache does (measured on Zen 4 with cold weights: at 2 rows 15 % faster without, at 8 rows 20 %
    // faster with).
    static constexpr int kFewestRows = kCache == 1 ? 1 : 3;
    const float *first, *second;
    int64_t first_advance, second_advance;

    MOELENS_INLINE void fetch() {
        __builtin_prefetch(first, 0, 4 - kCache);
        __builtin_prefetch(second, 0, 4 - kCache);
        first += first_advance;
        second += second_advance;
    }
};

using TwoStreams = Fetching<2>;

// One panel of B, and another, that is read later, to the second-level cache; by default in pieces that lie anywhere,
// which the processor does not fetch by itself.
template <int kCache, int kFewest = 1>
struct NearAndFar : Fetching<kCache> {
    static constexpr int kFewestRows = kFewest;
    const float* far;

    MOELENS_INLINE void fetch() {
        Fetching<kCache>::fetch();
        __builtin_prefetch(far, 0, 2);
        __builtin_prefetch(far + 16, 0, 2);
        far += kPanelColumns;
    }
};

// How many vectors of columns a pass over R rows takes. Few rows leave registers for more columns; more sums at a time
// hide the latency of the multiplications.
template <int R>
constexpr int vectors_of_pass() {
    constexpr int kAll = kPanelColumns / kLanes, kWanted = kTileRows * kTileVectors / R;
    return kWanted >= kAll ? kAll : kWanted >= 2 * kTileVectors ? 2 * kTileVectors : kTileVectors;
}

// What one of several passes fetches, to the second-level cache: at each step, one or two lines.
template <bool kTwo>
struct LineStream {
    static constexpr int kFewestRows = 1;
    const float* line;
    int64_t advance;  // floats a step

    MOELENS_INLINE void fetch() {
        __builtin_prefetch(line, 0, 2);
        if constexpr (kTwo) __builtin_prefetch(line + 16, 0, 2);
        line += advance;
    }
};

// Where a tile takes several passes: so many lines, one after another. Each pass fetches its share of them, evenly over
// its steps, for memory would rest during passes that fetch nothing. A share is at most two lines a step, or one where
// there are several passes over the columns; where it is less, steps fetch the same line again, which costs less than
// to count.
struct SharedLines {
    static constexpr int64_t kLineFloats = 16;
    const float* first;
    int64_t count;

    // Of the parts [begin, end) of `all`.
    MOELENS_INLINE SharedLines share(int64_t begin, int64_t end, int64_t all) const {
        const int64_t skipped = count * begin / all;
        return {first + skipped * kLineFloats, count * end / all - skipped};
    }
    template <int R>
    MOELENS_INLINE auto over_steps(int64_t steps) const {
        constexpr bool kAllColumns = vectors_of_pass<R>() * kLanes == kPanelColumns;
        return LineStream<kAllColumns>{first, count * kLineFloats / larger(1, steps)};
    }
};

struct NoFetching {
    static constexpr int kFewestRows = kMaxRows + 1;
    MOELENS_INLINE void fetch() {}
    MOELENS_INLINE NoFetching share(int64_t, int64_t, int64_t) const { return {}; }
    template <int R>
    MOELENS_INLINE NoFetching over_steps(int64_t) const {
        return {};
    }
};

// So many steps of a panel of B, from front to back.
template <class F, int kCache = 2>
MOELENS_INLINE auto in_order(const float* panel, int64_t steps) {
    if constexpr (kTakesPasses<F>) {
        return SharedLines{panel, 2 * steps};
    } else {
        return Fetching<kCache>{panel, panel + 16, kPanelColumns, kPanelColumns};
    }
}

// What tile `tile` of `tiles` fetches while all of them pass over a panel: its share of so many steps of the panel that
// comes, and, where it takes one pass, the next rows of A.
template <class F>
MOELENS_INLINE auto share_of_panel(const float* panel, int64_t steps, int64_t tile, int64_t tiles,
                                   [[maybe_unused]] const float* next_rows, [[maybe_unused]] int64_t rows_advance) {
    if constexpr (kTakesPasses<F>) {
        return SharedLines{panel, 2 * steps}.share(tile, tile + 1, tiles);
    } else {
        if (tiles == 1) return in_order<F>(panel, steps);
        const int64_t advance = divide_rounding_up(kPanelColumns, tiles);
        return TwoStreams{panel + smaller(tile * advance, kPanelColumns) * steps, next_rows, advance, rows_advance};
    }
}

// The cache that what is read next should come to, as a type: calls use(CacheLevel<1>()) or use(CacheLevel<2>()).
template <int kCache>
struct CacheLevel {
    static constexpr int kLevel = kCache;
};
template <class Use>
MOELENS_INLINE void with_near_cache(const Use& use) {
    prefetches_to_first_cache() ? use(CacheLevel<1>()) : use(CacheLevel<2>());
}

// What is done between the steps of a tile, in parts() parts: multiplications keep the processor's units for them busy,
// but few of its others, so it does other work at the same time if it comes between them.
struct NothingBeside {
    MOELENS_INLINE int parts() const { return 0; }
    MOELENS_INLINE void operator()(int) const {}
};

// The operands of one tile. `rows` ≤ kMaxRows is also the number of rows of A's panel.
struct Tile {
    static constexpr bool kInPieces = false;
    const float* a;
    const float* b;
    int64_t steps;
    int rows;
    float* sums;  // [rows][32], row r at sums + r * stride
    int64_t stride;
    bool continued;  // start from the sums that are there, not from zero
};

// Where B lies in several pieces of `steps` steps each, through which A goes on; b is the first.
struct TileOfPieces : Tile {
    static constexpr bool kInPieces = true;
    const float* const* pieces;
    int64_t count;
};

// How A lies in memory: as a panel (S = 0), or each row in one piece, S floats from one to the next.
template <class F, int S>
struct OperandOrder {
    static constexpr int kNextRow = S == 0 ? 1 : S;
    static int64_t second(const Tile& t) { return S == 0 ? t.rows : 1; }
    static int64_t next_step(const Tile& t) { return (S == 0 ? t.rows : 1) * F::kUnitsPerStep; }
};

template <class F, int R, int V, int S, class T, class Ahead, class Beside>
MOELENS_INLINE void multiply_part(const T& t, int row, int column, Ahead ahead, const Beside& beside) {
    using Order = OperandOrder<F, S>;
    F32 sums[R][V];
    float* out = t.sums + row * t.stride + column;
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) sums[r][v] = t.continued ? load(out + r * t.stride + v * kLanes) : zeros();
    }
    const float* a = t.a + row * Order::kNextRow;
    const float* b = t.b + column;
    const int64_t second = Order::second(t), next_step = Order::next_step(t);
    const auto add_steps = [&](int64_t steps) MOELENS_INLINED {
        for (int64_t s = 0; s < steps; ++s) {
            if constexpr (R >= Ahead::kFewestRows) ahead.fetch();
            F::template step<R, V>(sums, a, Order::kNextRow, second, b);
            a += next_step;
            b += kPanelColumns;
        }
    };
    const int parts = beside.parts();
    const int64_t some = t.steps / (parts + 1);
    for (int part = 0; part < parts; ++part) {
        add_steps(some);
        beside(part);
    }
    add_steps(t.steps - parts * some);
    if constexpr (T::kInPieces) {
        for (int64_t piece = 1; piece < t.count; ++piece) {
            b = t.pieces[piece] + column;
            add_steps(t.steps);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) store(out + r * t.stride + v * kLanes, sums[r][v]);
    }
}

// R rows from `row` on, all columns.
template <class F, int R, int S, class T, class Ahead, class Beside>
__attribute__((noinline)) void multiply_rows(const T& t, int row, Ahead ahead, const Beside& beside) {
    constexpr int kVectors = vectors_of_pass<R>();
    constexpr int kPasses = kPanelColumns / (kVectors * kLanes);
    if constexpr (kTakesPasses<F>) {
        const auto share = [&](int pass) MOELENS_INLINED {
            return ahead.share(pass, pass + 1, kPasses).template over_steps<R>(t.steps);
        };
        multiply_part<F, R, kVectors, S>(t, row, 0, share(0), beside);
        for (int pass = 1; pass < kPasses; ++pass) {
            multiply_part<F, R, kVectors, S>(t, row, pass * kVectors * kLanes, share(pass), NothingBeside());
        }
    } else {
        multiply_part<F, R, kVectors, S>(t, row, 0, ahead, beside);
    }
}

// `count` rows from `row` on, at most as many as stay in registers.
template <class F, int S, class T, class Ahead, class Beside>
MOELENS_INLINE void multiply_rows_from(const T& t, int row, int count, Ahead ahead, const Beside& beside) {
    switch (count) {
        case 1:
            multiply_rows<F, 1, S>(t, row, ahead, beside);
            break;
        case 2:
            multiply_rows<F, 2, S>(t, row, ahead, beside);
            break;
        case 3:
            multiply_rows<F, 3, S>(t, row, ahead, beside);
            break;
        case 4:
            multiply_rows<F, 4, S>(t, row, ahead, beside);
            break;
        case 5:
            multiply_rows<F, 5, S>(t, row, ahead, beside);
            break;
        case 6:
            multiply_rows<F, 6, S>(t, row, ahead, beside);
            break;
#ifdef MOELENS_TALL_TILES
        case 7:
            multiply_rows<F, 7, S>(t, row, ahead, beside);
            break;
        case 8:
            multiply_rows<F, 8, S>(t, row, ahead, beside);
            break;
        case 9:
            multiply_rows<F, 9, S>(t, row, ahead, beside);
            break;
        case 10:
            multiply_rows<F, 10, S>(t, row, ahead, beside);
            break;
        case 11:
            multiply_rows<F, 11, S>(t, row, ahead, beside);
            break;
        case 12:
            multiply_rows<F, 12, S>(t, row, ahead, beside);
            break;
#endif
    }
}

template <class F, int S = 0, class T = Tile, class Ahead, class Beside = NothingBeside>
MOELENS_INLINE void multiply_tile(const T& t, Ahead ahead, const Beside& beside = {}) {
    if constexpr (kUsesTiles<F>) {
        F::template multiply<S>(t, ahead, beside);
    } else if constexpr (kTileRows == kMaxRows) {
        multiply_rows_from<F, S>(t, 0, t.rows, ahead, beside);
    } else {
        // Of an odd number the first rows are one fewer: passes over 1 or 3 rows take as long as those over 2 or 4.
        const int first = t.rows <= kTileRows ? t.rows : kTileRows - t.rows % 2;
        multiply_rows_from<F, S>(t, 0, first, ahead.share(0, first, t.rows), beside);
        for (int row = first; row < t.rows;) {
            const int count = static_cast<int>(smaller(kTileRows, t.rows - row));
            multiply_rows_from<F, S>(t, row, count, ahead.share(row, row + count, t.rows), NothingBeside());
            row += count;
        }
    }
}
