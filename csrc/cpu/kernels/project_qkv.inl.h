// project_qkv: a norm, the product for q, k and v, and what split_qkv does with it, where heads are whole panels of the
// weight. A thread normalises the rows of a block as it packs them, and finishes each head's rows while it multiplies
// the next: what passes from one to the other stays in its caches. Every number is that of the three ops in turn.

// The elements of one head in a row of the product, rounded as `linear` rounds what it stores.
template <class T>
struct ProductElements {
    const float* sums;
    const T* bias;  // null: none
    bool rounded;

    MOELENS_INLINE F32 at(int64_t i, int64_t n) const {
        F32 y = load_up_to(sums + i, n);
        if (bias) y = y + load_up_to(bias + i, n);
        if (!rounded) return y;
        T values[kLanes];
        store(values, y);
        return load(values);
    }
};

template <class T>
struct FinishHead {
    static constexpr bool kPrepares = true, kManyPanels = true;
    const SplitQkvArgs* args;
    const T* bias;           // of the head, null: none
    const T* norm;           // null: not normalised
    const float* rotations;  // of the first row: cosines, then sines; null: not rotated
    T* out;                  // of the first row
    int64_t row_elements;    // from a row of out to the next
    bool rounded;

    MOELENS_INLINE void fetch(int64_t rows) const {
        for (int64_t row = 0; row < rows; ++row) fetch_to_write(out + row * row_elements, args->head_dim * sizeof(T));
    }
    MOELENS_INLINE void prepare(const float* sums, float* factor) const {
        if (norm == nullptr) return;
        F32 total = zeros();
        for (int64_t i = 0; i < args->head_dim; i += kLanes) {
            const F32 y = ProductElements<T>{sums, bias, rounded}.at(i, kLanes);
            total = total + y * y;
        }
        factor[0] = inverse_root_mean(sum(total), args->head_dim, args->eps);
    }
    MOELENS_INLINE void operator()(int row, const float* sums, const float* factor) const {
        const HeadElements<ProductElements<T>, T> head{
            {sums, bias, rounded}, norm, norm ? splat(factor[0]) : zeros(), splat(-args->limit), splat(args->limit)};
        if (rotations) {
            const int64_t lanes = rotation_lanes(*args);
            const float* cosines = rotations + row * 2 * lanes;
            rotate_head(*args, head, cosines, cosines + lanes, out + row * row_elements);
        } else {
            copy_head(head, args->head_dim, out + row * row_elements);
        }
    }
};

// What finishes head `head` of q, k and v in a row: its place among them, and what is done with it.
template <class T>
FinishHead<T> finish_head(const ProjectQkvArgs& args, int64_t head, int64_t row, const float* rotations) {
    const SplitQkvArgs& split = args.split;
    const bool is_query = head < split.query_heads, is_key = !is_query && head < split.query_heads + split.kv_heads;
    const int64_t first = is_query ? 0 : split.query_heads + (is_key ? 0 : split.kv_heads);
    const int64_t width = (is_query ? split.query_heads : split.kv_heads) * split.head_dim;
    const NormWeight norm = is_query ? split.q_norm : is_key ? split.k_norm : NormWeight{nullptr, 0};
    T* out = static_cast<T*>(is_query ? split.q : is_key ? split.k : split.v);
    const T* bias = static_cast<const T*>(args.product.bias);
    return {&split,
            bias ? bias + head * split.head_dim : nullptr,
            static_cast<const T*>(norm.data),
            is_query || is_key ? rotations : nullptr,
            out + row * width + (head - first) * split.head_dim,
            width,
            split.joined_element == split.element};
}

template <class X, class T>
void project_qkv_typed(const Context& context, const ProjectQkvArgs& args) {
    using F = Format<T>;
    using Finish = FinishHead<T>;
    const LinearArgs& product = args.product;
    const int threads = context.team.threads();
    const int64_t head_panels = args.split.head_dim / kPanelColumns;
    const LinearTiling tiling = tile_linear<F>(product, threads, head_panels);
    const int64_t steps = steps_of<F>(product.inner), floats = row_floats<F>(product.inner);
    const int64_t block_rows = tiling.tiles_per_block * kMaxRows, rotation_floats = 2 * rotation_lanes(args.split);
    const int64_t normed_floats = divide_rounding_up(kMaxRows * product.inner * sizeof(T), sizeof(float));
    const int64_t sums_floats = FinishedBeside<Finish>::floats(tiling.tiles_per_block, head_panels);
    int64_t* packed = static_cast<int64_t*>(context.scratch.shared.reserve(threads * sizeof(int64_t)));
    for (int thread = 0; thread < threads; ++thread) {
        packed[thread] = -1;  // the row block whose panels and rotations the thread holds
        context.scratch.local[thread].reserve((sums_floats + normed_floats + block_rows * (floats + rotation_floats)) *
                                              sizeof(float));
    }
    run_tasks(context, tiling.task_count(), [&](int64_t index, int thread) {
        const auto [block, part] = tiling.task(index);
        float* sums = static_cast<float*>(context.scratch.local[thread].data());
        float* rows = sums + sums_floats;
        float* rotations = rows + block_rows * floats;
        T* normed = reinterpret_cast<T*>(rotations + block_rows * rotation_floats);
        const Panels a = tiling.rows_of(block, product.rows, rows, floats);
        const int64_t first_row = a.first_row();
        if (packed[thread] != block) {
            for (int64_t tile = a.first_tile; tile < a.last_tile; ++tile) {
                const T* sources[kMaxRows];
                const int64_t begin = a.begin(tile);
                const int count = static_cast<int>(a.begin(tile + 1) - begin);
                for (int r = 0; r < count; ++r) {
                    float* cosines = rotations + (begin + r - first_row) * rotation_floats;
                    T* row = normed + r * product.inner;
                    norm_row(args.norm, args.centred, static_cast<const X*>(args.norm.x) + (begin + r) * product.inner,
                             row);
                    compute_rotations(args.split, begin + r, cosines, cosines + rotation_floats / 2);
                    sources[r] = row;
                }
                pack_rows<F>(sources, count, product.inner, rows + (begin - first_row) * floats);
            }
            packed[thread] = block;
        }
        const auto weights = [&](int64_t panel) {
            return static_cast<const float*>(product.weight) + panel * steps * kPanelColumns;
        };
        const int64_t end = tiling.last_panel(part);
        FinishedBeside<Finish> unfinished(sums, head_panels);
        for (int64_t panel = tiling.first_panel(part); panel < end; ++panel) {
            const int64_t next = panel + 1 < end ? panel + 1 : tiling.following(index);
            const auto begin = [&](int64_t row, int64_t count) MOELENS_INLINED {
                const Finish finish =
                    finish_head<T>(args, panel / head_panels, row, rotations + (row - first_row) * rotation_floats);
                finish.fetch(count);
                return finish;
            };
            multiply_panel<F>(a, weights(panel), steps, weights(next), unfinished, begin, panel % head_panels);
        }
        unfinished.finish_all();
    });
}

void project_qkv(const Context& context, const ProjectQkvArgs& args) {
    if (args.product.rows == 0 || args.product.columns == 0) return;
    if (args.norm.element == Element::kFloat32) {
        project_qkv_typed<float, float>(context, args);
    } else if (args.norm.x_element == Element::kFloat32) {
        project_qkv_typed<float, Bf16>(context, args);
    } else {
        project_qkv_typed<Bf16, Bf16>(context, args);
    }
}
