// What comes next to be read, prefetched while a tile is multiplied: by each step of its only pass, or, where it takes
// several, by all of them in turn.

// Whether a tile is multiplied in several passes, each over some of its rows and columns.
template <class F>
constexpr bool kTakesPasses = !kUsesTiles<F> && (kTileRows < kMaxRows || kTileVectors * kLanes < kPanelColumns);

constexpr int kCacheLineFloats = 16;  // of a line of the caches

// When prefetches are asked for. Asked for faster than memory gives, some are dropped, and reads of what the caches
// hold wait behind the others. So where the steps of up to kRows rows take less time than their lines from memory, each
// waits for the one before: next() is a zero that is part of the addresses of a step's prefetches, which alone wait for
// it.
#ifdef MOELENS_PACED_ROWS
struct Pace {
    static constexpr int kRows = MOELENS_PACED_ROWS;
    int64_t zero = 0;

    MOELENS_INLINE int64_t next() {  // 12 cycles after the last one
        asm volatile(
            "imul $1, %0, %0\n\t"
            "imul $1, %0, %0\n\t"
            "imul $1, %0, %0\n\t"
            "imul $1, %0, %0"
            : "+r"(zero)
            :
            : "cc");
        return zero;
    }
};
#else
struct Pace {
    static constexpr int kRows = 0;

    MOELENS_INLINE int64_t next() { return 0; }
};
#endif

// What is prefetched while a tile is multiplied in one pass, and never read here: at each step, the line at the front
// of either stream, which then goes on by so many floats. kCache is the cache that it should come to: 1 for what is
// read next, 2 for what is read later.
template <int kCache>
struct Fetching {
    // Without a pace, fewer rows lose more by what is fetched to the second-level cache than they gain.
    static constexpr int kFewestRows = kCache == 1 || Pace::kRows > 0 ? 1 : 3;
    static constexpr int kPacedRows = kCache == 1 ? 0 : Pace::kRows;
    const float *first, *second;
    int64_t first_advance, second_advance;

    // Fetch nothing more, but what is at `p`, which is there already.
    MOELENS_INLINE void rest_at(const float* p) {
        first = second = p;
        first_advance = second_advance = 0;
    }
    MOELENS_INLINE void fetch(int64_t zero) {
        __builtin_prefetch(first + zero, 0, 4 - kCache);
        __builtin_prefetch(second + zero, 0, 4 - kCache);
        first += first_advance;
        second += second_advance;
    }
};

using TwoStreams = Fetching<2>;

// One panel of B, and another, that is read later, to the second-level cache; by default in pieces that lie anywhere,
// which the processor does not fetch by itself.
template <int kCache, int kFewest = 1>
struct NearAndFar : Fetching<kCache> {
    static constexpr int kFewestRows = kFewest;
    const float* far;

    MOELENS_INLINE void rest_at(const float* p) {
        Fetching<kCache>::rest_at(p);
        far = p;
    }
    MOELENS_INLINE void fetch(int64_t zero) {
        Fetching<kCache>::fetch(zero);
        __builtin_prefetch(far + zero, 0, 2);
        __builtin_prefetch(far + zero + kCacheLineFloats, 0, 2);
        far += this->first_advance;
    }
};

// What one of several passes fetches, to the second-level cache: at each step, one or two lines.
template <bool kTwo>
struct LineStream {
    static constexpr int kFewestRows = 1, kPacedRows = 0;
    const float* line;
    int64_t advance;  // floats a step

    MOELENS_INLINE void fetch(int64_t) {
        __builtin_prefetch(line, 0, 2);
        if constexpr (kTwo) __builtin_prefetch(line + kCacheLineFloats, 0, 2);
        line += advance;
    }
};

// Where a tile takes several passes: so many lines, one after another. Each pass fetches its share of them, evenly over
// its steps, for memory would rest during passes that fetch nothing. A share is at most two lines a step, or one where
// there are several passes over the columns; where it is less, steps fetch the same line again, which costs less than
// to count.
struct SharedLines {
    const float* first;
    int64_t count;

    MOELENS_INLINE void rest_at(const float*) { count = 0; }
    // Of the parts [begin, end) of `all`.
    MOELENS_INLINE SharedLines share(int64_t begin, int64_t end, int64_t all) const {
        const int64_t skipped = count * begin / all;
        return {first + skipped * kCacheLineFloats, count * end / all - skipped};
    }
    // By a pass of so many steps; kTwo: it is the only one over the columns.
    template <bool kTwo>
    MOELENS_INLINE LineStream<kTwo> over_steps(int64_t steps) const {
        return {first, count * kCacheLineFloats / larger(1, steps)};
    }
};

struct NoFetching {
    static constexpr int kFewestRows = kMaxRows + 1, kPacedRows = 0;
    MOELENS_INLINE void fetch(int64_t) {}
    MOELENS_INLINE NoFetching share(int64_t, int64_t, int64_t) const { return {}; }
    template <bool>
    MOELENS_INLINE NoFetching over_steps(int64_t) const {
        return {};
    }
};

// So many steps of a panel of B, from front to back.
template <class F, int kCache = 2>
MOELENS_INLINE auto in_order(const float* panel, int64_t steps) {
    if constexpr (kTakesPasses<F>) {
        return SharedLines{panel, 2 * steps};
    } else {
        return Fetching<kCache>{panel, panel + kCacheLineFloats, kPanelColumns, kPanelColumns};
    }
}

// What tile `tile` of `tiles` fetches while all of them pass over a panel: its share of so many steps of the panel that
// comes, and, where it takes one pass, the next rows of A.
template <class F>
MOELENS_INLINE auto share_of_panel(const float* panel, int64_t steps, int64_t tile, int64_t tiles,
                                   [[maybe_unused]] const float* next_rows, [[maybe_unused]] int64_t rows_advance) {
    if constexpr (kTakesPasses<F>) {
        return SharedLines{panel, 2 * steps}.share(tile, tile + 1, tiles);
    } else {
        if (tiles == 1) return in_order<F>(panel, steps);
        const int64_t advance = divide_rounding_up(kPanelColumns, tiles);
        return TwoStreams{panel + smaller(tile * advance, kPanelColumns) * steps, next_rows, advance, rows_advance};
    }
}

// The cache that what is read next should come to, as a type: calls use(CacheLevel<1>()) or use(CacheLevel<2>()).
template <int kCache>
struct CacheLevel {
    static constexpr int kLevel = kCache;
};
template <class Use>
MOELENS_INLINE void with_near_cache(const Use& use) {
    prefetches_to_first_cache() ? use(CacheLevel<1>()) : use(CacheLevel<2>());
}
