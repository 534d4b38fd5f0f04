// sample: one token for each row of logits. A row's result depends on that row alone.
//
// A token's weight is 2^((logit - largest) * slope), so the largest one's is 1. The kept tokens are always the first of
// the order "largest logit first, then lowest id": top_k, top_p and min_p each say how many. Where top_k or top_p cut,
// only a part of the vocabulary is put into that order, and more of it while the cut was not reached.

#include "kernels/sample_order.inl.h"

// A row of logits, in blocks of 64.
struct LogitRow {
    static constexpr int64_t kBlock = 64;
    static_assert(kBlock % kLanes == 0);
    const float* logits;
    int64_t vocab;
    float* block_peaks;  // [blocks]: the largest logit of each block
    double* block_sums;  // [blocks]
    float peak;          // the largest logit, or a NaN if there is any

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

// The `count` first tokens in order, best first, into `order`.
inline void order_tokens(const LogitRow& row, int64_t count, Candidate* order) {
    Selection blocks(order, smaller(count, row.blocks()));
    for (int64_t block = 0; block < row.blocks(); ++block) {
        blocks.offer({row.block_peaks[block], static_cast<int32_t>(block)});
    }
    // As many blocks as tokens are wanted reach the last one's peak, so the wanted tokens do too.
    const float least = count <= row.blocks() ? blocks.last().logit : -INFINITY;
    Selection tokens(order, count);
    for (int64_t block = 0; block < row.blocks(); ++block) {
        if (row.block_peaks[block] < least) continue;
        for (int64_t id = block * row.kBlock; id < smaller(row.vocab, (block + 1) * row.kBlock); ++id) {
            if (row.logits[id] >= least) tokens.offer({row.logits[id], static_cast<int32_t>(id)});
        }
    }
    sort_candidates(order, count, comes_before);
}

// How many of the first tokens are kept, of at most `most`; `order` holds them.
inline int64_t keep_tokens(const LogitRow& row, const Weighing& weigh, int64_t most, double reach, Candidate* order) {
    constexpr int64_t kFirst = 64, kGrowth = 8;
    for (int64_t count = smaller(kFirst, most);; count = smaller(count * kGrowth, most)) {
        order_tokens(row, count, order);
        double before = 0;
        for (int64_t i = 0; i < count; ++i) {
            const float weight = weigh(order[i].logit);
            if (i > 0 && (before >= reach || weight == 0)) return i;
            before += static_cast<double>(weight);
        }
        if (count == most || before >= reach) return count;
    }
}

inline int32_t walk_order(const Weighing& weigh, Candidate* order, int64_t count, float uniform) {
    sort_candidates(order, count, [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
    double total = 0, before = 0;
    for (int64_t i = 0; i < count; ++i) total += static_cast<double>(weigh(order[i].logit));
    const double target = static_cast<double>(uniform) * total;
    int64_t i = 0;
    for (;; ++i) {
        before += static_cast<double>(weigh(order[i].logit));
        if (before > target || i == count - 1) break;
    }
    return order[i].id;
}

inline int32_t sample_row(const SampleArgs& args, int64_t index, LogitRow& row, Candidate* order) {
    row.find_peaks();
    const double temperature = static_cast<double>(args.temperature[index]);
    if (row.peak != row.peak) return -1;
    if (temperature == 0) return static_cast<int32_t>(row.first_peak());
    if (row.peak == INFINITY || row.peak == -INFINITY) return -1;
    const float slope = static_cast<float>(1.4426950408889634 / temperature);
    Weighing weigh{slope, -row.peak * slope, 0};
    if (!(fabsf(weigh.offset) < INFINITY)) return static_cast<int32_t>(row.first_peak());  // as cold as greedy
    weigh.least = args.min_p[index] * weigh(row.peak);
    const bool cut_count = args.top_k[index] > 0 && args.top_k[index] < row.vocab, cut_sum = args.top_p[index] < 1;
    if (!cut_count && !cut_sum) {
        const double total = sum_weights(row, weigh);
        return static_cast<int32_t>(walk_row(row, weigh, static_cast<double>(args.uniform[index]) * total));
    }
    double reach = INFINITY;
    if (cut_sum) reach = static_cast<double>(args.top_p[index]) * sum_weights(row, {slope, weigh.offset, 0});
    const int64_t kept = keep_tokens(row, weigh, cut_count ? args.top_k[index] : row.vocab, reach, order);
    return walk_order(weigh, order, kept, args.uniform[index]);
}

void sample(const Context& context, const SampleArgs& args) {
    const int64_t blocks = divide_rounding_up(args.vocab, LogitRow::kBlock);
    const int64_t bytes = blocks * (sizeof(double) + sizeof(float)) + args.vocab * sizeof(Candidate);
    for (Buffer& memory : context.scratch.local) memory.reserve(bytes + 64);
    run_tasks(context, args.rows, [&](int64_t index, int thread) {
        LogitRow row;
        row.logits = args.logits + index * args.vocab;
        row.vocab = args.vocab;
        row.block_sums = static_cast<double*>(context.scratch.local[thread].data());
        Candidate* order = reinterpret_cast<Candidate*>(row.block_sums + blocks);
        row.block_peaks = reinterpret_cast<float*>(order + args.vocab);
        args.ids[index] = sample_row(args, index, row, order);
    });
}
