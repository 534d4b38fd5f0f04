// experts by weights of 8-bit whole numbers: as experts, but rows are quantised before each of the two products, by
// phases of their own: x before gate and up, and the inner activations, which a row needs all of, before down.

template <class T>
struct ExpertsInt8Call {
    const ExpertsArgs& args;
    int64_t first_token;  // of the chunk of tokens that is being computed
    ExpertPlan plan;
    GateUpTiling tiling;
    QuantizedRows x;      // [tokens]
    T* inner;             // [sorted slots, width]
    QuantizedRows slots;  // the inner activations' scales and offsets; the numbers themselves lie in `panels`
    float* panels;        // panels of A, a row per sorted slot
    int32_t* packed;      // [threads]: the block of rows that a thread has packed, -1: none
};

template <class T>
void carve(Carver& carver, ExpertsInt8Call<T>& call, int64_t most_tasks, int threads) {
    const int64_t slots = call.plan.tokens * call.plan.active;
    call.plan.segments = carver.take<Segment>(call.plan.segment_count);
    call.plan.tasks = carver.take<GateUpTask>(most_tasks);
    call.plan.token_at = carver.take<int32_t>(slots);
    call.plan.score_at = carver.take<float>(slots);
    call.packed = carver.take<int32_t>(threads);
    call.x = carve_quantized(carver, call.plan.tokens, call.args.hidden);
    call.inner = carver.take<T>(slots * call.args.width);
    const int64_t groups = group_count(call.args.width);
    call.slots = {nullptr, carver.take<float>(slots * groups), carver.take<int32_t>(slots * groups), 0, groups};
    call.panels = carver.take<float>(slots * row_floats<Quads>(call.args.width));
}

template <class T>
void pack_block(const ExpertsInt8Call<T>& call, const Segment& segment, const Panels& a, float* rows) {
    for (int64_t tile = a.first_tile; tile < a.last_tile; ++tile) {
        const int64_t begin = a.begin(tile);
        const int count = static_cast<int>(a.begin(tile + 1) - begin);
        const int8_t* sources[kMaxRows];
        for (int r = 0; r < count; ++r) {
            sources[r] = call.x.data + call.plan.token_at[segment.begin + begin + r] * call.x.stride;
        }
        pack_rows<Quads>(sources, count, call.args.hidden,
                         rows + (begin - a.first_row()) * row_floats<Quads>(call.args.hidden));
    }
}

// sums [16 of gate, 16 of up] of a row -> act(gate) * up, rounded once, as columns 16 * panel … of the inner
// activations from `slot` on.
template <class T>
struct FinishGateUpInt8 {
    const ExpertsInt8Call<T>& call;
    int64_t slot, panel;

    MOELENS_INLINE void operator()(int row, const float* sums) const {
        constexpr int kHalf = kPanelColumns / 2;
        const int64_t first = panel * kHalf, columns = smaller(kHalf, call.args.width - first);
        T* out = call.inner + (slot + row) * call.args.width + first;
        for (int64_t c = 0; c < columns; c += kLanes) {
            const F32 gate = load(sums + c), divisor = activation_divisor(call.args.activation, gate);
            const F32 y = activate(call.args.activation, gate, divisor) * load(sums + kHalf + c);
            store_up_to(out + c, y, columns - c);
        }
    }
};

template <class T>
void run_gate_up(const Context& context, const ExpertsInt8Call<T>& call) {
    const int64_t steps = steps_of<Quads>(call.args.hidden), panel_floats = quad_panel_floats(call.args.hidden);
    const int threads = context.team.threads();
    run_tasks(context, call.plan.task_count, [&](int64_t index, int thread) {
        const GateUpTask& task = call.plan.tasks[index];
        const Segment& segment = call.plan.segments[task.segment];
        float* rows = static_cast<float*>(context.scratch.local[thread].data());
        Panels a{rows, segment.rows, segment.tiles, task.first_tile, task.last_tile};
        if (call.packed[thread] != task.block) {
            pack_block(call, segment, a, rows);
            call.packed[thread] = task.block;
        }
        a.data -= a.first_row() * row_floats<Quads>(call.args.hidden);
        const auto weights = [&](const GateUpTask& of, int64_t panel) {
            const int64_t expert = call.plan.segments[of.segment].expert;
            return static_cast<const float*>(call.args.gate_up) + (expert * call.tiling.panels + panel) * panel_floats;
        };
        const GateUpTask& following = call.plan.following(index, threads);
        for (int64_t panel = task.first_panel; panel < task.last_panel; ++panel) {
            const float* next =
                panel + 1 < task.last_panel ? weights(task, panel + 1) : weights(following, following.first_panel);
            multiply_quad_panel(
                a, call.x, [&](int64_t row) { return call.plan.token_at[segment.begin + row]; }, weights(task, panel),
                steps, next, [&](int64_t row) { return FinishGateUpInt8<T>{call, segment.begin + row, panel}; });
        }
    });
}

