// Panels: rows of a matrix gathered and turned so that a product reads them from front to back.

// Words of a row, in the unit that a panel's step is made of.
struct FloatUnits {  // a float32 as it is
    using Element = float;
    static constexpr int kElements = 1;
    static MOELENS_INLINE F32 load_units(const float* p) { return load(p); }
};
struct WidenedUnits {  // a bfloat16 as a float32
    using Element = Bf16;
    static constexpr int kElements = 1;
    static MOELENS_INLINE F32 load_units(const Bf16* p) { return load(p); }
};
struct PairUnits {  // two bfloat16 in one word
    using Element = Bf16;
    static constexpr int kElements = 2;
    static MOELENS_INLINE F32 load_units(const Bf16* p) { return load(reinterpret_cast<const float*>(p)); }
};

template <class F>
struct RowUnits;  // the units of A's panels
template <>
struct RowUnits<Singles> {
    using type = FloatUnits;
};
template <>
struct RowUnits<WidePairs> {
    using type = WidenedUnits;
};
#ifdef MOELENS_DOT_PAIRS
template <>
struct RowUnits<DotPairs> {
    using type = PairUnits;
};
#endif
#ifdef MOELENS_TILES
template <>
struct RowUnits<TilePairs> {
    using type = PairUnits;
};
#endif

template <class Element>
struct ColumnUnits;  // the units of B's panels: weights are stored alike for every ISA
template <>
struct ColumnUnits<float> {
    using type = FloatUnits;
};
template <>
struct ColumnUnits<Bf16> {
    using type = PairUnits;
};

// The units of a row from element k on, zeros past the end.
template <class U>
MOELENS_INLINE F32 load_row_units(const typename U::Element* row, int64_t k, int64_t columns) {
    if (row == nullptr || k >= columns) return zeros();
    if (columns - k >= kLanes * U::kElements) return U::load_units(row + k);
    typename U::Element padded[kLanes * U::kElements] = {};
    memcpy(padded, row + k, static_cast<size_t>(columns - k) * sizeof(padded[0]));
    return U::load_units(padded);
}

// Writes panel[u * stride + r] = unit u of row r, for r < count and u < units. Null rows are zeros.
template <class U>
void write_panel(const typename U::Element* const* rows, int count, int64_t columns, float* panel, int64_t stride,
                 int64_t units) {
    for (int64_t u = 0; u < units; u += kLanes) {
        const int64_t lines = smaller(kLanes, units - u);
        for (int group = 0; group < count; group += kLanes) {
            const int n = static_cast<int>(smaller(kLanes, count - group));
            F32 block[kLanes];
            for (int r = 0; r < kLanes; ++r) {
                block[r] = r < n ? load_row_units<U>(rows[group + r], u * U::kElements, columns) : zeros();
            }
            transpose(block);
            float* out = panel + u * stride + group;
            if (n == kLanes) {
                for (int64_t i = 0; i < lines; ++i) store(out + i * stride, block[i]);
            } else {
                for (int64_t i = 0; i < lines; ++i) store_first(out + i * stride, block[i], n);
            }
        }
    }
}

// --- panels of A
// ------------------------------------------------------------------------------------------------------

// Rows are cut into the fewest tiles of at most kMaxRows rows. Tile t of `rows` starts here:
MOELENS_INLINE int64_t tile_count(int64_t rows) {
    return divide_rounding_up(rows, kMaxRows);
}
MOELENS_INLINE int64_t tile_begin(int64_t rows, int64_t tiles, int64_t t) {
    return kEvenTiles ? t * rows / tiles : smaller(rows, t * kMaxRows);
}

template <class F>
constexpr int64_t steps_of(int64_t k) {
    return divide_rounding_up(k, F::kDepth);
}
// Floats that so many steps of one row take in panels of A.
template <class F>
constexpr int64_t floats_of_steps(int64_t steps) {
    return divide_rounding_up(steps * F::kUnitsPerStep, F::kUnitsTogether) * F::kUnitsTogether;
}
// Floats that one row takes in panels of A.
template <class F>
constexpr int64_t row_floats(int64_t k) {
    return floats_of_steps<F>(steps_of<F>(k));
}
// Where unit u of row r lies in the panel of `count` rows.
template <class F>
constexpr int64_t unit_index(int64_t u, int64_t r, int64_t count) {
    return (u / F::kUnitsTogether * count + r) * F::kUnitsTogether + u % F::kUnitsTogether;
}

