// attention: softmax(scale · q·k) · v over a paged cache, for decode and prefill rows alike.
//
// The rows of one request and one KV head (row = token * group + head in group) are cut into panels of at most
// kMaxRows, and panels into blocks that pass over the keys once, 256 keys at a time:
//
//   scores = Q · Kᵀ      a product of tiles: 32 keys are the columns, D is summed over
//   weights = 2^(score - largest so far), in base 2; what was summed before is scaled when the largest grows
//   out += weights · V   a product of tiles: 32 elements of D are the columns, keys are summed over
//
// Keys are taken in groups that begin at multiples of 256, whatever the rows. A key that a row does not see has the
// weight 0 and adds ±0 to sums of which the sign of zero is dropped at the end. So a row's bits don't depend on the
// rows beside it, and a key that no row of a panel sees may hold anything, for it is never multiplied.
//
// Few rows read memory and do little else, so all heads of a request are one block, and tiles are visited in the order
// in which they lie in memory. Many rows find tiles in the caches; a block is a few panels of one head, taken in turn.

constexpr int kBlockRows = 96;                              // at most
constexpr int kWideRows = (kEvenTiles ? 4 : 2) * kMaxRows;  // of a block of one head
constexpr int kBlockPanels = kBlockRows;
constexpr int kFarStretches = 4;  // tiles of keys or values: 32 KiB with heads of 128 in bfloat16
constexpr int kFewestPieces = 3;  // tiles of values from which on it pays to keep sums in registers for all of them

struct QueryBlock {
    int64_t request, first_head, end_head;
    int64_t first_row, end_row;  // of the request's rows for each of these heads

    int64_t rows() const { return end_row - first_row; }
    int panels_per_head() const { return static_cast<int>(tile_count(rows())); }
    int panels() const { return static_cast<int>(end_head - first_head) * panels_per_head(); }
};

// The keys [low, end) that a row of a request sees.
inline void find_visible(const AttentionArgs& args, int64_t request, int64_t row, int64_t* low, int64_t* end) {
    *end = args.cached[request] + row / (args.query_heads / args.kv_heads) + 1;
    *low = larger(0, *end - args.window);
}

inline TileRange tiles_of(const AttentionArgs& args, const QueryBlock& block) {
    int64_t low, end, unused;
    find_visible(args, block.request, block.first_row, &low, &unused);
    find_visible(args, block.request, block.end_row - 1, &unused, &end);
    return {low / kTileKeys, divide_rounding_up(end, kTileKeys)};
}

// One thread's pass over the keys of a block.
template <class T>
class AttentionPass {
    using F = Format<T>;

  public:
    static int64_t memory_floats(int64_t head_dim) {
        const int64_t width = divide_rounding_up(head_dim, kPanelColumns) * kPanelColumns;
        const int64_t row = row_floats<F>(head_dim) + width + kLanes + 2 * kGroupKeys;
        return kBlockRows * row + kBlockPanels * kPadded + kLineFloats;
    }

    AttentionPass(const AttentionArgs& args, float* memory)
        : args_(args),
          layout_(CacheLayout::of<F>(args)),
          width_(layout_.chunks * kPanelColumns),
          line_(memory),
          panel_memory_(line_ + kLineFloats) {}

    // `next` is the block that will be taken after this one, or null.
    void attend(const QueryBlock& block, const QueryBlock* next) {
        float* memory = panel_memory_;
        for (int i = 0; i < block.panels(); ++i) memory = begin_panel(block, i, memory);
        const TileRange tiles = tiles_of(args_, block);
        const bool together = block.rows() <= kMaxRows;
        for (int64_t group = tiles.first_group(); group < tiles.end_group(); ++group) {
            for (int i = 0; i < block.panels(); i = together ? block.panels() : i + 1) {
                const int end = together ? block.panels() : i + 1;
                list_visits(i, end, group);
                if (count_ == 0) continue;
                const float* after = nullptr;
                if (group + 1 < tiles.end_group()) {
                    after = layout_.keys(block.request, block.first_head, (group + 1) * kGroupTiles);
                } else if (next) {
                    after = layout_.keys(next->request, next->first_head, tiles_of(args_, *next).first);
                }
                score(block.request, after, together);
                if (together || count_ < kFewestPieces) {
                    sum_values(block.request, after, together);
                } else {
                    sum_panel(block.request, panels_[i]);
                }
            }
        }
        for (int i = 0; i < block.panels(); ++i) finish_panel(block, i);
    }