// The inner activations of some tiles of a segment, quantised, as the panels that down reads.
template <class T>
void quantize_inner(const ExpertsInt8Call<T>& call, const Segment& segment, int64_t tile, int8_t* scratch) {
    const int64_t width = call.args.width, begin = segment.begin + tile_begin(segment.rows, segment.tiles, tile);
    const int count = static_cast<int>(segment.begin + tile_begin(segment.rows, segment.tiles, tile + 1) - begin);
    const int64_t groups = call.slots.groups;
    const QuantizedRows rows{scratch, call.slots.scales + begin * groups, call.slots.offsets + begin * groups,
                             quantized_stride(width), groups};
    const int8_t* sources[kMaxRows];
    for (int r = 0; r < count; ++r) {
        quantize_row(call.inner + (begin + r) * width, width, r, rows);
        sources[r] = scratch + r * rows.stride;
    }
    pack_rows<Quads>(sources, count, width, call.panels + begin * row_floats<Quads>(width));
}

template <class T>
void run_quantize_inner(const Context& context, const ExpertsInt8Call<T>& call) {
    constexpr int64_t kTilesPerTask = 4;
    const ExpertPlan& plan = call.plan;
    int64_t most = 1;
    for (int64_t s = 0; s < plan.segment_count; ++s) most = larger(most, plan.segments[s].tiles);
    const int64_t parts = divide_rounding_up(most, kTilesPerTask);
    run_tasks(context, plan.segment_count * parts, [&](int64_t index, int thread) {
        const Segment& segment = plan.segments[index / parts];
        const int64_t part = index % parts;
        int8_t* scratch = static_cast<int8_t*>(context.scratch.local[thread].data());
        const int64_t end = (part + 1) * segment.tiles / parts;
        for (int64_t tile = part * segment.tiles / parts; tile < end; ++tile) {
            quantize_inner(call, segment, tile, scratch);
        }
    });
}

template <class T>
void run_down(const Context& context, const ExpertsInt8Call<T>& call) {
    const ExpertPlan& plan = call.plan;
    const int64_t experts = call.args.experts, panels = divide_rounding_up(call.args.hidden, kPanelColumns);
    const int64_t steps = steps_of<Quads>(call.args.width), panel_floats = quad_panel_floats(call.args.width);
    const float* weights = static_cast<const float*>(call.args.down);
    run_tasks(context, plan.groups * panels, [&](int64_t index, int thread) {
        const int64_t group = index / panels, panel = panel_apart(index % panels, panels, context.team.threads());
        const int64_t first_token = plan.first_token(group), tokens = plan.first_token(group + 1) - first_token;
        const Segment* segments = plan.segments + group * experts;
        float* totals = static_cast<float*>(context.scratch.local[thread].data());
        memset(totals, 0, static_cast<size_t>(tokens * kPanelColumns) * sizeof(float));
        for (int64_t e = 0; e < experts; ++e) {
            const Segment& segment = segments[e];
            if (segment.rows == 0) continue;
            int64_t following = e + 1;
            while (following < experts && segments[following].rows == 0) ++following;
            if (following == experts) following = e;
            const float* b = weights + (e * panels + panel) * panel_floats;
            const float* next = weights + (following * panels + panel) * panel_floats;
            const Panels a{call.panels + segment.begin * row_floats<Quads>(call.args.width), segment.rows,
                           segment.tiles, 0, segment.tiles};
            multiply_quad_panel(
                a, call.slots, [&](int64_t row) { return segment.begin + row; }, b, steps, next,
                [&](int64_t row) {
                    return FinishDown{&plan, segment.begin + row, totals - first_token * kPanelColumns};
                });
        }
        const int64_t column = panel * kPanelColumns;
        if (call.args.out_element == call.args.element) {
            write_totals<T>(call.args, call.first_token + first_token, tokens, totals, column);
        } else {
            write_totals<float>(call.args, call.first_token + first_token, tokens, totals, column);
        }
    });
}

