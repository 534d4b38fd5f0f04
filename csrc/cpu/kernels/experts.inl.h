// experts: for each token, the weighted sum of its chosen experts' gated feed-forward blocks.
//
// Phase 1, tasks of (expert, some rows, some panels): act(gate x) * up x, written as the panels of A that down reads.
// Phase 2, tasks of (group of tokens, 32 columns of the result): down of one expert after another for these columns,
// each added to its tokens' sums. So a token's experts are summed in ascending order of their numbers, and only this
// thread's cache sees the experts' separate results.

template <class T>
struct ExpertsCall {
    using F = Format<T>;

    const ExpertsArgs& args;
    int64_t first_token;  // of the chunk of tokens that is being computed
    ExpertPlan plan;
    GateUpTiling tiling;
    int64_t steps, floats;            // of x's rows
    int64_t down_steps, down_floats;  // of the inner activations' rows
    float* inner;                     // panels of A, [slots] rows
    int32_t* packed;                  // [threads]: the block of rows that a thread has packed, -1: none
};

// Memory cut from one block, each piece aligned to a cache line.
struct Carver {
    char* at;  // null: only count
    size_t bytes = 0;

    template <class P>
    P* take(int64_t count) {
        P* piece = at ? reinterpret_cast<P*>(at + bytes) : nullptr;
        bytes += (static_cast<size_t>(count) * sizeof(P) + 63) / 64 * 64;
        return piece;
    }
};

template <class T>
void carve(Carver& carver, ExpertsCall<T>& call, int64_t most_tasks, int threads) {
    const int64_t slots = call.plan.tokens * call.plan.active;
    call.plan.segments = carver.take<Segment>(call.plan.segment_count);
    call.plan.tasks = carver.take<GateUpTask>(most_tasks);
    call.plan.token_at = carver.take<int32_t>(slots);
    call.plan.score_at = carver.take<float>(slots);
    call.packed = carver.take<int32_t>(threads);
    call.inner = carver.take<float>(slots * call.down_floats);
}

template <class T>
void pack_block(const ExpertsCall<T>& call, const Segment& segment, const Panels& a, float* rows) {
    const T* x = static_cast<const T*>(call.args.x) + call.first_token * call.args.hidden;
    for (int64_t tile = a.first_tile; tile < a.last_tile; ++tile) {
        const int64_t begin = a.begin(tile);
        const int count = static_cast<int>(a.begin(tile + 1) - begin);
        const T* sources[kMaxRows];
        for (int r = 0; r < count; ++r) {
            sources[r] = x + call.plan.token_at[segment.begin + begin + r] * call.args.hidden;
        }
        pack_rows<typename ExpertsCall<T>::F>(sources, count, call.args.hidden,
                                              rows + (begin - a.first_row()) * call.floats);
    }
}

// The words of 16 neighbouring inner activations of one row, into the panel of `count` rows that down reads.
template <class T>
MOELENS_INLINE void put_words(const T* values, int64_t words, int count, float* panel) {
    using U = typename RowUnits<Format<T>>::type;
    for (int64_t u = 0; u < words; ++u) {
        float* at = panel + unit_index<Format<T>>(u, 0, count);
        if (U::kElements == 2) {
            memcpy(at, values + 2 * u, sizeof(float));
        } else {
            *at = widen(values[u]);
        }
    }
}

// sums [16 of gate, 16 of up] of a tile's row -> act(gate) * up, rounded once, as 16 columns of the panel of inner
// activations that the tile's rows become.
template <class T>
struct FinishGateUp {
    static constexpr bool kPrepares = true, kManyPanels = false;
    static constexpr int kHalf = kPanelColumns / 2;
    static constexpr int64_t kWords = kHalf / RowUnits<Format<T>>::type::kElements;  // of a row and panel
    Activation activation;
    int count;      // of the tile's rows
    int64_t words;  // at most kWords
    float* out;     // the first row's first word