  private:
    // Of some steps of values with what no row sees made zero: one step, or what a tile register holds.
    static constexpr int64_t kLineFloats = F::kUnitsTogether * kPanelColumns;

    // The rows of a panel of a block: count them, first one in `first`.
    static int panel_rows(const QueryBlock& block, int i, int64_t* first) {
        const int tiles = block.panels_per_head(), t = i % tiles;
        *first = block.first_row + tile_begin(block.rows(), tiles, t);
        return static_cast<int>(block.first_row + tile_begin(block.rows(), tiles, t + 1) - *first);
    }

    // The offset in q and out of a row of a request and KV head.
    int64_t offset(int64_t request, int64_t head, int64_t row) const {
        const int64_t group = args_.query_heads / args_.kv_heads;
        const int64_t token = args_.starts[request] + row / group;
        return (token * args_.query_heads + head * group + row % group) * args_.head_dim;
    }

    float* begin_panel(const QueryBlock& block, int i, float* memory) {
        QueryPanel& panel = panels_[i];
        int64_t first;
        panel.count = panel_rows(block, i, &first);
        panel.head = block.first_head + i / block.panels_per_head();
        panel.begun = false;
        const auto take = [&](int64_t floats) {
            float* taken = memory;
            memory += floats;
            return taken;
        };
        panel.q = take(panel.count * row_floats<F>(args_.head_dim));
        panel.out = take(panel.count * width_);
        panel.sums = take(panel.count * kLanes);
        panel.scores = take(panel.count * kGroupKeys);
        panel.weights = take(panel.count * kGroupKeys);
        panel.peaks = take(kPadded);
        const T* rows[kMaxRows];
        for (int r = 0; r < panel.count; ++r) {
            rows[r] = static_cast<const T*>(args_.q) + offset(block.request, panel.head, first + r);
            find_visible(args_, block.request, first + r, &panel.low[r], &panel.end[r]);
            panel.peaks[r] = kLowestScore;
            store(panel.sums + r * kLanes, zeros());
        }
        pack_rows<F>(rows, panel.count, args_.head_dim, panel.q);
        return memory;
    }

    // Panels [begin, end) and the tiles of a group that they see, in the order in which tiles lie in memory.
    void list_visits(int begin, int end, int64_t group) {
        count_ = 0;
        const int64_t last = (group + 1) * kGroupTiles;
        for (int64_t first = group * kGroupTiles; first < last;) {
            const int64_t block_end = (first / layout_.tiles_per_block + 1) * layout_.tiles_per_block;
            const int64_t stop = smaller(last, block_end);
            for (int p = begin; p < end; ++p) {
                const TileRange seen = panels_[p].tiles();
                for (int64_t tile = larger(first, seen.first); tile < smaller(stop, seen.end); ++tile) {
                    visits_[count_++] = {p, tile};
                }
            }
            first = stop;
        }
    }

    // What the visits of a group read, one stretch of memory after another: the keys of each, then the values of each,
    // then `after` (or, if that is null, what was last).
    const float* stretch(int64_t request, int i, const float* after) const {
        const Visit visit = visits_[i < count_ ? i : smaller(i, 2 * count_ - 1) - count_];
        const int64_t head = panels_[visit.panel].head;
        if (i < count_) return layout_.keys(request, head, visit.tile);
        if (i < 2 * count_ || after == nullptr) return layout_.values(request, head, visit.tile);
        return after + (i - 2 * count_) * layout_.key_steps * kPanelColumns;
    }

