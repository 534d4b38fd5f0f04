// scale and sigmoid: one element at a time.

template <class T, class F>
void map_elements(const Context& context, const ElementwiseArgs& args, const F& f) {
    constexpr int64_t kRun = 4096;
    for_rows(context, divide_rounding_up(args.count, kRun), kRun, [&](int64_t run) {
        const int64_t end = smaller(args.count, (run + 1) * kRun);
        for (int64_t i = run * kRun; i < end; i += kLanes) {
            const F32 x = load_up_to(static_cast<const T*>(args.x) + i, end - i);
            store_up_to(static_cast<T*>(args.out) + i, f(x), end - i);
        }
    });
}

template <class F>
void map_typed(const Context& context, const ElementwiseArgs& args, const F& f) {
    args.element == Element::kBFloat16 ? map_elements<Bf16>(context, args, f) : map_elements<float>(context, args, f);
}

void scale(const Context& context, const ElementwiseArgs& args) {
    const F32 factor = splat(args.parameter);
    map_typed(context, args, [&](F32 x) { return x * factor; });
}

void sigmoid(const Context& context, const ElementwiseArgs& args) {
    map_typed(context, args, [](F32 x) { return sigmoid(x); });
}