    MOELENS_INLINE void fetch() const {  // it may begin within a line
        fetch_to_write(out, larger(kWords, Format<T>::kUnitsTogether) * count * 4 + 60);
    }
    MOELENS_INLINE void prepare(const float* sums, float* divisors) const {
        for (int c = 0; c < kHalf; c += kLanes) {
            store(divisors + c, activation_divisor(activation, load(sums + c)));
        }
    }
    MOELENS_INLINE void operator()(int row, const float* sums, const float* divisors) const {
        T values[kHalf];
        for (int c = 0; c < kHalf; c += kLanes) {
            store(values + c, activate(activation, load(sums + c), load(divisors + c)) * load(sums + kHalf + c));
        }
        if (words == kWords) {  // so that the loop is unrolled
            put_words(values, kWords, count, out + row * Format<T>::kUnitsTogether);
        } else {
            put_words(values, words, count, out + row * Format<T>::kUnitsTogether);
        }
    }
};

template <class T>
void run_gate_up(const Context& context, const ExpertsCall<T>& call) {
    using Finish = FinishGateUp<T>;
    using Unfinished = FinishedBeside<Finish>;
    const int64_t panel_floats = call.steps * kPanelColumns;
    const int threads = context.team.threads();
    run_tasks(context, call.plan.task_count, [&](int64_t index, int thread) {
        const GateUpTask& task = call.plan.tasks[index];
        const Segment& segment = call.plan.segments[task.segment];
        float* sums = static_cast<float*>(context.scratch.local[thread].data());
        float* rows = sums + Unfinished::floats(call.tiling.tiles_per_block);
        Panels a{rows, segment.rows, segment.tiles, task.first_tile, task.last_tile};
        if (call.packed[thread] != task.block) {
            pack_block(call, segment, a, rows);
            call.packed[thread] = task.block;
        }
        a.data -= a.first_row() * call.floats;
        const auto weights = [&](const GateUpTask& of, int64_t panel) {
            const int64_t expert = call.plan.segments[of.segment].expert;
            return static_cast<const float*>(call.args.gate_up) + (expert * call.tiling.panels + panel) * panel_floats;
        };
        const GateUpTask& following = call.plan.following(index, threads);
        Unfinished unfinished(sums);
        for (int64_t panel = task.first_panel; panel < task.last_panel; ++panel) {
            const float* next =
                panel + 1 < task.last_panel ? weights(task, panel + 1) : weights(following, following.first_panel);
            const int64_t first_word = panel * Finish::kWords;
            const auto begin = [&](int64_t row, int64_t rows) MOELENS_INLINED {
                float* inner = call.inner + (segment.begin + row) * call.down_floats;
                const Finish finish{call.args.activation, static_cast<int>(rows),
                                    smaller(Finish::kWords, call.down_floats - first_word),
                                    inner + unit_index<Format<T>>(first_word, 0, rows)};
                finish.fetch();
                return finish;
            };
            multiply_panel<Format<T>>(a, weights(task, panel), call.steps, next, unfinished, begin);
        }
        unfinished.finish_all();
    });
}

// totals [token][32] += score * sums, for a row of sorted slots from `slot` on.
struct FinishDown {
    static constexpr bool kPrepares = false, kManyPanels = false;
    const ExpertPlan* plan;
    int64_t slot;
    float* totals;  // of token 0 of the chunk

    MOELENS_INLINE void operator()(int row, const float* sums) const {
        float* total = totals + plan->token_at[slot + row] * kPanelColumns;
        const F32 score = splat(plan->score_at[slot + row]);
        for (int c = 0; c < kPanelColumns; c += kLanes) store(total + c, fma(score, load(sums + c), load(total + c)));
    }
};

