// linear by weights of 8-bit whole numbers: rows are quantised first, then all is as in linear.

template <class T>
void quantize_rows(const Context& context, const T* x, int64_t rows, int64_t columns, const QuantizedRows& out) {
    for_rows(context, rows, columns, [&](int64_t row) { quantize_row(x + row * columns, columns, row, out); });
}

// Takes memory for so many rows of so many columns.
MOELENS_INLINE QuantizedRows carve_quantized(Carver& carver, int64_t rows, int64_t columns) {
    const int64_t stride = quantized_stride(columns);
    const int64_t groups = group_count(columns);
    return {carver.take<int8_t>(rows * stride), carver.take<float>(rows * groups), carver.take<int32_t>(rows * groups),
            stride, groups};
}

struct LinearInt8Call {
    QuantizedRows rows;
    int64_t* packed;  // [threads]: the row block whose panels the thread holds, -1: none
};

MOELENS_INLINE void carve(Carver& carver, LinearInt8Call& call, const LinearArgs& args, int threads) {
    call.packed = carver.take<int64_t>(threads);
    call.rows = carve_quantized(carver, args.rows, args.inner);
}

MOELENS_INLINE void pack_quantized(const QuantizedRows& quantized, int64_t columns, const Panels& a, float* rows) {
    for (int64_t tile = a.first_tile; tile < a.last_tile; ++tile) {
        const int8_t* sources[kMaxRows];
        const int count = static_cast<int>(a.begin(tile + 1) - a.begin(tile));
        for (int r = 0; r < count; ++r) sources[r] = quantized.data + (a.begin(tile) + r) * quantized.stride;
        pack_rows<Quads>(sources, count, columns, rows + (a.begin(tile) - a.first_row()) * row_floats<Quads>(columns));
    }
}

template <class T, class Out>
void linear_int8_typed(const Context& context, const LinearArgs& args) {
    if (args.rows == 0 || args.columns == 0) return;
    const int threads = context.team.threads();
    const LinearTiling tiling = tile_linear<Quads>(args, threads);
    const int64_t steps = steps_of<Quads>(args.inner), floats = row_floats<Quads>(args.inner);
    const int64_t panel_floats = quad_panel_floats(args.inner);
    const int64_t block_rows = tiling.tiles_per_block * kMaxRows;
    LinearInt8Call call;
    Carver count{nullptr};
    carve(count, call, args, threads);
    Carver carver{static_cast<char*>(context.scratch.shared.reserve(count.bytes))};
    carve(carver, call, args, threads);
    for (int thread = 0; thread < threads; ++thread) {
        call.packed[thread] = -1;
        context.scratch.local[thread].reserve(block_rows * floats * 4);
    }
    quantize_rows(context, static_cast<const T*>(args.x), args.rows, args.inner, call.rows);
    run_tasks(context, tiling.task_count(), [&](int64_t index, int thread) {
        const auto [block, part] = tiling.task(index);
        float* rows = static_cast<float*>(context.scratch.local[thread].data());
        const Panels a = tiling.rows_of(block, args.rows, rows, floats);
        if (call.packed[thread] != block) {
            pack_quantized(call.rows, args.inner, a, rows);
            call.packed[thread] = block;
        }
        const auto weights = [&](int64_t panel) {
            return static_cast<const float*>(args.weight) + panel * panel_floats;
        };
        const int64_t end = tiling.last_panel(part);
        for (int64_t panel = tiling.first_panel(part); panel < end; ++panel) {
            const int64_t next = panel + 1 < end ? panel + 1 : tiling.following(index);
            multiply_quad_panel(
                a, call.rows, [](int64_t row) { return row; }, weights(panel), steps, weights(next),
                [&](int64_t row) { return FinishLinear<T, Out>{&args, row, panel * kPanelColumns}; });
        }
    });
}

void linear_int8(const Context& context, const LinearArgs& args) {
    if (args.element == Element::kFloat32) {
        linear_int8_typed<float, float>(context, args);
    } else if (args.out_element == Element::kFloat32) {
        linear_int8_typed<Bf16, float>(context, args);
    } else {
        linear_int8_typed<Bf16, Bf16>(context, args);
    }
}
