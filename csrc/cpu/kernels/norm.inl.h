// rms_norm and layer_norm.

// The sum over a row of f(vector), in an order that depends on the width alone. Lanes past the end hold zeros.
template <class T, class F>
MOELENS_INLINE float sum_over(const T* x, int64_t width, const F& f) {
    F32 total = zeros();
    for (int64_t i = 0; i < width; i += kLanes) total = total + f(load_up_to(x + i, width - i));
    return sum(total);
}

// What elements are multiplied by so that their mean square, of this sum over `width`, is 1.
MOELENS_INLINE float inverse_root_mean(float squares, int64_t width, float eps) {
    return 1.0f / sqrtf(squares / static_cast<float>(width) + eps);
}

// The same of a row.
template <class X>
MOELENS_INLINE F32 factor_of_squares(const X* x, int64_t width, float eps) {
    return splat(inverse_root_mean(sum_over(x, width, [](F32 a) { return a * a; }), width, eps));
}

template <class X, class T>
MOELENS_INLINE void rms_norm_row(const NormArgs& args, const X* x, T* out) {
    const T* weight = static_cast<const T*>(args.weight);
    const int64_t width = args.width;
    const F32 factor = factor_of_squares(x, width, args.eps);
    for (int64_t i = 0; i < width; i += kLanes) {
        const F32 normed = load_up_to(x + i, width - i) * factor;
        store_up_to(out + i, normed * load_up_to(weight + i, width - i), width - i);
    }
}

template <class X, class T>
MOELENS_INLINE void layer_norm_row(const NormArgs& args, const X* x, T* out) {
    const T* weight = static_cast<const T*>(args.weight);
    const int64_t width = args.width;
    const F32 mean = splat(sum_over(x, width, [](F32 a) { return a; }) / static_cast<float>(width));
    F32 squares = zeros();
    for (int64_t i = 0; i < width; i += kLanes) {
        const F32 centred = load_up_to(x + i, width - i) - mean;
        alignas(64) float kept[kLanes];
        store(kept, centred * centred);
        squares = squares + load_up_to(kept, width - i);  // lanes past the end count as zero
    }
    const F32 factor = splat(inverse_root_mean(sum(squares), width, args.eps));
    for (int64_t i = 0; i < width; i += kLanes) {
        const F32 centred = load_up_to(x + i, width - i) - mean;
        store_up_to(out + i, centred * factor * load_up_to(weight + i, width - i), width - i);
    }
}

template <class X, class T>
MOELENS_INLINE void norm_row(const NormArgs& args, bool centred, const X* x, T* out) {
    centred ? layer_norm_row(args, x, out) : rms_norm_row(args, x, out);
}

template <class X, class T>
void norm_rows(const Context& context, const NormArgs& args, bool centred) {
    for_rows(context, args.rows, args.width, [&](int64_t row) {
        const int64_t at = row * args.width;
        norm_row(args, centred, static_cast<const X*>(args.x) + at, static_cast<T*>(args.out) + at);
    });
}

void norm(const Context& context, const NormArgs& args, bool centred) {
    if (args.element == Element::kFloat32) {
        norm_rows<float, float>(context, args, centred);
    } else if (args.x_element == Element::kFloat32) {
        norm_rows<float, Bf16>(context, args, centred);
    } else {
        norm_rows<Bf16, Bf16>(context, args, centred);
    }
}

void rms_norm(const Context& context, const NormArgs& args) {
    norm(context, args, false);
}

void layer_norm(const Context& context, const NormArgs& args) {
    norm(context, args, true);
}