    // The product of a tile, while what is `near` is fetched and, unless that is null, what is `far`. Where few rows
    // read memory, that is what they read some stretches later: a block of the cache may end with each stretch, and the
    // processor, which sees no further, would begin each block with a pause. Where a tile takes several passes, only
    // what is `far` is fetched: the processor keeps up with what is near.
    template <int S = 0>
    static MOELENS_INLINE void multiply(const Tile& tile, const float* near, const float* far) {
        if constexpr (kTakesPasses<F>) {
            far ? multiply_tile<F, S>(tile, in_order<F>(far, tile.steps)) : multiply_tile<F, S>(tile, NoFetching());
        } else {
            with_near_cache([&](auto cache) MOELENS_INLINED {
                const auto fetching = in_order<F, cache.kLevel>(near, tile.steps);
                if (far) {
                    multiply_tile<F, S>(tile, NearAndFar<cache.kLevel>{fetching, far});
                } else {
                    multiply_tile<F, S>(tile, fetching);
                }
            });
        }
    }

    void score(int64_t request, const float* after, bool together) {
        const float* keys = stretch(request, 0, after);
        for (int i = 0; i < count_; ++i) {
            const Visit visit = visits_[i];
            QueryPanel& panel = panels_[visit.panel];
            const float* next = stretch(request, i + 1, after);
            float* scores = panel.scores + visit.tile % kGroupTiles * kTileKeys;
            const Tile tile{panel.q, keys, layout_.key_steps, panel.count, scores, kGroupKeys, false};
            multiply(tile, next, together ? stretch(request, i + kFarStretches, after) : nullptr);
            if (!panel.sees_all(visit.tile * kTileKeys)) hide_scores(panel, visit.tile * kTileKeys, scores);
            keys = next;
        }
    }

    // Scores of the tiles that a panel sees of a group become weights.
    void weigh(QueryPanel& panel, TileRange seen) {
        constexpr float kLog2OfE = 1.44269504f;
        const int64_t first = seen.first % kGroupTiles * kTileKeys, end = first + (seen.end - seen.first) * kTileKeys;
        weigh_scores<F>(panel, first, end, args_.scale * kLog2OfE, width_);
    }

    void sum_values(int64_t request, const float* after, bool together) {
        const float* values = stretch(request, count_, after);
        for (int i = 0; i < count_; ++i) {
            const Visit visit = visits_[i];
            const float* next = stretch(request, count_ + i + 1, after);
            QueryPanel& panel = panels_[visit.panel];
            const TileRange seen = panel.tiles().within_group(visit.tile / kGroupTiles);
            if (visit.tile == seen.first) weigh(panel, seen);  // just before its first use: memory rests less at a time
            sum_tile(panel, visit.tile, values, next,
                     together ? stretch(request, count_ + i + kFarStretches, after) : nullptr);
            values = next;
        }
    }

    // The values of all that one panel visits of a group, which its out stays in registers for.
    void sum_panel(int64_t request, QueryPanel& panel) {
        const int64_t first = visits_[0].tile;
        const TileRange seen{first, first + count_};
        weigh(panel, seen);
        const int64_t whole = larger(0, smaller(seen.end, panel.end_key() / kTileKeys) - first);
        const float* a = panel.weights + first % kGroupTiles * (kWeightRow<F> / kGroupTiles);
        const float* tiles[kGroupTiles];
        for (int64_t i = 0; i < whole; ++i) tiles[i] = layout_.values(request, panel.head, first + i);
        const int64_t chunk = layout_.chunk_steps * kPanelColumns;
        for (int64_t i = 0; i < (whole > 0 ? layout_.chunks : 0); ++i) {
            const Tile first_piece{a,      tiles[0],   layout_.chunk_steps, panel.count, panel.out + i * kPanelColumns,
                                   width_, panel.begun};
            multiply_tile<F, kWeightRow<F>>(TileOfPieces{first_piece, tiles, whole}, NoFetching());
            for (int64_t tile = 0; tile < whole; ++tile) tiles[tile] += chunk;
        }
        panel.begun = panel.begun || whole > 0;
        for (int64_t tile = first + whole; tile < seen.end; ++tile) {
            const float* values = layout_.values(request, panel.head, tile);
            sum_tile(panel, tile, values, values, nullptr);
        }
    }

