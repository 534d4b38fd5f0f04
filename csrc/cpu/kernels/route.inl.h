// route: the experts of each token and their weights, from the router's logits.

// The `active` largest of at most V vectors of logits, largest first, the lower id first among equals: the largest is
// found and taken out, `active` times. Gives up, false, where a logit is not above -infinity, which a taken one
// becomes.
template <int V>
MOELENS_INLINE bool choose_experts_of(const float* logits, int64_t experts, int64_t active, int32_t* ids) {
    const F32 lowest = splat(-INFINITY), minus_count = splat(0.5f - static_cast<float>(experts));
    alignas(64) float lanes[kLanes];
    for (int i = 0; i < kLanes; ++i) lanes[i] = -static_cast<float>(i);
    const F32 minus_lanes = load(lanes);
    F32 left[V], refused = zeros();
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
        const int64_t n = experts - v * kLanes;
        const F32 logit = n > 0 ? load_up_to(logits + v * kLanes, n) : zeros();  // zeros past the end
        refused = where_less(lowest, logit, refused, splat(1.0f));
        left[v] = where_less(minus_lanes - splat(v * kLanes), minus_count, lowest, logit);
    }
    if (largest(refused) > 0) return false;
    for (int64_t a = 0; a < active; ++a) {
        F32 most = left[0], first = lowest;
#pragma GCC unroll 16
        for (int v = 1; v < V; ++v) most = max(most, left[v]);
        const F32 best = splat(largest(most));
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) {
            first = max(first, where_less(left[v], best, lowest, minus_lanes - splat(v * kLanes)));
        }
        const float id = -largest(first);
        const F32 taken = splat(-id);
#pragma GCC unroll 16
        for (int v = 0; v < V; ++v) {
            const F32 minus_id = minus_lanes - splat(v * kLanes);
            left[v] = where_less(minus_id, taken, left[v], where_less(taken, minus_id, left[v], lowest));
        }
        ids[a] = static_cast<int32_t>(id);
    }
    return true;
}

MOELENS_INLINE bool choose_experts_by_vectors(const float* logits, int64_t experts, int64_t active, int32_t* ids) {
    if (experts <= kLanes) return choose_experts_of<1>(logits, experts, active, ids);
    if (experts <= 4 * kLanes) return choose_experts_of<4>(logits, experts, active, ids);
    if (experts <= 8 * kLanes) return choose_experts_of<8>(logits, experts, active, ids);
    return experts <= 16 * kLanes && choose_experts_of<16>(logits, experts, active, ids);
}

// The same whatever the logits hold: ids stay valid and distinct, a NaN counts as the smallest.
MOELENS_INLINE void choose_experts(const float* logits, int64_t experts, int64_t active, int32_t* ids) {
    int64_t kept = 0;
    for (int64_t e = 0; e < experts; ++e) {
        const float logit = logits[e];
        if (kept == active && !(logit > logits[ids[kept - 1]] || logits[ids[kept - 1]] != logits[ids[kept - 1]]))
            continue;
        int64_t at = kept < active ? kept++ : active - 1;
        for (; at > 0; --at) {
            const float above = logits[ids[at - 1]];
            if (!(logit > above || (above != above && logit == logit))) break;
            ids[at] = ids[at - 1];
        }
        ids[at] = static_cast<int32_t>(e);
    }
}

// Σ e^(logit - largest) over all experts, in an order that depends on their number alone.
MOELENS_INLINE float sum_of_exponentials(const float* logits, int64_t experts, float largest_logit) {
    F32 total = zeros();
    for (int64_t e = 0; e < experts; e += kLanes) {
        alignas(64) float terms[kLanes];
        store(terms, exp(load_up_to(logits + e, experts - e) - splat(largest_logit)));
        total = total + load_up_to(terms, experts - e);  // lanes past the end count as zero
    }
    return sum(total);
}

MOELENS_INLINE void divide_by_norm(float* weights, int64_t active, float norm) {
    float total = 0;
    for (int64_t a = 0; a < active; ++a) total += norm == 1.0f ? fabsf(weights[a]) : powf(fabsf(weights[a]), norm);
    const float divisor = norm == 1.0f ? total : powf(total, 1.0f / norm);
    for (int64_t a = 0; a < active; ++a) weights[a] = weights[a] / divisor;
}

// One row, by its logits.
void route_row(const RouteArgs& args, int64_t row, const float* logits) {
    int32_t* ids = args.ids + row * args.active;
    float* weights = args.weights + row * args.active;
    if (!choose_experts_by_vectors(logits, args.experts, args.active, ids)) {
        choose_experts(logits, args.experts, args.active, ids);
    }
    const float best = logits[ids[0]];
    for (int64_t a = 0; a < args.active; a += kLanes) {
        float chosen[kLanes] = {};
        const int64_t n = smaller(kLanes, args.active - a);
        for (int64_t i = 0; i < n; ++i) chosen[i] = logits[ids[a + i]] - best;
        store_up_to(weights + a, exp(load(chosen)), n);
    }
    float total = 0;
    if (args.scoring == Scoring::kSoftmax) {
        total = sum_of_exponentials(logits, args.experts, best);
    } else {
        for (int64_t a = 0; a < args.active; ++a) total += weights[a];
    }
    for (int64_t a = 0; a < args.active; ++a) weights[a] = weights[a] / total;
    if (args.norm != 0) divide_by_norm(weights, args.active, args.norm);
}

void route(const Context& context, const RouteArgs& args) {
    for_rows(context, args.rows, 8 * args.experts,
             [&](int64_t row) { route_row(args, row, args.logits + row * args.experts); });
}
