// The product of a tile by tile registers: up to 32 rows and 32 columns, whose sums stay in four of them.
//
// A panel of B is what the registers want as it is: 16 steps are 16 rows of 128 bytes, of which each of two registers
// takes half. In a panel of A 16 steps are a block: 64 bytes of one row after another.
#ifdef MOELENS_TILES

constexpr int kBlockSteps = TilePairs::kUnitsTogether;
constexpr int64_t kRegisterBytes = kBlockSteps * 4;  // of a row of A's panel, or half a step of B's

// sums += A's block * B's.
template <bool kTwo>
MOELENS_INLINE void add_block(const float* a, int64_t row_bytes, const float* b) {
    MOELENS_TILE_LOAD(4, a, row_bytes);
    MOELENS_TILE_LOAD(6, b, kStepBytes);
    MOELENS_TILE_DOT_PAIRS(0, 4, 6);
    if constexpr (kTwo) {
        MOELENS_TILE_LOAD(5, reinterpret_cast<const char*>(a) + kRegisterRows * row_bytes, row_bytes);
        MOELENS_TILE_DOT_PAIRS(2, 5, 6);
    }
    MOELENS_TILE_LOAD(7, b + kRegisterBytes / 4, kStepBytes);
    MOELENS_TILE_DOT_PAIRS(1, 4, 7);
    if constexpr (kTwo) MOELENS_TILE_DOT_PAIRS(3, 5, 7);
}

// The same of the last `steps` < 16, beyond which A and B may hold anything.
template <bool kTwo>
__attribute__((noinline)) void add_last_block(const float* a, int64_t row_bytes, int rows, const float* b, int steps) {
    alignas(64) float some_a[kMaxRows * kBlockSteps] = {}, some_b[kBlockSteps * kPanelColumns] = {};
    for (int r = 0; r < rows; ++r) {
        memcpy(some_a + r * kBlockSteps, reinterpret_cast<const char*>(a) + r * row_bytes, 4 * steps);
    }
    memcpy(some_b, b, steps * kStepBytes);
    add_block<kTwo>(some_a, kRegisterBytes, some_b);
}

template <bool kTwo, int S, class T, class Ahead, class Beside>
__attribute__((noinline)) void multiply_by_tiles(const T& t, Ahead ahead, const Beside& beside) {
    const int64_t sums_bytes = t.stride * 4;
    float* const below = t.sums + kRegisterRows * t.stride;
    if (t.continued) {
        MOELENS_TILE_LOAD(0, t.sums, sums_bytes);
        MOELENS_TILE_LOAD(1, t.sums + kPanelColumns / 2, sums_bytes);
        if constexpr (kTwo) {
            MOELENS_TILE_LOAD(2, below, sums_bytes);
            MOELENS_TILE_LOAD(3, below + kPanelColumns / 2, sums_bytes);
        }
    } else {
        MOELENS_TILE_ZERO(0);
        MOELENS_TILE_ZERO(1);
        MOELENS_TILE_ZERO(2);
        MOELENS_TILE_ZERO(3);
    }
    const int64_t row_bytes = S == 0 ? kRegisterBytes : S * 4, next_block = S == 0 ? t.rows * kBlockSteps : kBlockSteps;
    const int64_t blocks = t.steps / kBlockSteps;
    const float* a = t.a;
    const auto fetch = [&](int steps) MOELENS_INLINED {
#pragma GCC unroll 16
        for (int s = 0; s < steps; ++s) ahead.fetch();
    };
    const auto add_blocks = [&](const float* b, int parts) MOELENS_INLINED {
        int part = 0;
        int64_t owed = 0;
        for (int64_t block = 0; block < blocks; ++block) {
            add_block<kTwo>(a, row_bytes, b);
            fetch(kBlockSteps);
            a += next_block;
            b += kBlockSteps * kPanelColumns;
            for (owed += parts; owed >= blocks; owed -= blocks) beside(part++);
        }
        const int rest = static_cast<int>(t.steps % kBlockSteps);
        if (rest > 0) {
            add_last_block<kTwo>(a, row_bytes, t.rows, b, rest);
            fetch(rest);
        }
        while (part < parts) beside(part++);
    };
    add_blocks(t.b, beside.parts());
    if constexpr (T::kInPieces) {
        for (int64_t piece = 1; piece < t.count; ++piece) add_blocks(t.pieces[piece], 0);
    }
    MOELENS_TILE_STORE(0, t.sums, sums_bytes);
    MOELENS_TILE_STORE(1, t.sums + kPanelColumns / 2, sums_bytes);
    if constexpr (kTwo) {
        MOELENS_TILE_STORE(2, below, sums_bytes);
        MOELENS_TILE_STORE(3, below + kPanelColumns / 2, sums_bytes);
    }
}

template <int S, class T, class Ahead, class Beside>
MOELENS_INLINE void TilePairs::multiply(const T& t, Ahead ahead, const Beside& beside) {
    shape_tiles(t.rows);
    if (t.rows > kRegisterRows) {
        multiply_by_tiles<true, S>(t, ahead, beside);
    } else {
        multiply_by_tiles<false, S>(t, ahead, beside);
    }
}

#endif
