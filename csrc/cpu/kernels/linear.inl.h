// linear: x Wᵀ with bias, scale and residual, rounded once.

// How a product is cut: blocks of rows whose panels stay in the second-level cache, and blocks of weight panels.
struct LinearTiling {
    struct Task {
        int64_t row_block, panel_block;
    };

    int64_t tiles, tiles_per_block, row_blocks;
    int64_t panels, panels_per_block, panel_blocks;
    int threads;

    int64_t task_count() const { return row_blocks * panel_blocks; }
    // As many blocks of rows as there are threads in turn: if all are equally fast, each thread gets one of them and
    // all of its tasks, and packs its rows alone.
    Task task(int64_t index) const {
        const int64_t together = threads * panel_blocks, first = index / together * threads, i = index % together;
        const int64_t blocks = smaller(threads, row_blocks - first);
        return {first + i % blocks, i / blocks};
    }
    // Of a matrix of so many rows, packed to `data` with so many floats a row.
    Panels rows_of(int64_t row_block, int64_t rows, const float* data, int64_t floats) const {
        Panels a{data, rows, tiles, row_block * tiles / row_blocks, (row_block + 1) * tiles / row_blocks};
        a.data -= a.first_row() * floats;
        return a;
    }
    // The same with all panels in one task, and as many blocks for each thread.
    LinearTiling of_whole_rows() const {
        LinearTiling whole = *this;
        whole.row_blocks = smaller(tiles, divide_rounding_up(row_blocks, threads) * threads);
        whole.panels_per_block = panels;
        whole.panel_blocks = 1;
        return whole;
    }
    int64_t first_panel(int64_t panel_block) const { return panel_block * panels_per_block; }
    int64_t last_panel(int64_t panel_block) const { return smaller(panels, first_panel(panel_block + 1)); }
    // The panel that a thread will begin with after a task, if all threads are equally fast.
    int64_t following(int64_t index) const {
        return index + threads < task_count() ? first_panel(task(index + threads).panel_block) : 0;
    }
};

// Blocks of panels are of whole groups of so many panels.
template <class F>
LinearTiling tile_linear(const LinearArgs& args, int threads, int64_t group = 1) {
    constexpr int64_t kTasksPerThread = 12;
    constexpr int64_t kTaskBytes = 128 * 1024;  // of weights: a shorter stream is not worth a task
    LinearTiling t;
    t.tiles = tile_count(args.rows);
    const int64_t tile_bytes = row_floats<F>(args.inner) * kMaxRows * 4;
    // Beside the rows, what is written and a residual pass through the same cache.
    constexpr int64_t kBlockBytes = kSmallCache ? kRowBytes : kRowBytes / 2;
    t.tiles_per_block = smaller(t.tiles, larger(kFewestTiles, kBlockBytes / larger(1, tile_bytes)));
    t.row_blocks = divide_rounding_up(t.tiles, t.tiles_per_block);
    t.panels = divide_rounding_up(args.columns, kPanelColumns);
    const int64_t panel_bytes = larger(1, steps_of<F>(args.inner) * kStepBytes);
    const int64_t wanted = divide_rounding_up(kTasksPerThread * threads, t.row_blocks);
    const int64_t fewest = larger(1, divide_rounding_up(kTaskBytes, panel_bytes * t.tiles_per_block));
    const int64_t groups = divide_rounding_up(larger(fewest, divide_rounding_up(t.panels, wanted)), group);
    t.panels_per_block = smaller(t.panels, groups * group);
    t.panel_blocks = divide_rounding_up(t.panels, t.panels_per_block);
    t.threads = threads;
    return t;
}

// out = residual + scale * (sums + bias), for some rows and the columns of one panel.
template <class T, class Out>
struct FinishLinear {
    static constexpr bool kPrepares = false, kManyPanels = false;
    const LinearArgs* args;
    int64_t first_row, column;

