// attention: softmax(scale · q·k) · v over a paged cache, for decode and prefill rows alike.
//
// The rows of one request and one KV head (row = token * group + head in group) are cut into panels of at most 12, and
// panels into blocks that pass over the keys once, 256 keys at a time:
//
//   scores = Q · Kᵀ      a product of tiles: 32 keys are the columns, D is summed over
//   weights = 2^(score - largest so far), in base 2; what was summed before is scaled when the largest grows
//   out += weights · V   a product of tiles: 32 elements of D are the columns, keys are summed over
//
// Keys are taken in groups that begin at multiples of 256, whatever the rows. A key that a row does not see has the
// weight 0 and adds ±0 to sums of which the sign of zero is dropped at the end. So a row's bits don't depend on the
// rows beside it, and a key that no row of a panel sees may hold anything, for it is never multiplied.

constexpr int kBlockPanels = 4;

struct QueryBlock {
    int64_t request, head;
    int64_t first_row, end_row;  // of the request's rows for this head

    int panels() const { return static_cast<int>(tile_count(end_row - first_row)); }
};

// The first and last key that the row of a block sees, one past the last.
inline void find_visible(const AttentionArgs& args, const QueryBlock& block, int64_t row, int64_t* low, int64_t* end) {
    const int64_t position = args.cached[block.request] + row / (args.query_heads / args.kv_heads);
    *end = position + 1;
    *low = larger(0, *end - args.window);
}

inline TileRange tiles_of(const AttentionArgs& args, const QueryBlock& block) {
    int64_t low, end, unused;
    find_visible(args, block, block.first_row, &low, &unused);
    find_visible(args, block, block.end_row - 1, &unused, &end);
    return {low / kTileKeys, divide_rounding_up(end, kTileKeys)};
}

// One thread's pass over the keys of a block of panels.
template <class T>
class AttentionPass {
    using F = Format<T>;

  public:
    static int64_t memory_floats(int64_t head_dim) {
        const int64_t width = divide_rounding_up(head_dim, kPanelColumns) * kPanelColumns;
        return 3 * kMaxRows * kGroupKeys + kPanelColumns + kBlockPanels * panel_floats(head_dim, width);
    }

    AttentionPass(const AttentionArgs& args, float* memory)
        : args_(args),
          layout_(CacheLayout::of<F>(args)),
          width_(layout_.chunks * kPanelColumns),
          scores_(memory),
          weights_(reinterpret_cast<T*>(memory + kMaxRows * kGroupKeys)),
          weight_panel_(memory + 2 * kMaxRows * kGroupKeys),
          line_(memory + 3 * kMaxRows * kGroupKeys),
          panel_memory_(line_ + kPanelColumns),
          ahead_(scores_) {}

    // `next` is the block that will be taken after this one, or null; `first`: nothing was fetched for this one.
    void attend(const QueryBlock& block, bool first, const QueryBlock* next) {
        for (int i = 0; i < block.panels(); ++i) begin_panel(block, i);
        const TileRange tiles = tiles_of(args_, block);
        if (first) {
            ahead_.aim(keys(block, tiles.within_group(tiles.first_group())));
            ahead_.fetch_all();
        }
        for (int64_t group = tiles.first_group(); group < tiles.end_group(); ++group) {
            const TileRange range = tiles.within_group(group);
            const TileGroup k = keys(block, range);
            const TileGroup v = layout_.values(args_, block.request, block.head, range);
            TileGroup coming = group + 1 < tiles.end_group() ? keys(block, tiles.within_group(group + 1)) : TileGroup();
            if (coming.count == 0 && next) {
                const TileRange its = tiles_of(args_, *next);
                coming = keys(*next, its.within_group(its.first_group()));
            }
            for (int i = 0; i < block.panels(); ++i) {
                const TileRange part = panels_[i].tiles().within_group(group);
                if (i == 0) ahead_.aim(v);
                if (part.first < part.end) score(panels_[i], k, range, part);
                if (i == 0) ahead_.aim(coming);
                if (part.first < part.end) sum_values(panels_[i], v, range, part);
            }
        }
        for (int i = 0; i < block.panels(); ++i) finish_panel(block, i);
    }

  private:
    static int64_t panel_floats(int64_t head_dim, int64_t width) {
        return kMaxRows * (row_floats<F>(head_dim) + width + kLanes) + 16;
    }

    TileGroup keys(const QueryBlock& block, TileRange range) const {
        return layout_.keys(args_, block.request, block.head, range);
    }

    int64_t panel_row(const QueryBlock& block, int i) const {
        return block.first_row + tile_begin(block.end_row - block.first_row, block.panels(), i);
    }

