// The product of a tile by tile registers: up to 32 rows and 32 columns, whose sums stay in four of them.
//
// A panel of B is what the registers want as it is: 16 steps are 16 rows of 128 bytes, of which each of two registers
// takes half. In a panel of A 16 steps are a block: 64 bytes of one row after another.
#ifdef MOELENS_TILES

constexpr int kBlockSteps = TilePairs::kUnitsTogether;
constexpr int64_t kRegisterBytes = kBlockSteps * 4;  // of a row of A's panel, or half a step of B's
constexpr int kHalfColumns = kPanelColumns / 2;

// F is TilePairs or, of 8-bit whole numbers, Quads.
#define MOELENS_TILE_DOT(sums, a, b)        \
    if constexpr (F::kDepth == 4) {         \
        MOELENS_TILE_DOT_QUADS(sums, a, b); \
    } else {                                \
        MOELENS_TILE_DOT_PAIRS(sums, a, b); \
    }

// sums += A's block * B's. kTwo: A has more than 16 rows.
template <class F, bool kTwo>
MOELENS_INLINE void add_block(const float* a, int64_t row_bytes, const float* b) {
    MOELENS_TILE_LOAD(4, a, row_bytes);
    MOELENS_TILE_LOAD(6, b, kStepBytes);
    MOELENS_TILE_DOT(0, 4, 6)
    if constexpr (kTwo) {
        MOELENS_TILE_LOAD(5, reinterpret_cast<const char*>(a) + kRegisterRows * row_bytes, row_bytes);
        MOELENS_TILE_DOT(2, 5, 6)
    }
    MOELENS_TILE_LOAD(7, b + kHalfColumns, kStepBytes);
    MOELENS_TILE_DOT(1, 4, 7)
    if constexpr (kTwo) {
        MOELENS_TILE_DOT(3, 5, 7)
    }
}

#undef MOELENS_TILE_DOT

// The same of the last `steps` < 16, beyond which A and B may hold anything.
template <class F, bool kTwo>
__attribute__((noinline)) void add_last_block(const float* a, int64_t row_bytes, int rows, const float* b, int steps) {
    alignas(64) float some_a[kMaxRows * kBlockSteps] = {}, some_b[kBlockSteps * kPanelColumns] = {};
    for (int r = 0; r < rows; ++r) {
        memcpy(some_a + r * kBlockSteps, reinterpret_cast<const char*>(a) + r * row_bytes, 4 * steps);
    }
    memcpy(some_b, b, steps * kStepBytes);
    add_block<F, kTwo>(some_a, kRegisterBytes, some_b);
}

template <bool kTwo>
MOELENS_INLINE void begin_sums(const float* sums, int64_t row_floats, bool continued) {
    if (continued) {
        MOELENS_TILE_LOAD(0, sums, row_floats * 4);
        MOELENS_TILE_LOAD(1, sums + kHalfColumns, row_floats * 4);
        if constexpr (kTwo) {
            MOELENS_TILE_LOAD(2, sums + kRegisterRows * row_floats, row_floats * 4);
            MOELENS_TILE_LOAD(3, sums + kRegisterRows * row_floats + kHalfColumns, row_floats * 4);
        }
    } else {
        MOELENS_TILE_ZERO(0);
        MOELENS_TILE_ZERO(1);
        MOELENS_TILE_ZERO(2);
        MOELENS_TILE_ZERO(3);
    }
}

template <bool kTwo>
MOELENS_INLINE void end_sums(float* sums, int64_t row_floats) {
    MOELENS_TILE_STORE(0, sums, row_floats * 4);
    MOELENS_TILE_STORE(1, sums + kHalfColumns, row_floats * 4);
    if constexpr (kTwo) {
        MOELENS_TILE_STORE(2, sums + kRegisterRows * row_floats, row_floats * 4);
        MOELENS_TILE_STORE(3, sums + kRegisterRows * row_floats + kHalfColumns, row_floats * 4);
    }
}

template <class F, bool kTwo, int S, class T, class Ahead, class Beside>
__attribute__((noinline)) void multiply_by_tiles(const T& t, Ahead given, const Beside& beside) {
    const int64_t row_bytes = S == 0 ? kRegisterBytes : S * 4, next_block = S == 0 ? t.rows * kBlockSteps : kBlockSteps;
    const int64_t blocks = t.steps / kBlockSteps;
    const int parts = beside.parts();
    Ahead ahead = given;
    const float* a = t.a;
    int part = 0;
    const auto add_blocks = [&](const float* b) MOELENS_INLINED {
        int64_t owed = 0;
        for (int64_t block = 0; block < blocks; ++block) {
            add_block<F, kTwo>(a, row_bytes, b);
#pragma GCC unroll 16
            for (int s = 0; s < kBlockSteps; ++s) ahead.fetch(0);
            a += next_block;
            b += kBlockSteps * kPanelColumns;
            for (owed += parts; owed >= blocks && part < parts; owed -= blocks) beside(part++);
        }
        const int rest = static_cast<int>(t.steps % kBlockSteps);
        if (rest > 0) add_last_block<F, kTwo>(a, row_bytes, t.rows, b, rest);
    };
    begin_sums<kTwo>(t.sums, t.stride, t.continued);
    add_blocks(t.b);
    if constexpr (T::kInPieces) {
        for (int64_t piece = 1; piece < t.count; ++piece) add_blocks(t.pieces[piece]);
    }
    end_sums<kTwo>(t.sums, t.stride);
    while (part < parts) beside(part++);
}

template <class F, int S, class T, class Ahead, class Beside>
MOELENS_INLINE void multiply_in_tiles(const T& t, Ahead ahead, const Beside& beside) {
    shape_tiles(t.rows);
    t.rows > kRegisterRows ? multiply_by_tiles<F, true, S>(t, ahead, beside)
                           : multiply_by_tiles<F, false, S>(t, ahead, beside);
}

template <int S, class T, class Ahead, class Beside>
MOELENS_INLINE void TilePairs::multiply(const T& t, Ahead ahead, const Beside& beside) {
    multiply_in_tiles<TilePairs, S>(t, ahead, beside);
}

#endif
