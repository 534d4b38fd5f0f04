// Where top_p keeps many tokens: bins of logits find the last one without ordering them all.

constexpr int kBins = 2048;
constexpr float kBinsPerOctave = 64;  // so a token of the last bin has less than 2^-31 of the largest weight

// What one thread needs to sample a row.
struct SampleMemory {
    double* block_sums;
    double* bin_sums;
    Candidate* order;
    float* block_peaks;
    float* masked;  // a row of logits
    int32_t* bin_counts;

    static int64_t bytes(int64_t vocab) {
        const int64_t blocks = divide_rounding_up(vocab, LogitRow::kBlock);
        return blocks * 12 + vocab * 12 + kBins * 12;
    }

    SampleMemory(int64_t vocab, void* memory) {
        const int64_t blocks = divide_rounding_up(vocab, LogitRow::kBlock);
        block_sums = static_cast<double*>(memory);
        bin_sums = block_sums + blocks;
        order = reinterpret_cast<Candidate*>(bin_sums + kBins);
        block_peaks = reinterpret_cast<float*>(order + vocab);
        masked = block_peaks + blocks;
        bin_counts = reinterpret_cast<int32_t*>(masked + vocab);
    }
};

// The bins of a vector of logits; a larger logit is never in a later bin.
MOELENS_INLINE void find_bins(const LogitRow& row, const Weighing& weigh, int64_t i, float* bins) {
    const F32 octaves = (splat(row.peak) - row.load_logits(i)) * splat(weigh.slope);
    store(bins, round_even(min(octaves * splat(kBinsPerOctave), splat(kBins - 1))));
}

inline void fill_bins(const LogitRow& row, const Weighing& weigh, const SampleMemory& memory) {
    memset(memory.bin_sums, 0, kBins * sizeof(double));
    memset(memory.bin_counts, 0, kBins * sizeof(int32_t));
    for (int64_t i = 0; i < row.vocab; i += kLanes) {
        float bins[kLanes], weights[kLanes];
        find_bins(row, weigh, i, bins);
        store(weights, weigh(row.load_logits(i)));
        for (int lane = 0; lane < kLanes && i + lane < row.vocab; ++lane) {
            const int bin = static_cast<int>(bins[lane]);
            memory.bin_sums[bin] += static_cast<double>(weights[lane]);
            ++memory.bin_counts[bin];
        }
    }
}

// Puts the tokens of a bin in order; returns how many they are.
inline int64_t order_bin(const LogitRow& row, const Weighing& weigh, int bin, Candidate* order) {
    int64_t count = 0;
    for (int64_t i = 0; i < row.vocab; i += kLanes) {
        float bins[kLanes];
        find_bins(row, weigh, i, bins);
        for (int lane = 0; lane < kLanes && i + lane < row.vocab; ++lane) {
            if (static_cast<int>(bins[lane]) != bin) continue;
            order[count++] = {row.logits[i + lane], static_cast<int32_t>(i + lane)};
        }
    }
    sort_candidates(order, count, comes_before);
    return count;
}

// Fills memory.masked: the logits of the first tokens, at most `most`, whose weights reach `reach`; -infinity
// elsewhere.
inline void mask_rest(const LogitRow& row, const Weighing& weigh, int64_t most, double reach,
                      const SampleMemory& memory) {
    fill_bins(row, weigh, memory);
    double reached = 0;
    int64_t kept = 0;
    int bin = 0;
    for (; bin < kBins - 1; ++bin) {
        if (reached + memory.bin_sums[bin] >= reach || kept + memory.bin_counts[bin] >= most) break;
        reached += memory.bin_sums[bin];
        kept += memory.bin_counts[bin];
    }
    const int64_t count = order_bin(row, weigh, bin, memory.order);
    int64_t end = 0;
    for (; end < count && kept + end < most && reached < reach; ++end) {
        reached += static_cast<double>(weigh(memory.order[end].logit));
    }
    // All of the bins before are kept; of this one, the tokens before `end`.
    for (int64_t i = 0; i < row.vocab; i += kLanes) {
        float bins[kLanes];
        find_bins(row, weigh, i, bins);
        const F32 kept_logits =
            where_less(load(bins), splat(static_cast<float>(bin)), row.load_logits(i), splat(-INFINITY));
        store_up_to(memory.masked + i, kept_logits, row.vocab - i);
    }
    for (int64_t i = 0; i < end; ++i) memory.masked[memory.order[i].id] = memory.order[i].logit;
}
