// AMX's instructions in plain C++, so that the kernels that use them can be tested on any processor: `make
// sanitize-tiles`.

struct EmulatedTile {
    int rows = 0;  // 0: not shaped
    alignas(64) unsigned char bytes[kRegisterRows][64];
};
thread_local EmulatedTile emulated_tiles[8];

inline EmulatedTile& shaped_tile(int tile) {
    if (emulated_tiles[tile].rows == 0) abort();
    return emulated_tiles[tile];
}

inline void shape_emulated(const TileShapes& shapes) {
    for (int tile = 0; tile < 8; ++tile) {
        emulated_tiles[tile] = {};
        emulated_tiles[tile].rows = shapes.rows[tile];
    }
}

inline void release_emulated() {
    for (EmulatedTile& tile : emulated_tiles) tile.rows = 0;
}

inline void load_emulated(int tile, const void* data, int64_t stride) {
    EmulatedTile& to = shaped_tile(tile);
    memset(to.bytes, 0, sizeof to.bytes);
    for (int r = 0; r < to.rows; ++r) memcpy(to.bytes[r], static_cast<const char*>(data) + r * stride, 64);
}

inline void store_emulated(int tile, void* data, int64_t stride) {
    const EmulatedTile& from = shaped_tile(tile);
    for (int r = 0; r < from.rows; ++r) memcpy(static_cast<char*>(data) + r * stride, from.bytes[r], 64);
}

// The element of `row` and word `column` of a tile, `part` of those in the word.
template <class E>
E emulated_element(const EmulatedTile& tile, int row, int column, int part) {
    E element;
    memcpy(&element, tile.bytes[row] + column * 4 + part * static_cast<int>(sizeof(E)), sizeof element);
    return element;
}

// Calls add(row, column, sum) with the sum as it was, and stores what it returns.
template <class Sum, class Add>
void for_sums(int sums, int a, const Add& add) {
    EmulatedTile& to = shaped_tile(sums);
    if (to.rows != shaped_tile(a).rows) abort();
    for (int row = 0; row < to.rows; ++row) {
        for (int column = 0; column < 16; ++column) {
            const Sum sum = add(row, column, emulated_element<Sum>(to, row, column, 0));
            memcpy(to.bytes[row] + column * 4, &sum, sizeof sum);
        }
    }
}

inline void dot_emulated_pairs(int sums, int a, int b) {
    const EmulatedTile &x = shaped_tile(a), &y = shaped_tile(b);
    for_sums<float>(sums, a, [&](int row, int column, float sum) {
        float parts[2] = {0, 0};
        for (int k = 0; k < y.rows; ++k) {
            for (int part = 0; part < 2; ++part) {
                parts[part] +=
                    widen(emulated_element<Bf16>(x, row, k, part)) * widen(emulated_element<Bf16>(y, k, column, part));
            }
        }
        return sum + (parts[0] + parts[1]);
    });
}

inline void dot_emulated_quads(int sums, int a, int b) {
    const EmulatedTile &x = shaped_tile(a), &y = shaped_tile(b);
    for_sums<int32_t>(sums, a, [&](int row, int column, int32_t sum) {
        for (int k = 0; k < y.rows; ++k) {
            for (int part = 0; part < 4; ++part) {
                sum += emulated_element<int8_t>(x, row, k, part) * emulated_element<uint8_t>(y, k, column, part);
            }
        }
        return sum;
    });
}

#define MOELENS_TILE_SHAPE(shapes) shape_emulated(shapes)
#define MOELENS_TILE_RELEASE() release_emulated()
#define MOELENS_TILE_LOAD(tile, data, stride) load_emulated(tile, data, stride)
#define MOELENS_TILE_STORE(tile, data, stride) store_emulated(tile, data, stride)
#define MOELENS_TILE_ZERO(tile) memset(shaped_tile(tile).bytes, 0, sizeof shaped_tile(tile).bytes)
#define MOELENS_TILE_DOT_PAIRS(sums, a, b) dot_emulated_pairs(sums, a, b)
#define MOELENS_TILE_DOT_QUADS(sums, a, b) dot_emulated_quads(sums, a, b)