template <class T>
void run_int8_chunk(const Context& context, const ExpertsArgs& args, int64_t first_token, int64_t tokens) {
    constexpr int64_t kTasksPerThread = 24, kLeastCost = 128 * 1024;
    const int threads = context.team.threads();
    ExpertsInt8Call<T> call{args, first_token, {}, {}, {}, nullptr, {}, nullptr, nullptr};
    ExpertPlan& plan = call.plan;
    plan.tokens = tokens;
    plan.active = args.active;
    plan.groups = smaller(count_groups(args, tokens, threads), larger(1, tokens));
    plan.segment_count = plan.groups * args.experts;

    GateUpTiling& tiling = call.tiling;
    const int64_t floats = row_floats<Quads>(args.hidden);
    tiling.panels = divide_rounding_up(args.width, kPanelColumns / 2);
    tiling.panel_bytes = quad_panel_floats(args.hidden) * 4;
    tiling.tiles_per_block = larger(kFewestTiles, kRowBytes / (floats * kMaxRows * 4));
    const int64_t slots = tokens * args.active, used = smaller(plan.segment_count, slots);
    const int64_t cost = tiling.panels * tiling.panel_bytes * (used + slots / kRowsPerRead);  // at most
    tiling.task_cost = larger(kLeastCost, cost / (kTasksPerThread * threads));
    const int64_t most_tiles = used + slots / kMaxRows, blocks = used + most_tiles / tiling.tiles_per_block;
    const int64_t most_tasks = blocks + 2 * divide_rounding_up(cost, tiling.task_cost);

    Carver count{nullptr};
    carve(count, call, most_tasks, threads);
    Carver carver{static_cast<char*>(context.scratch.shared.reserve(count.bytes))};
    carve(carver, call, most_tasks, threads);
    const int64_t gate_up_bytes = tiling.tiles_per_block * kMaxRows * floats * 4;
    const int64_t down_bytes = (tokens / plan.groups + 1) * kPanelColumns * 4;  // totals
    const int64_t inner_bytes = kMaxRows * quantized_stride(args.width);
    for (int thread = 0; thread < threads; ++thread) {
        call.packed[thread] = -1;
        context.scratch.local[thread].reserve(larger(larger(gate_up_bytes, down_bytes), inner_bytes));
    }
    const int64_t first_slot = first_token * args.active;
    sort_slots(args.ids + first_slot, args.scores + first_slot, args.experts, plan);
    cut_gate_up(tiling, plan);
    quantize_rows(context, static_cast<const T*>(args.x) + first_token * args.hidden, tokens, args.hidden, call.x);
    run_gate_up(context, call);
    run_quantize_inner(context, call);
    run_down(context, call);
}

template <class T>
void experts_int8_typed(const Context& context, const ExpertsArgs& args) {
    constexpr int64_t kInnerBytes = 32 << 20, kFewestTokens = 512;
    const int64_t row_bytes = row_floats<Quads>(args.width) * 4 + args.width * static_cast<int64_t>(sizeof(T));
    const int64_t chunk = larger(kFewestTokens, kInnerBytes / larger(1, args.active * row_bytes));
    for (int64_t token = 0; token < args.tokens; token += chunk) {
        run_int8_chunk<T>(context, args, token, smaller(chunk, args.tokens - token));
    }
}

void experts_int8(const Context& context, const ExpertsArgs& args) {
    args.element == Element::kBFloat16 ? experts_int8_typed<Bf16>(context, args)
                                       : experts_int8_typed<float>(context, args);
}