    // The offset in q and out of a row of the block.
    int64_t offset(const QueryBlock& block, int64_t row) const {
        const int64_t group = args_.query_heads / args_.kv_heads;
        const int64_t token = args_.starts[block.request] + row / group;
        return (token * args_.query_heads + block.head * group + row % group) * args_.head_dim;
    }

    void begin_panel(const QueryBlock& block, int i) {
        QueryPanel& panel = panels_[i];
        const int64_t first = panel_row(block, i);
        panel.count = static_cast<int>(panel_row(block, i + 1) - first);
        panel.begun = false;
        panel.q = panel_memory_ + i * panel_floats(args_.head_dim, width_);
        panel.out = panel.q + kMaxRows * row_floats<F>(args_.head_dim);
        panel.sums = panel.out + kMaxRows * width_;
        panel.peaks = panel.sums + kMaxRows * kLanes;
        const T* rows[kMaxRows];
        for (int r = 0; r < panel.count; ++r) {
            rows[r] = static_cast<const T*>(args_.q) + offset(block, first + r);
            find_visible(args_, block, first + r, &panel.low[r], &panel.end[r]);
            panel.peaks[r] = kLowestScore;
            store(panel.sums + r * kLanes, zeros());
        }
        pack_rows<F>(rows, panel.count, args_.head_dim, panel.q);
    }

    // The weights of tiles `part`, as a panel of A; k holds the keys of tiles `range`.
    void score(QueryPanel& panel, const TileGroup& k, TileRange range, TileRange part) {
        for (int64_t tile = part.first; tile < part.end; ++tile) {
            float* scores = scores_ + (tile - part.first) * kTileKeys;
            multiply_tile<F>({panel.q, k.tiles[tile - range.first], k.steps, panel.count, scores, kGroupKeys, false},
                             ahead_.take(k.steps));
            if (!panel.sees_all(tile * kTileKeys)) hide_scores(panel, tile * kTileKeys, scores);
        }
        constexpr float kLog2OfE = 1.44269504f;
        const int64_t count = (part.end - part.first) * kTileKeys;
        weigh_scores(panel, scores_, count, args_.scale * kLog2OfE, width_, weights_);
        const T* rows[kMaxRows];
        for (int r = 0; r < panel.count; ++r) rows[r] = weights_ + r * kGroupKeys;
        pack_rows<F>(rows, panel.count, count, weight_panel_);
    }

    void sum_values(QueryPanel& panel, const TileGroup& v, TileRange range, TileRange part) {
        const int64_t step_floats = panel.count * F::kUnitsPerStep;
        for (int64_t chunk = 0; chunk < layout_.chunks; ++chunk) {
            float* out = panel.out + chunk * kPanelColumns;
            for (int64_t tile = part.first; tile < part.end; ++tile) {
                const int64_t visible = smaller(kTileKeys, panel.end_key() - tile * kTileKeys);
                const int64_t steps = visible / F::kDepth;
                const float* a = weight_panel_ + (tile - part.first) * layout_.chunk_steps * step_floats;
                const float* b = v.tiles[tile - range.first] + chunk * layout_.chunk_steps * kPanelColumns;
                const bool continued = panel.begun || tile > part.first;
                multiply_tile<F>({a, b, steps, panel.count, out, width_, continued}, ahead_.take(steps));
                if (visible % F::kDepth != 0) {
                    drop_second_keys(b + steps * kPanelColumns);
                    multiply_tile<F>({a + steps * step_floats, line_, 1, panel.count, out, width_, true},
                                     ahead_.take(0));
                }
            }
        }
        panel.begun = true;
    }

    // The last pair of keys when only its first one is visible: the second may be anything, NaN too.
    void drop_second_keys(const float* pairs) {
        uint32_t words[kPanelColumns];
        memcpy(words, pairs, sizeof words);
        for (uint32_t& word : words) word &= 0xffff;
        memcpy(line_, words, sizeof words);
    }

    void finish_panel(const QueryBlock& block, int i) {
        const QueryPanel& panel = panels_[i];
        for (int r = 0; r < panel.count; ++r) {
            T* out = static_cast<T*>(args_.out) + offset(block, panel_row(block, i) + r);
            const F32 factor = splat(1.0f / sum(load(panel.sums + r * kLanes)));
            for (int64_t d = 0; d < args_.head_dim; d += kLanes) {
                const F32 value = load(panel.out + r * width_ + d) + zeros();  // -0 becomes 0
                store_up_to(out + d, value * factor, args_.head_dim - d);
            }
        }
    }

    const AttentionArgs& args_;
    const CacheLayout layout_;
    const int64_t width_;  // of a row of out
    float* const scores_;
    T* const weights_;
    float* const weight_panel_;
    float* const line_;
    float* const panel_memory_;
    Ahead ahead_;
    QueryPanel panels_[kBlockPanels];
};