    MOELENS_INLINE void fetch(int64_t rows) const {
        for (int64_t row = first_row; row < first_row + rows; ++row) {
            fetch_to_write(at(static_cast<const Out*>(args->out), row), kPanelColumns * sizeof(Out));
            if (args->residual == nullptr) continue;
            fetch_to_write(at(static_cast<const Out*>(args->residual), row), kPanelColumns * sizeof(Out));
        }
    }
    MOELENS_INLINE void operator()(int row, const float* sums) const {
        const int64_t columns = smaller(kPanelColumns, args->columns - column);
        const T* bias = args->bias ? static_cast<const T*>(args->bias) + column : nullptr;
        const Out* residual = args->residual ? at(static_cast<const Out*>(args->residual), first_row + row) : nullptr;
        Out* out = at(static_cast<Out*>(args->out), first_row + row);
        const F32 scale = splat(args->scale);
        for (int64_t c = 0; c < columns; c += kLanes) {
            const int64_t n = columns - c;
            F32 y = load(sums + c);
            if (bias) y = y + load_up_to(bias + c, n);
            y = residual ? fma(y, scale, load_up_to(residual + c, n)) : y * scale;
            store_up_to(out + c, y, n);
        }
    }

  private:
    template <class P>
    P* at(P* data, int64_t row) const {
        return data + row * args->columns + column;
    }
};

// Packs the rows of x that are some tiles of a product.
template <class T>
void pack_tiles(const LinearArgs& args, const Panels& a, float* rows) {
    using F = Format<T>;
    for (int64_t tile = a.first_tile; tile < a.last_tile; ++tile) {
        const T* sources[kMaxRows];
        const int64_t begin = a.begin(tile);
        const int count = static_cast<int>(a.begin(tile + 1) - begin);
        for (int r = 0; r < count; ++r) sources[r] = static_cast<const T*>(args.x) + (begin + r) * args.inner;
        pack_rows<F>(sources, count, args.inner, rows + (begin - a.first_row()) * row_floats<F>(args.inner));
    }
}

// Some tiles times panels [first, end) of the weight; `next` is the panel that comes after them.
template <class T, class Out>
void multiply_panels(const LinearArgs& args, const Panels& a, int64_t first, int64_t end, const float* next,
                     float* sums) {
    using F = Format<T>;
    using Finish = FinishLinear<T, Out>;
    const int64_t steps = steps_of<F>(args.inner);
    const float* weights = static_cast<const float*>(args.weight);
    FinishedBeside<Finish> unfinished(sums);
    for (int64_t panel = first; panel < end; ++panel) {
        const float* following = panel + 1 < end ? weights + (panel + 1) * steps * kPanelColumns : next;
        const auto begin = [&](int64_t row, int64_t rows) MOELENS_INLINED {
            const Finish finish{&args, row, panel * kPanelColumns};
            finish.fetch(rows);
            return finish;
        };
        multiply_panel<F>(a, weights + panel * steps * kPanelColumns, steps, following, unfinished, begin);
    }
    unfinished.finish_all();
}

template <class T, class Out>
void linear_typed(const Context& context, const LinearArgs& args) {
    using F = Format<T>;
    if (args.rows == 0 || args.columns == 0) return;
    const int threads = context.team.threads();
    const LinearTiling tiling = tile_linear<F>(args, threads);
    const int64_t floats = row_floats<F>(args.inner), panel_floats = steps_of<F>(args.inner) * kPanelColumns;
    const int64_t block_rows = tiling.tiles_per_block * kMaxRows;
    const int64_t sums_floats = FinishedBeside<FinishLinear<T, Out>>::floats(tiling.tiles_per_block);
    int64_t* packed = static_cast<int64_t*>(context.scratch.shared.reserve(threads * sizeof(int64_t)));
    for (int thread = 0; thread < threads; ++thread) {
        packed[thread] = -1;  // the row block whose panels the thread holds
        context.scratch.local[thread].reserve((sums_floats + block_rows * floats) * 4);
    }
    run_tasks(context, tiling.task_count(), [&](int64_t index, int thread) {
        const auto [block, part] = tiling.task(index);
        float* sums = static_cast<float*>(context.scratch.local[thread].data());
        float* rows = sums + sums_floats;
        const Panels a = tiling.rows_of(block, args.rows, rows, floats);
        if (packed[thread] != block) {
            pack_tiles<T>(args, a, rows);
            packed[thread] = block;
        }
        const float* next = static_cast<const float*>(args.weight) + tiling.following(index) * panel_floats;
        multiply_panels<T, Out>(args, a, tiling.first_panel(part), tiling.last_panel(part), next, sums);
    });
}

void linear(const Context& context, const LinearArgs& args) {
    if (args.element == Element::kFloat32) {
        linear_typed<float, float>(context, args);
    } else if (args.out_element == Element::kFloat32) {
        linear_typed<Bf16, float>(context, args);
    } else {
        linear_typed<Bf16, Bf16>(context, args);
    }
}
