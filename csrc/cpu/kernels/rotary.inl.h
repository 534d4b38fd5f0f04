// rotary: position embedding by rotation of pairs (i, i + pairs) of each head, in float32.

// Cosine and sine of the angles position * inverse_frequencies, times magnitude.
MOELENS_INLINE void rotations(const RotaryArgs& args, int64_t row, float* cosines, float* sines) {
    const F32 position = splat(static_cast<float>(args.positions[row])), magnitude = splat(args.magnitude);
    for (int64_t i = 0; i < args.pairs; i += kLanes) {
        F32 cosine, sine;
        sincos(position * load_up_to(args.inverse_frequencies + i, args.pairs - i), cosine, sine);
        store(cosines + i, cosine * magnitude);
        store(sines + i, sine * magnitude);
    }
}

template <class T>
MOELENS_INLINE void rotate_head(const RotaryArgs& args, const T* x, const float* cosines, const float* sines, T* out) {
    const int64_t pairs = args.pairs;
    for (int64_t i = 0; i < pairs; i += kLanes) {
        const int64_t n = pairs - i;
        const F32 a = load_up_to(x + i, n), b = load_up_to(x + pairs + i, n);
        const F32 c = load(cosines + i), s = load(sines + i);
        store_up_to(out + i, a * c - b * s, n);
        store_up_to(out + pairs + i, b * c + a * s, n);
    }
    memcpy(out + 2 * pairs, x + 2 * pairs, static_cast<size_t>(args.head_dim - 2 * pairs) * sizeof(T));
}

template <class T>
void rotary_rows(const Context& context, const RotaryArgs& args) {
    const int64_t padded = divide_rounding_up(args.pairs, kLanes) * kLanes, width = args.heads * args.head_dim;
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
            rotations(args, row, cosines, sines);
            for (int64_t head = 0; head < args.heads; ++head) {
                const int64_t offset = row * width + head * args.head_dim;
                rotate_head(args, static_cast<const T*>(args.x) + offset, cosines, sines,
                            static_cast<T*>(args.out) + offset);
            }
        }
    });
}

void rotary(const Context& context, const RotaryArgs& args) {
    args.element == Element::kBFloat16 ? rotary_rows<Bf16>(context, args) : rotary_rows<float>(context, args);
}