// Writes the panel of `count` ≤ kMaxRows rows.
template <class F>
MOELENS_INLINE void pack_rows(const typename F::Element* const* rows, int count, int64_t columns, float* panel) {
    using Units = typename RowUnits<F>::type;
    const int64_t units = row_floats<F>(columns);
    if constexpr (F::kUnitsTogether == 1) {
        write_panel<Units>(rows, count, columns, panel, count, units);
    } else {
        static_assert(F::kUnitsTogether % kLanes == 0);
        for (int r = 0; r < count; ++r) {
            for (int64_t u = 0; u < units; u += kLanes) {
                store(panel + unit_index<F>(u, r, count), load_row_units<Units>(rows[r], u * F::kDepth, columns));
            }
        }
    }
}

// A range of tiles of a packed matrix with `rows` rows: panel after panel, row_floats() floats a row.
struct Panels {
    const float* data;  // of the first row of the matrix
    int64_t rows, tiles;
    int64_t first_tile, last_tile;

    int64_t begin(int64_t tile) const { return tile_begin(rows, tiles, tile); }
    int64_t first_row() const { return begin(first_tile); }
    int64_t row_count() const { return begin(last_tile) - begin(first_tile); }
};

// What should stay in the second-level cache, which has 256 or 512 KiB where there is no AVX-512, else 1 MiB or more:
// the steps of B's panel while all tiles pass over it, and the rows of A while one panel after another passes over
// them, but no fewer tiles than make it worth reading the panels.
constexpr bool kSmallCache = kLanes < 16;
constexpr int64_t kSteps = 2048;
// How far ahead of a single tile B is fetched, but no further than to the same place in the next panel: to the
// first-level cache, or to the second and once more shortly before.
#ifdef MOELENS_TILES
constexpr int64_t kFarSteps = 512;  // 64 KiB
#else
constexpr int64_t kFarSteps = 256;  // 32 KiB
#endif
constexpr int64_t kNearSteps = 32;
// Where a tile takes several passes, each over all that has come: 16 KiB, so that it stays in the first-level cache.
constexpr int64_t kPassSteps = 128;
constexpr int64_t kRowBytes = (kSmallCache ? 192 : 384) * 1024;
constexpr int64_t kFewestTiles = kSmallCache ? 4 : 8;

// Whether a single tile's B had better be left to the processor's own prefetching, where what would be fetched is
// paced: one or two rows of a long stretch of memory, or of one that goes on where this one ends.
MOELENS_INLINE bool leaves_fetching(int rows, const float* b, const float* end, const float* next) {
    constexpr int kFewRows = 2;
    constexpr int64_t kLongFloats = 1024 * kPanelColumns;
    return Pace::kRows > 0 && rows <= kFewRows && (end - b >= kLongFloats || next == end);
}

// Calls multiply(first, end, what to fetch meanwhile) for the steps of a panel of B in parts, while what comes after
// it is fetched, for a tile of so many rows and one pass.
template <class F, class Multiply>
MOELENS_INLINE void fetch_far_ahead(const float* b, int rows, int64_t steps, const float* next,
                                    const Multiply& multiply) {
    const bool rests = leaves_fetching(rows, b, b + steps * kPanelColumns, next);
    const int64_t far = smaller(kFarSteps, steps), near = smaller(kNearSteps, steps);
    int64_t s = 0;
    const auto ahead = [&](int64_t distance) MOELENS_INLINED {
        const int64_t rest = steps - s;
        return distance < rest ? b + (s + distance) * kPanelColumns : next + (distance - rest) * kPanelColumns;
    };
    with_near_cache([&](auto cache) MOELENS_INLINED {
        constexpr bool kInOneGo = kUsesTiles<F> || cache.kLevel == 1;
        while (s < steps) {  // parts end where what is fetched goes on in the next panel
            const int64_t rest = steps - s;
            const int64_t wanted = rest > far ? far : !kInOneGo && rest > near ? near : 0;
            const int64_t left = larger(0, rest - floats_of_steps<F>(rest - wanted) / F::kUnitsPerStep);
            if constexpr (kInOneGo) {
                multiply(s, steps - left, in_order<F, cache.kLevel>(ahead(far), rest - left));
            } else {
                constexpr int kFewest = Fetching<2>::kFewestRows;
                NearAndFar<2, kFewest> coming{in_order<F>(ahead(near), rest - left), ahead(far)};
                if (rests) coming.rest_at(b);
                multiply(s, steps - left, coming);
            }
            s = steps - left;
        }
    });
}