    // Fetches what is `near` and, unless that is null, what is `far`.
    void sum_tile(QueryPanel& panel, int64_t tile, const float* values, const float* near, const float* far) {
        const float* a = panel.weights + tile % kGroupTiles * (kWeightRow<F> / kGroupTiles);
        const int64_t visible = smaller(kTileKeys, panel.end_key() - tile * kTileKeys);
        const int64_t steps = visible / F::kDepth, chunk = layout_.chunk_steps * kPanelColumns;
        if (kUsesTiles<F> && visible < kTileKeys) return sum_last_tile(panel, a, values, visible);
        for (int64_t i = 0; i < layout_.chunks; ++i) {
            float* out = panel.out + i * kPanelColumns;
            const Tile part{a, values + i * chunk, steps, panel.count, out, width_, panel.begun};
            multiply<kWeightRow<F>>(part, near + i * chunk, far ? far + i * chunk : nullptr);
        }
        panel.begun = true;
        if (visible % F::kDepth != 0) sum_last_key(panel, a + steps * F::kUnitsPerStep, values + steps * kPanelColumns);
    }

    // The same of a tile whose keys after the first `visible` may be anything, NaN too. All 32 are summed, of which the
    // weights of the others are zero: a row's sums are those that it would get beside rows that see more.
    void sum_last_tile(QueryPanel& panel, const float* a, const float* values, int64_t visible) {
        const int64_t steps = visible / F::kDepth;
        for (int64_t i = 0; i < layout_.chunks; ++i, values += layout_.chunk_steps * kPanelColumns) {
            memset(line_, 0, kLineFloats * sizeof(float));
            memcpy(line_, values, static_cast<size_t>(steps * kStepBytes));
            if (visible % F::kDepth != 0) copy_firsts(values + steps * kPanelColumns, line_ + steps * kPanelColumns);
            float* out = panel.out + i * kPanelColumns;
            multiply_tile<F, kWeightRow<F>>({a, line_, layout_.chunk_steps, panel.count, out, width_, panel.begun},
                                            NoFetching());
        }
        panel.begun = true;
    }

    // Pairs of which the second is made zero.
    static void copy_firsts(const float* pairs, float* out) {
        uint32_t words[kPanelColumns];
        memcpy(words, pairs, sizeof words);
        for (uint32_t& word : words) word &= 0xffff;
        memcpy(out, words, sizeof words);
    }

    // The last pair of keys when only its first one is visible: the second may be anything, NaN too.
    void sum_last_key(QueryPanel& panel, const float* a, const float* pairs) {
        for (int64_t i = 0; i < layout_.chunks; ++i) {
            copy_firsts(pairs + i * layout_.chunk_steps * kPanelColumns, line_);
            float* out = panel.out + i * kPanelColumns;
            multiply_tile<F, kWeightRow<F>>({a, line_, 1, panel.count, out, width_, true}, NoFetching());
        }
    }

    void finish_panel(const QueryBlock& block, int i) {
        const QueryPanel& panel = panels_[i];
        int64_t first;
        panel_rows(block, i, &first);
        for (int r = 0; r < panel.count; ++r) {
            T* out = static_cast<T*>(args_.out) + offset(block.request, panel.head, first + r);
            const F32 factor = splat(1.0f / sum(load(panel.sums + r * kLanes)));
            for (int64_t d = 0; d < args_.head_dim; d += kLanes) {
                const F32 value = load(panel.out + r * width_ + d) + zeros();  // -0 becomes 0
                store_up_to(out + d, value * factor, args_.head_dim - d);
            }
        }
    }

    struct Visit {
        int panel;
        int64_t tile;
    };

    const AttentionArgs& args_;
    const CacheLayout layout_;
    const int64_t width_;  // of a row of out
    float* const line_;
    float* const panel_memory_;
    QueryPanel panels_[kBlockPanels];
    int count_ = 0;
    Visit visits_[kBlockPanels * kGroupTiles];
};
