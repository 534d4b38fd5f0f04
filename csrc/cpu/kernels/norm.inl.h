// rms_norm and layer_norm.

// The sum over a row of f(vector), in an order that depends on the width alone. Lanes past the end hold zeros.
template <class T, class F>
MOELENS_INLINE float sum_over(const T* x, int64_t width, const F& f) {
    F32 total = zeros();
    for (int64_t i = 0; i < width; i += kLanes) total = total + f(load_up_to(x + i, width - i));
    return sum(total);
}

template <class X, class T>
void rms_norm_rows(const Context& context, const NormArgs& args) {
    const T* weight = static_cast<const T*>(args.weight);
    const int64_t width = args.width;
    for_rows(context, args.rows, width, [&](int64_t row) {
        const X* x = static_cast<const X*>(args.x) + row * width;
        T* out = static_cast<T*>(args.out) + row * width;
        const float squares = sum_over(x, width, [](F32 a) { return a * a; });
        const F32 factor = splat(1.0f / sqrtf(squares / static_cast<float>(width) + args.eps));
        for (int64_t i = 0; i < width; i += kLanes) {
            const F32 normed = load_up_to(x + i, width - i) * factor;
            store_up_to(out + i, normed * load_up_to(weight + i, width - i), width - i);
        }
    });
}

template <class X, class T>
void layer_norm_rows(const Context& context, const NormArgs& args) {
    const T* weight = static_cast<const T*>(args.weight);
    const int64_t width = args.width;
    for_rows(context, args.rows, width, [&](int64_t row) {
        const X* x = static_cast<const X*>(args.x) + row * width;
        T* out = static_cast<T*>(args.out) + row * width;
        const F32 mean = splat(sum_over(x, width, [](F32 a) { return a; }) / static_cast<float>(width));
        F32 squares = zeros();
        for (int64_t i = 0; i < width; i += kLanes) {
            const F32 centred = load_up_to(x + i, width - i) - mean;
            alignas(64) float kept[kLanes];
            store(kept, centred * centred);
            squares = squares + load_up_to(kept, width - i);  // lanes past the end count as zero
        }
        const F32 factor = splat(1.0f / sqrtf(sum(squares) / static_cast<float>(width) + args.eps));
        for (int64_t i = 0; i < width; i += kLanes) {
            const F32 centred = load_up_to(x + i, width - i) - mean;
            store_up_to(out + i, centred * factor * load_up_to(weight + i, width - i), width - i);
        }
    });
}

void rms_norm(const Context& context, const NormArgs& args) {
    if (args.element == Element::kFloat32) {
        rms_norm_rows<float, float>(context, args);
    } else if (args.x_element == Element::kFloat32) {
        rms_norm_rows<float, Bf16>(context, args);
    } else {
        rms_norm_rows<Bf16, Bf16>(context, args);
    }
}

void layer_norm(const Context& context, const NormArgs& args) {
    if (args.element == Element::kFloat32) {
        layer_norm_rows<float, float>(context, args);
    } else if (args.x_element == Element::kFloat32) {
        layer_norm_rows<float, Bf16>(context, args);
    } else {
        layer_norm_rows<Bf16, Bf16>(context, args);
    }
}