// The same for a tile of several passes, which all find in the cache what was fetched during those over the part
// before.
template <class F, class Multiply>
MOELENS_INLINE void fetch_next_part(const float* b, int64_t steps, const float* next, const Multiply& multiply) {
    const int64_t parts = divide_rounding_up(steps, kPassSteps);
    const auto begin = [&](int64_t part) { return part * steps / parts; };
    for (int64_t part = 0; part < parts; ++part) {
        const int64_t end = begin(part + 1);
        const bool is_last = part + 1 == parts;
        const int64_t coming = is_last ? begin(1) : begin(part + 2) - end;
        multiply(begin(part), end, in_order<F>(is_last ? next : b + end * kPanelColumns, coming));
    }
}

// sums [rows of a tile][32], `stride` apart, = the tile times one panel of B; as multiply_panel of a single tile. What
// is multiplied now hides what is read next; `beside` is done beside the first part.
template <class F, class Beside = NothingBeside>
MOELENS_INLINE void multiply_single_tile(const float* a, int rows, const float* b, int64_t steps, float* sums,
                                         int64_t stride, const float* next, const Beside& beside = {}) {
    const auto multiply = [&](int64_t first, int64_t end, const auto& fetching) MOELENS_INLINED {
        const Tile part{
            a + F::kUnitsPerStep * first * rows, b + first * kPanelColumns, end - first, rows, sums, stride, first > 0};
        first == 0 ? multiply_tile<F>(part, fetching, beside) : multiply_tile<F>(part, fetching);
    };
    if constexpr (kTakesPasses<F>) {
        fetch_next_part<F>(b, steps, next, multiply);
    } else {
        fetch_far_ahead<F>(b, rows, steps, next, multiply);
    }
}

// The lines of so many bytes, to the second-level cache and ready to be written. Must be inlined: GCC takes a function
// that only prefetches for one that does nothing, and drops calls of it. So must lambdas that call it.
MOELENS_INLINE void fetch_to_write(const void* first, int64_t bytes) {
    for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(first) + i, 1, 2);
}

// A product whose sums are taken tile by tile: while one tile is multiplied, the rows of the one before it are
// finished. Where a row is finished by the sums of several panels, that begins when the last of them is multiplied.
//
// Finish is what finishes the rows of a tile: finish(row, its sums, 32 a panel), by one panel unless kManyPanels. A
// processor has only so many instructions under way, so a long chain of them would hold up the multiplications after
// it. Where Finish::kPrepares, its first half is finish.prepare(sums, prepared), and some steps later comes finish(row,
// sums, prepared).
template <class Finish>
class FinishedBeside {
  public:
    // Room for the sums of a range of so many tiles, in floats; `panels` are those that a row is finished by.
    static constexpr int64_t floats(int64_t tiles, int64_t panels = 1) { return (tiles * panels + 2) * kTileFloats; }

    explicit FinishedBeside(float* sums, int64_t panels = 1) : room_(sums), panels_(panels) {}
    FinishedBeside(const FinishedBeside&) = delete;

    // What is done between the steps of the tile that comes after the unfinished one.
    MOELENS_INLINE int parts() const { return rows_ + (Finish::kPrepares && rows_ > 0 ? 1 : 0); }
    MOELENS_INLINE void operator()(int part) const {
        if constexpr (Finish::kPrepares) {
            if (part > 0) finish_(part - 1, sums_of(part - 1), prepared_);
            if (part < rows_) finish_.prepare(sums_of(part), prepared_);
        } else {
            finish_(part, sums_of(part));
        }
    }

