// A panel of at most kMaxRows query rows of one request and KV head on its way over the keys, and the softmax of its
// scores.

constexpr float kLowestScore = -1e30f;  // finite, so that a row that has seen nothing yet makes no NaN

constexpr int kPadded = divide_rounding_up(kMaxRows, kLanes) * kLanes;

struct QueryPanel {
    int count;
    int64_t head;
    int64_t low[kMaxRows], end[kMaxRows];  // row r sees the keys [low[r], end[r]); neither ever falls from row to row
    bool begun;                            // out holds something
    float* q;                              // a panel of A
    float* out;                            // [count][chunks * 32], not yet divided by the sums
    float* sums;                           // [count][kLanes]: lane by lane, the weights so far
    float* peaks;                          // [kPadded]: the largest scores so far
    float* scores;                         // [count][256], of one group of keys
    float* weights;                        // [count][kWeightRow], of the same keys

    int64_t end_key() const { return end[count - 1]; }
    TileRange tiles() const { return {low[0] / kTileKeys, divide_rounding_up(end_key(), kTileKeys)}; }
    // Whether every row sees all of a tile.
    bool sees_all(int64_t first_key) const { return low[count - 1] <= first_key && first_key + kTileKeys <= end[0]; }
};

constexpr float kKeyNumbers[kTileKeys] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                                          16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};

// Gives -infinity to the scores of keys that a row does not see, whatever was there.
inline void hide_scores(const QueryPanel& panel, int64_t first_key, float* scores) {
    for (int r = 0; r < panel.count; ++r) {
        const F32 low = splat(static_cast<float>(larger(0, panel.low[r] - first_key)));
        const F32 end = splat(static_cast<float>(larger(0, panel.end[r] - first_key)));
        for (int i = 0; i < kTileKeys; i += kLanes) {
            const F32 key = load(kKeyNumbers + i), hidden = splat(-INFINITY);
            float* at = scores + r * kGroupKeys + i;
            store(at, where_less(key, low, hidden, where_less(key, end, load(at), hidden)));
        }
    }
}

inline void scale_out(const QueryPanel& panel, const float* factors, int64_t width) {
    for (int r = 0; r < panel.count; ++r) {
        if (factors[r] == 1.0f) continue;
        float* out = panel.out + r * width;
        for (int64_t i = 0; i < width; i += kLanes) store(out + i, load(out + i) * splat(factors[r]));
    }
}

// Weights of a group of keys as rows of A: each row in one piece, in the form that the format F multiplies.
template <class F>
constexpr int kWeightRow = kGroupKeys / F::kDepth * F::kUnitsPerStep;  // in floats

MOELENS_INLINE void store_weights(Singles, float* row, int64_t key, F32 weights) {
    store(row + key, weights);
}
MOELENS_INLINE void store_weights(WidePairs, float* row, int64_t key, F32 weights) {
    Bf16 rounded[kLanes];
    store(rounded, weights);
    store(row + key, load(rounded));
}
#if defined(MOELENS_DOT_PAIRS) || defined(MOELENS_TILES)
MOELENS_INLINE void store_weights(Pairs, float* row, int64_t key, F32 weights) {
    store(reinterpret_cast<Bf16*>(row) + key, weights);
}
#endif

// Turns the scores of keys [first, end) of a group into weights, relative to the panel's new peaks; what the panel
// summed before is scaled to them. `slope` turns a score into a power of two.
template <class F>
void weigh_scores(QueryPanel& panel, int64_t first, int64_t end, float slope, int64_t width) {
    float factors[kPadded] = {};
    for (int r = 0; r < panel.count; ++r) {
        const float before = panel.peaks[r];
        F32 peak = splat(before);
        for (int64_t key = first; key < end; key += kLanes) peak = max(load(panel.scores + r * kGroupKeys + key), peak);
        panel.peaks[r] = largest(peak);
        factors[r] = (before - panel.peaks[r]) * slope;
    }
    for (int r = 0; r < panel.count; r += kLanes) store(factors + r, exp2(load(factors + r)));
    if (panel.begun) scale_out(panel, factors, width);
    for (int r = 0; r < panel.count; ++r) {
        const F32 offset = splat(-panel.peaks[r] * slope);
        F32 sum = load(panel.sums + r * kLanes) * splat(factors[r]);
        for (int64_t key = first; key < end; key += kLanes) {
            const F32 weight = exp2(fma(load(panel.scores + r * kGroupKeys + key), splat(slope), offset));
            sum = sum + weight;
            store_weights(F(), panel.weights + r * kWeightRow<F>, key, weight);
        }
        store(panel.sums + r * kLanes, sum);
    }
}