// out [tokens of the group, columns of one panel] = residual + scale * totals [tokens][32].
template <class Out>
void write_totals(const ExpertsArgs& args, int64_t first_token, int64_t tokens, const float* totals, int64_t column) {
    constexpr int64_t kAhead = 12;
    const int64_t columns = smaller(kPanelColumns, args.hidden - column);
    const F32 scale = splat(args.scale);
    for (int64_t t = 0; t < tokens; ++t) {
        const int64_t at = (first_token + t) * args.hidden + column;
        const Out* residual = args.residual ? static_cast<const Out*>(args.residual) + at : nullptr;
        Out* out = static_cast<Out*>(args.out) + at;
        if (t + kAhead < tokens) {
            fetch_to_write(out + kAhead * args.hidden, columns * sizeof(Out));
            if (residual) fetch_to_write(residual + kAhead * args.hidden, columns * sizeof(Out));
        }
        for (int64_t c = 0; c < columns; c += kLanes) {
            F32 y = load(totals + t * kPanelColumns + c);
            y = residual ? fma(y, scale, load_up_to(residual + c, columns - c)) : y * scale;
            store_up_to(out + c, y, columns - c);
        }
    }
}

// The panel that comes `index`-th, such that threads which are equally fast are always at panels far apart: beside the
// lines that a thread writes of its columns, the processor fetches their neighbours, which another would be writing.
MOELENS_INLINE int64_t panel_apart(int64_t index, int64_t panels, int64_t threads) {
    const int64_t range = index % threads;
    return range * (panels / threads) + smaller(range, panels % threads) + index / threads;
}

// The first expert from `expert` on that has rows in a group, or the number of experts.
inline int64_t find_used(const Segment* segments, int64_t experts, int64_t expert) {
    while (expert < experts && segments[expert].rows == 0) ++expert;
    return expert;
}

template <class T>
void run_down(const Context& context, const ExpertsCall<T>& call) {
    const ExpertPlan& plan = call.plan;
    const int64_t experts = call.args.experts, panels = divide_rounding_up(call.args.hidden, kPanelColumns);
    const int64_t threads = context.team.threads(), tasks = plan.groups * panels;
    const int64_t panel_floats = call.down_steps * kPanelColumns;
    const auto segments_of = [&](int64_t index) { return plan.segments + index / panels * experts; };
    const auto panel_of = [&](int64_t index) { return panel_apart(index % panels, panels, threads); };
    const auto weights = [&](int64_t expert, int64_t panel) {
        return static_cast<const float*>(call.args.down) + (expert * panels + panel) * panel_floats;
    };
    run_tasks(context, tasks, [&](int64_t index, int thread) {
        const int64_t group = index / panels, panel = panel_of(index);
        const int64_t first_token = plan.first_token(group), tokens = plan.first_token(group + 1) - first_token;
        const Segment* segments = segments_of(index);
        float* totals = static_cast<float*>(context.scratch.local[thread].data());
        FinishedBeside<FinishDown> unfinished(totals + tokens * kPanelColumns);
        memset(totals, 0, static_cast<size_t>(tokens * kPanelColumns) * sizeof(float));
        const int64_t later = smaller(index + threads, tasks - 1);  // this thread's, if all are equally fast
        const float* after = weights(find_used(segments_of(later), experts, 0), panel_of(later));
        for (int64_t e = find_used(segments, experts, 0); e < experts;) {
            const Segment& segment = segments[e];
            const int64_t following = find_used(segments, experts, e + 1);
            const Panels a{call.inner + segment.begin * call.down_floats, segment.rows, segment.tiles, 0,
                           segment.tiles};
            const float* next = following < experts ? weights(following, panel) : after;
            multiply_panel<Format<T>>(
                a, weights(e, panel), call.down_steps, next, unfinished, [&](int64_t row, int64_t) {
                    return FinishDown{&plan, segment.begin + row, totals - first_token * kPanelColumns};
                });
            e = following;
        }
        unfinished.finish_all();
        const int64_t column = panel * kPanelColumns;
        if (call.args.out_element == call.args.element) {
            write_totals<T>(call.args, call.first_token + first_token, tokens, totals, column);
        } else {
            write_totals<float>(call.args, call.first_token + first_token, tokens, totals, column);
        }
    });
}