    // Where a tile's sums go that is multiplied in one go; not where the unfinished ones are.
    float* next_sums() const { return sums_ == room_ ? room_ + kTileFloats : room_; }
    // Where they go, and stay, if it is multiplied in several.
    float* kept_sums(int64_t tile) const { return room_ + (tile * panels() + 2) * kTileFloats; }
    // Sums of one row to those of the next.
    int64_t stride() const { return panels() * kPanelColumns; }
    int64_t panels() const { return Finish::kManyPanels ? panels_ : 1; }

    // The tile before has been finished. This one has been multiplied.
    void leave(const Finish& finish, int rows, const float* sums) {
        finish_ = finish;
        rows_ = rows;
        sums_ = sums;
    }
    void leave_nothing() { rows_ = 0; }
    // After the last tile.
    void finish_all() {
        for (int part = 0; part < parts(); ++part) (*this)(part);
        leave_nothing();
    }

  private:
    static constexpr int64_t kTileFloats = kMaxRows * kPanelColumns;

    const float* sums_of(int row) const { return sums_ + row * stride(); }

    float* const room_;
    const int64_t panels_;
    Finish finish_{};
    int rows_ = 0;
    const float* sums_ = nullptr;
    mutable float prepared_[Finish::kPrepares ? kPanelColumns : 1];
};

// A range of A times one panel of B, of as many tiles' rows; `next` is the panel that comes after it. Each tile fetches
// its share of what comes, and the rows of the next tile. begin(row, rows), before a tile is multiplied, fetches what
// its rows will be written to and returns what finishes them. The panel is the `index`-th of those that finish a row.
template <class F, class Finish, class Begin>
MOELENS_INLINE void multiply_panel(const Panels& a, const float* b, int64_t steps, const float* next,
                                   FinishedBeside<Finish>& unfinished, const Begin& begin, int64_t index = 0) {
    const int64_t tiles = a.last_tile - a.first_tile, stride = unfinished.stride(), column = index * kPanelColumns;
    const bool is_last = index + 1 == unfinished.panels();
    const bool is_kept = steps > kSteps || Finish::kManyPanels;
    const int64_t row_floats = floats_of_steps<F>(steps);
    if (tiles == 1) {
        const int64_t row = a.first_row();
        const int count = static_cast<int>(a.row_count());
        float* sums = is_kept ? unfinished.kept_sums(0) : unfinished.next_sums();
        const float* rows = a.data + row * row_floats;
        // Many rows that take long to finish; fewer wait for memory anyway, which waits for nothing that comes between.
        if (Finish::kPrepares && count > kMaxRows / 2 && !is_kept) {
            const Finish finish = begin(row, count);
            multiply_single_tile<F>(rows, count, b, steps, sums, stride, next, unfinished);
            return unfinished.leave(finish, count, sums);
        }
        unfinished.finish_all();
        const auto multiply = [&]() MOELENS_INLINED {
            multiply_single_tile<F>(rows, count, b, steps, sums + column, stride, next);
        };
        if (!is_last) return multiply();
        const Finish finish = begin(row, count);
        multiply();
        unfinished.leave(finish, count, sums);
        return unfinished.finish_all();
    }
    for (int64_t s = 0; s < steps; s += kSteps) {
        const int64_t some = smaller(kSteps, steps - s);
        const float* coming = s + kSteps < steps ? b + (s + kSteps) * kPanelColumns : next;
        for (int64_t tile = 0; tile < tiles; ++tile) {
            const int64_t row = a.begin(a.first_tile + tile);
            const int count = static_cast<int>(a.begin(a.first_tile + tile + 1) - row);
            const float* rows = a.data + row * row_floats + F::kUnitsPerStep * s * count;
            const auto share =
                share_of_panel<F>(coming, some, tile, tiles, rows + count * row_floats, F::kUnitsPerStep * count);
            float* sums = is_kept ? unfinished.kept_sums(tile) : unfinished.next_sums();
            const auto multiply = [&]() MOELENS_INLINED {
                multiply_tile<F>({rows, b + s * kPanelColumns, some, count, sums + column, stride, s > 0}, share,
                                 unfinished);
            };
            if (s + some < steps || !is_last) {
                multiply();
                unfinished.leave_nothing();
            } else {
                const Finish finish = begin(row, count);
                multiply();
                unfinished.leave(finish, count, sums);
            }
        }
    }
}
