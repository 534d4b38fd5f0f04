// split_qkv: q, k and v out of their joined product; q and k normalised and rotated (pairs i, i + pairs of each head).
// All of it in float32, in one pass over a row that stays in the first-level cache, with one rounding at the end.

// Room for the cosines of a row, and for its sines.
MOELENS_INLINE int64_t rotation_lanes(const SplitQkvArgs& args) {
    return divide_rounding_up(args.pairs, kLanes) * kLanes;
}

// Cosine and sine of the angles position * inverse_frequencies, times magnitude.
MOELENS_INLINE void compute_rotations(const SplitQkvArgs& args, int64_t row, float* cosines, float* sines) {
    const F32 position = splat(static_cast<float>(args.positions[row])), magnitude = splat(args.magnitude);
    for (int64_t i = 0; i < args.pairs; i += kLanes) {
        F32 cosine, sine;
        sincos(position * load_up_to(args.inverse_frequencies + i, args.pairs - i), cosine, sine);
        store(cosines + i, cosine * magnitude);
        store(sines + i, sine * magnitude);
    }
}

// Elements i … i + n of a row, or a whole vector of them.
template <class X>
struct RowElements {
    const X* x;

    MOELENS_INLINE F32 at(int64_t i, int64_t n) const { return load_up_to(x + i, n); }
};

// The elements of one head before they turn: as they are, or normalised; held to the limit.
template <class Elements, class T>
struct HeadElements {
    Elements elements;
    const T* weight;  // null: not normalised
    F32 factor, lowest, limit;

    MOELENS_INLINE F32 at(int64_t i, int64_t n) const {
        F32 y = elements.at(i, n);
        if (weight) y = y * factor * load_up_to(weight + i, n);
        return max(lowest, min(limit, y));  // in this order of operands a NaN stays one
    }
};

template <class Elements, class T>
MOELENS_INLINE void rotate_head(const SplitQkvArgs& args, const HeadElements<Elements, T>& head, const float* cosines,
                                const float* sines, T* out) {
    const int64_t pairs = args.pairs;
    for (int64_t i = 0; i < pairs; i += kLanes) {
        const int64_t n = pairs - i;
        const F32 a = head.at(i, n), b = head.at(pairs + i, n);
        const F32 c = load(cosines + i), s = load(sines + i);
        store_up_to(out + i, a * c - b * s, n);
        store_up_to(out + pairs + i, b * c + a * s, n);
    }
    for (int64_t i = 2 * pairs; i < args.head_dim; i += kLanes) {
        store_up_to(out + i, head.at(i, args.head_dim - i), args.head_dim - i);
    }
}

template <class Elements, class T>
MOELENS_INLINE void copy_head(const HeadElements<Elements, T>& head, int64_t width, T* out) {
    for (int64_t i = 0; i < width; i += kLanes) store_up_to(out + i, head.at(i, width - i), width - i);
}

// One row's q or k: `norm` is of one head's width or of all heads'.
template <class X, class T>
MOELENS_INLINE void split_rotated(const SplitQkvArgs& args, const X* x, int64_t heads, const NormWeight& norm,
                                  const float* cosines, const float* sines, T* out) {
    HeadElements<RowElements<X>, T> head{
        {x}, static_cast<const T*>(norm.data), zeros(), splat(-args.limit), splat(args.limit)};
    for (int64_t offset = 0; offset < heads * args.head_dim; offset += args.head_dim) {
        head.elements.x = x + offset;
        if (head.weight) {
            const int64_t within = offset % norm.width;
            if (within == 0) head.factor = factor_of_squares(head.elements.x, norm.width, args.eps);
            head.weight = static_cast<const T*>(norm.data) + within;
        }
        rotate_head(args, head, cosines, sines, out + offset);
    }
}

template <class X, class T>
void split_rows(const Context& context, const SplitQkvArgs& args) {
    const int64_t padded = rotation_lanes(args);
    const int64_t q_width = args.query_heads * args.head_dim, kv_width = args.kv_heads * args.head_dim;
    const int64_t width = q_width + 2 * kv_width;
    for (int thread = 0; thread < context.team.threads(); ++thread) {
        context.scratch.local[thread].reserve(2 * padded * sizeof(float));
    }
    constexpr int64_t kElementsPerTask = 16384;
    const int64_t per_task = larger(1, kElementsPerTask / larger(1, width));
    run_tasks(context, divide_rounding_up(args.rows, per_task), [&](int64_t task, int thread) {
        float* cosines = static_cast<float*>(context.scratch.local[thread].data());
        float* sines = cosines + padded;
        const int64_t end = smaller(args.rows, (task + 1) * per_task);
        for (int64_t row = task * per_task; row < end; ++row) {
            const X* x = static_cast<const X*>(args.joined) + row * width;
            T* v = static_cast<T*>(args.v) + row * kv_width;
            compute_rotations(args, row, cosines, sines);
            split_rotated(args, x, args.query_heads, args.q_norm, cosines, sines,
                          static_cast<T*>(args.q) + row * q_width);
            split_rotated(args, x + q_width, args.kv_heads, args.k_norm, cosines, sines,
                          static_cast<T*>(args.k) + row * kv_width);
            const HeadElements<RowElements<X>, T> values{
                {x + q_width + kv_width}, nullptr, zeros(), splat(-args.limit), splat(args.limit)};
            copy_head(values, kv_width, v);
        }
    });
}

void split_qkv(const Context& context, const SplitQkvArgs& args) {
    if (args.element == Element::kFloat32) {
        split_rows<float, float>(context, args);
    } else if (args.joined_element == Element::kFloat32) {
        split_rows<float, Bf16>(context, args);
    } else {
        split_rows<Bf16, Bf16>(context, args);
    }
}
