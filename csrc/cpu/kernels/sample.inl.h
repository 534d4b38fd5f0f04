// sample: one token for each row of logits. A row's result depends on that row alone.
//
// A token's weight is 2^((logit - largest) * slope), so the largest one's is 1. The kept tokens are always the first of
// the order "largest logit first, then lowest id": min_p, top_k and top_p each say how many. Where they are few, these
// are found and ordered; where top_p keeps many, bins of logits tell which bin the last one is in, and that is ordered.

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

// How many of the first tokens are kept, of at most `count`, which `order` holds; `reached` is their sum of weights.
inline int64_t keep_first(const Weighing& weigh, int64_t count, double reach, const Candidate* order, double* reached) {
    *reached = 0;
    for (int64_t i = 0; i < count; ++i) {
        const float weight = weigh(order[i].logit);
        if (i > 0 && (*reached >= reach || weight == 0)) return i;
        *reached += static_cast<double>(weight);
    }
    return count;
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

// The token that a uniform number falls on when all weights count.
inline int32_t draw(const LogitRow& row, const Weighing& weigh, float uniform) {
    const double total = sum_weights(row, weigh);
    return static_cast<int32_t>(walk_row(row, weigh, static_cast<double>(uniform) * total));
}

// Draws from the first tokens, at most `most`, whose weights reach the share `top_p` of all that `most` lets through.
inline int32_t draw_cut(LogitRow& row, const Weighing& weigh, int64_t most, float top_p, float uniform,
                        const SampleMemory& memory) {
    constexpr int64_t kFew = 64, kSorted = 4096;
    if (top_p < 1 && most > kSorted && most < row.vocab) {  // too many to order: mask the others to know the sum
        mask_rest(row, weigh, most, INFINITY, memory);
        row.logits = memory.masked;
        row.find_peaks();
        most = row.vocab;
    }
    const int64_t count = most <= kSorted ? most : smaller(most, kFew);
    order_tokens(row, count, memory.order);
    double reach = INFINITY, reached;
    if (top_p < 1) {
        if (count < most) {
            reach = sum_weights(row, weigh);
        } else {
            keep_first(weigh, count, INFINITY, memory.order, &reach);
        }
        reach *= static_cast<double>(top_p);
    }
    const int64_t kept = keep_first(weigh, count, reach, memory.order, &reached);
    if (count == most || kept < count || reached >= reach) return walk_order(weigh, memory.order, kept, uniform);
    mask_rest(row, weigh, most, reach, memory);
    row.logits = memory.masked;
    return draw(row, weigh, uniform);
}

inline int32_t sample_row(const SampleArgs& args, int64_t index, LogitRow& row, const SampleMemory& memory) {
    row.find_peaks();
    const double temperature = static_cast<double>(args.temperature[index]);
    if (!(fabsf(row.peak) < INFINITY)) return -1;
    if (temperature == 0) return static_cast<int32_t>(row.first_peak());
    const float slope = static_cast<float>(1.4426950408889634 / temperature), uniform = args.uniform[index];
    Weighing weigh{slope, -row.peak * slope, 0};
    if (!(fabsf(weigh.offset) < INFINITY)) return static_cast<int32_t>(row.first_peak());  // as cold as greedy
    weigh.least = args.min_p[index] * weigh(row.peak);
    const bool cut_count = args.top_k[index] > 0 && args.top_k[index] < row.vocab;
    if (!cut_count && args.top_p[index] >= 1) return draw(row, weigh, uniform);
    return draw_cut(row, weigh, cut_count ? args.top_k[index] : row.vocab, args.top_p[index], uniform, memory);
}

void sample(const Context& context, const SampleArgs& args) {
    const int64_t bytes = SampleMemory::bytes(args.vocab);
    for (Buffer& memory : context.scratch.local) memory.reserve(bytes);
    run_tasks(context, args.rows, [&](int64_t index, int thread) {
        const SampleMemory memory(args.vocab, context.scratch.local[thread].data());
        LogitRow row{args.logits + index * args.vocab, args.vocab, memory.block_peaks, memory.block_sums, 0};
        args.ids[index] = sample_row(args, index, row, memory);
    });
}
