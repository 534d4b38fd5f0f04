// Where attention finds keys and values.
//
// A block holds for each KV head some tiles of 32 keys. A tile of keys is a panel of B (see formats.inl.h) whose
// columns are the keys and whose steps are over D; a tile of values is a panel for every 32 elements of D, which are
// its columns, with steps over the keys. So tiles of one block that are taken head by head are one stretch of memory.

constexpr int kTileKeys = kPanelColumns;
constexpr int kGroupTiles = 8;  // that share one step of the softmax
constexpr int kGroupKeys = kGroupTiles * kTileKeys;

// Tiles [first, end) of a request's context.
struct TileRange {
    int64_t first, end;

    int64_t first_group() const { return first / kGroupTiles; }
    int64_t end_group() const { return divide_rounding_up(end, kGroupTiles); }
    TileRange within_group(int64_t group) const {
        return {larger(first, group * kGroupTiles), smaller(end, (group + 1) * kGroupTiles)};
    }
};

struct CacheLayout {
    const AttentionArgs& args;
    int64_t tiles_per_block;
    int64_t key_steps;            // of a tile of keys
    int64_t chunks, chunk_steps;  // panels of a tile of values, and the steps of each

    template <class F>
    static CacheLayout of(const AttentionArgs& args) {
        return {args, args.block_tokens / kTileKeys, steps_of<F>(args.head_dim),
                divide_rounding_up(args.head_dim, kPanelColumns), steps_of<F>(kTileKeys)};
    }

    int64_t value_steps() const { return chunks * chunk_steps; }
    const float* keys(int64_t request, int64_t head, int64_t tile) const {
        return static_cast<const float*>(args.keys) + index(request, head, tile) * key_steps * kPanelColumns;
    }
    const float* values(int64_t request, int64_t head, int64_t tile) const {
        return static_cast<const float*>(args.values) + index(request, head, tile) * value_steps() * kPanelColumns;
    }

  private:
    int64_t index(int64_t request, int64_t head, int64_t tile) const {
        const int64_t block = args.block_ids[request * args.block_columns + tile / tiles_per_block];
        return (block * args.kv_heads + head) * tiles_per_block + tile % tiles_per_block;
    }
};