// Groups of tokens such that phase 2 has tasks for all threads and the tokens' sums stay in the second-level cache, but
// no more than leave each expert rows enough to be worth reading its weights once more.
int64_t count_groups(const ExpertsArgs& args, int64_t tokens, int threads) {
    constexpr int64_t kTasksPerThread = 24, kFewestRows = 64, kTotalsBytes = (kSmallCache ? 64 : 256) * 1024;
    const int64_t panels = divide_rounding_up(args.hidden, kPanelColumns);
    const int64_t for_threads = divide_rounding_up(kTasksPerThread * threads, panels);
    const int64_t for_cache = divide_rounding_up(tokens * kStepBytes, kTotalsBytes);
    return larger(1, smaller(larger(for_threads, for_cache), tokens * args.active / (kFewestRows * args.experts)));
}

template <class T>
void run_chunk(const Context& context, const ExpertsArgs& args, int64_t first_token, int64_t tokens) {
    using F = Format<T>;
    constexpr int64_t kTasksPerThread = 24, kLeastCost = 128 * 1024;
    const int threads = context.team.threads();
    ExpertsCall<T> call{args,
                        first_token,
                        {},
                        {},
                        steps_of<F>(args.hidden),
                        row_floats<F>(args.hidden),
                        steps_of<F>(args.width),
                        row_floats<F>(args.width),
                        nullptr,
                        nullptr};
    ExpertPlan& plan = call.plan;
    plan.tokens = tokens;
    plan.active = args.active;
    plan.groups = smaller(count_groups(args, tokens, threads), larger(1, tokens));
    plan.segment_count = plan.groups * args.experts;

    GateUpTiling& tiling = call.tiling;
    tiling.panels = divide_rounding_up(args.width, kPanelColumns / 2);
    tiling.panel_bytes = call.steps * kStepBytes;
    tiling.tiles_per_block = larger(kFewestTiles, kRowBytes / (call.floats * kMaxRows * 4));
    const int64_t slots = tokens * args.active, used = smaller(plan.segment_count, slots);
    const int64_t cost = tiling.panels * tiling.panel_bytes * (used + slots / kRowsPerRead);  // at most
    tiling.task_cost = larger(kLeastCost, cost / (kTasksPerThread * threads));
    const int64_t most_tiles = used + slots / kMaxRows, blocks = used + most_tiles / tiling.tiles_per_block;
    const int64_t most_tasks = blocks + 2 * divide_rounding_up(cost, tiling.task_cost);

    Carver count{nullptr};
    carve(count, call, most_tasks, threads);
    Carver carver{static_cast<char*>(context.scratch.shared.reserve(count.bytes))};
    carve(carver, call, most_tasks, threads);
    const int64_t gate_up_floats = FinishedBeside<FinishGateUp<T>>::floats(tiling.tiles_per_block) +
                                   tiling.tiles_per_block * kMaxRows * call.floats;
    const int64_t group_tokens = tokens / plan.groups + 1;
    const int64_t down_floats =
        group_tokens * kPanelColumns + FinishedBeside<FinishDown>::floats(tile_count(group_tokens));
    for (int thread = 0; thread < threads; ++thread) {
        call.packed[thread] = -1;
        context.scratch.local[thread].reserve(larger(gate_up_floats, down_floats) * 4);
    }
    const int64_t first_slot = first_token * args.active;
    sort_slots(args.ids + first_slot, args.scores + first_slot, args.experts, plan);
    cut_gate_up(tiling, plan);
    run_gate_up(context, call);
    run_down(context, call);
}

// Tokens are computed in chunks, so that the inner activations stay near the last-level cache.
template <class T>
void experts_typed(const Context& context, const ExpertsArgs& args) {
    constexpr int64_t kInnerBytes = 32 << 20, kFewestTokens = 512;
    const int64_t token_bytes = larger(1, args.active * row_floats<Format<T>>(args.width) * 4);
    const int64_t chunk = larger(kFewestTokens, kInnerBytes / token_bytes);
    for (int64_t token = 0; token < args.tokens; token += chunk) {
        run_chunk<T>(context, args, token, smaller(chunk, args.tokens - token));
    }
}

void experts(const Context& context, const ExpertsArgs& args) {
    args.element == Element::kBFloat16 ? experts_typed<Bf16>(context, args) : experts_typed<float>(context, args);
}
