// The product of a few rows and 32 columns, whose sums stay in registers: the inner loop of every matrix product.
//
// Each sum takes its products in ascending order of k, one rounding after another, whatever the number of rows: that is
// what makes a row's result independent of the rows beside it. Sums can be continued, so a split of k (of TilePairs,
// between blocks of 16 steps) changes nothing.

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
    [[maybe_unused]] Pace pace;
    const auto add_steps = [&](int64_t steps) MOELENS_INLINED {
#ifdef MOELENS_UNROLL_STEPS
#pragma GCC unroll 2
#endif
        for (int64_t s = 0; s < steps; ++s) {
            if constexpr (R >= Ahead::kFewestRows) ahead.fetch(R <= Ahead::kPacedRows ? pace.next() : 0);
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
    // Few rows leave registers for more columns; more sums at a time hide the latency of the multiplications.
    constexpr int kAll = kPanelColumns / kLanes;
    constexpr int kWanted = kTileRows * kTileVectors / R;
    constexpr int kVectors = kWanted >= kAll ? kAll : kWanted >= 2 * kTileVectors ? 2 * kTileVectors : kTileVectors;
    constexpr int kPasses = kAll / kVectors;
    if constexpr (kTakesPasses<F>) {
        const auto share = [&](int pass) MOELENS_INLINED {
            return ahead.share(pass, pass + 1, kPasses).template over_steps<kPasses == 1>(t.steps);
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
