// A row of logits, the weights of its tokens, and the walk over them.

// A row of logits, in blocks of 64.
struct LogitRow {
    static constexpr int64_t kBlock = 64;
    static_assert(kBlock % kLanes == 0);
    const float* logits;
    int64_t vocab;
    float* block_peaks;  // [blocks]: the largest logit of each block
    double* block_sums;  // [blocks]
    float peak;          // the largest logit, or a NaN if there is any; find_peaks() sets it

    int64_t blocks() const { return divide_rounding_up(vocab, kBlock); }

    // Past the end there is no weight.
    F32 load_logits(int64_t i) const {
        if (vocab - i >= kLanes) return load(logits + i);
        float padded[kLanes];
        for (int lane = 0; lane < kLanes; ++lane) padded[lane] = i + lane < vocab ? logits[i + lane] : -INFINITY;
        return load(padded);
    }

    void find_peaks() {
        F32 broken = zeros();  // a NaN stays one; +infinity may come too
        peak = -INFINITY;
        for (int64_t block = 0; block < blocks(); ++block) {
            F32 most = splat(-INFINITY);
            for (int64_t i = block * kBlock; i < smaller(vocab, (block + 1) * kBlock); i += kLanes) {
                const F32 x = load_logits(i);
                most = max(x, most);
                broken = broken + where_less(x, splat(INFINITY), zeros(), x);
            }
            block_peaks[block] = largest(most);
            if (block_peaks[block] > peak) peak = block_peaks[block];
        }
        const float check = sum(broken);
        if (check != check) peak = check;
    }

    int64_t first_peak() const {
        int64_t id = 0;
        while (block_peaks[id / kBlock] != peak) id += kBlock;
        while (logits[id] != peak) ++id;
        return id;
    }
};

// The weights of a row's tokens; those below `least` count as 0.
struct Weighing {
    float slope, offset, least;

    F32 operator()(F32 logits) const {
        const F32 weight = exp2(fma(logits, splat(slope), splat(offset)));
        return where_less(weight, splat(least), zeros(), weight);
    }
    float operator()(float logit) const {
        float lanes[kLanes];
        store(lanes, (*this)(splat(logit)));
        return lanes[0];
    }
};

// Fills row.block_sums; returns their sum.
inline double sum_weights(const LogitRow& row, const Weighing& weigh) {
    double total = 0;
    for (int64_t block = 0; block < row.blocks(); ++block) {
        F32 lanes = zeros();
        for (int64_t i = block * row.kBlock; i < smaller(row.vocab, (block + 1) * row.kBlock); i += kLanes) {
            lanes = lanes + weigh(row.load_logits(i));
        }
        row.block_sums[block] = static_cast<double>(sum(lanes));
        total += row.block_sums[block];
    }
    return total;
}

// The first token at which the sum of weights exceeds `target`, which is less than the sum of all.
inline int64_t walk_row(const LogitRow& row, const Weighing& weigh, double target) {
    int64_t block = 0, found = 0;
    double before = 0;
    for (; block < row.blocks(); before += row.block_sums[block++]) {
        if (before + row.block_sums[block] > target) break;
    }
    // The block's own sum was rounded in another order: its last token that has a weight stands for what is missing.
    for (int64_t id = block * row.kBlock; id < smaller(row.vocab, (block + 1) * row.kBlock); ++id) {
        const float weight = weigh(row.logits[id]);
        if (weight > 0) found = id;
        before += static_cast<double>(weight);
        if (before > target) break;
    }
    return found;
}
