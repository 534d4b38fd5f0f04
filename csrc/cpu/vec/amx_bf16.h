// AVX-512 with the bfloat16 instructions, and AMX: eight tile registers of 16 rows of 64 bytes, and products of tiles
// of bfloat16 pairs, or of quads of 8-bit whole numbers.
//
// A product takes the pairs of 32 ks, sums them in float32 and adds that to what was there: a row's result depends on
// where blocks of 32 ks begin, and on nothing beside the row.
#ifdef MOELENS_EMULATE_TILES
#include "vec/scalar.h"
#else
#include "vec/avx512_bf16.h"
#endif

#define MOELENS_TILES 1

// As in the manual of LDTILECFG, palette 1.
struct alignas(64) TileShapes {
    uint8_t palette, first_row, unused[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

constexpr int kRegisterRows = 16;  // of a tile register, at most
constexpr int kMostTileRows = 2 * kRegisterRows;

struct AllTileShapes {
    TileShapes of_rows[kMostTileRows + 1];
};

// For each number of A's rows: tiles 0 … 3 are sums (0 and 1 of the first 16 rows, 2 and 3 of the others), 4 and 5 are
// A's, 6 and 7 B's.
constexpr AllTileShapes make_tile_shapes() {
    AllTileShapes all{};
    for (int count = 1; count <= kMostTileRows; ++count) {
        TileShapes& shapes = all.of_rows[count];
        shapes.palette = 1;
        for (int tile = 0; tile < 8; ++tile) {
            shapes.rows[tile] = kRegisterRows;
            shapes.row_bytes[tile] = 64;
        }
        const int last = (count - 1) / kRegisterRows, rest = count - last * kRegisterRows;
        shapes.rows[2 * last] = shapes.rows[2 * last + 1] = shapes.rows[4 + last] = static_cast<uint8_t>(rest);
    }
    return all;
}

constexpr AllTileShapes kTileShapes = make_tile_shapes();

#ifdef MOELENS_EMULATE_TILES
#include "vec/emulated_tiles.inl.h"
#else
#include "vec/amx_instructions.inl.h"
#endif

thread_local int shaped_rows = 0;  // what this thread's tile registers are shaped for; 0: unknown

// Shaping takes some 80 ns.
MOELENS_INLINE void shape_tiles(int rows) {
    if (rows == shaped_rows) return;
    MOELENS_TILE_SHAPE(kTileShapes.of_rows[rows]);
    shaped_rows = rows;
}

// A thread's tile registers for the time of a task: before it others may have shaped them, and after it they are left
// empty, so that a switch of threads has nothing to save.
struct TileScope {
    TileScope() { shaped_rows = 0; }
    ~TileScope() {
        if (shaped_rows > 0) MOELENS_TILE_RELEASE();
    }
    TileScope(const TileScope&) = delete;
};
