// How attention finds its tiles of keys and values, and how it fetches them ahead of time.
//
// A block of one KV head holds tiles of 32 keys, each a panel of B (see tile.inl.h) whose columns are the keys and
// whose steps are over D; a tile of values is a panel for every 32 elements of D, which are the columns, with steps
// over keys.

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

struct TileGroup {
    const float* tiles[kGroupTiles];
    int count = 0;
    int64_t steps;  // of 128 bytes, in each tile
};

struct CacheLayout {
    int64_t heads, tiles_per_block;
    int64_t key_steps;            // of a tile of keys
    int64_t chunks, chunk_steps;  // panels of a tile of values, and the steps of each

    template <class F>
    static CacheLayout of(const AttentionArgs& args) {
        return {args.kv_heads, args.block_tokens / kTileKeys, steps_of<F>(args.head_dim),
                divide_rounding_up(args.head_dim, kPanelColumns), steps_of<F>(kTileKeys)};
    }

    TileGroup keys(const AttentionArgs& args, int64_t request, int64_t head, TileRange range) const {
        return find(args, args.keys, key_steps, request, head, range);
    }
    TileGroup values(const AttentionArgs& args, int64_t request, int64_t head, TileRange range) const {
        return find(args, args.values, chunks * chunk_steps, request, head, range);
    }

  private:
    TileGroup find(const AttentionArgs& args, const void* base, int64_t steps, int64_t request, int64_t head,
                   TileRange range) const {
        TileGroup group;
        group.steps = steps;
        const int32_t* blocks = args.block_ids + request * args.block_columns;
        for (int64_t tile = range.first; tile < range.end; ++tile) {
            const int64_t block = blocks[tile / tiles_per_block];
            const int64_t index = (block * heads + head) * tiles_per_block + tile % tiles_per_block;
            group.tiles[group.count++] = static_cast<const float*>(base) + index * steps * kPanelColumns;
        }
        return group;
    }
};

// Spreads the fetching of a group of tiles over the products that run before it is needed.
class Ahead {
  public:
    explicit Ahead(const float* resting) {
        for (const float*& piece : resting_) piece = resting;
    }

    // What comes next. It is cut into as many pieces of equal length as can be fetched in turns.
    void aim(const TileGroup& group) {
        tick_ = end_ = 0;
        if (group.count == 0) return;
        const int cuts = InTurns::kPieces / group.count;
        const int64_t lines = divide_rounding_up(group.steps, cuts);
        for (int i = 0; i < InTurns::kPieces; ++i) {
            const int tile = i / cuts;
            pieces_[i] = tile < group.count ? group.tiles[tile] + i % cuts * lines * kPanelColumns : pieces_[0];
        }
        end_ = static_cast<uint64_t>(lines) * InTurns::kPieces;
    }

    // The next `steps` turns; when all was fetched they touch memory that is at hand.
    InTurns take(int64_t steps) {
        if (tick_ >= end_) return {resting_, 0};
        const uint64_t tick = tick_;
        tick_ += static_cast<uint64_t>(steps);
        return {pieces_, tick};
    }

    void fetch_all() {
        for (InTurns turns = take(static_cast<int64_t>(end_)); turns.tick < end_;) turns.fetch();
    }

  private:
    const float* pieces_[InTurns::kPieces];
    const float* resting_[InTurns::kPieces];
    uint64_t tick_ = 0, end_ = 0;
};
