// mask_logits: -infinity wherever a token's bit is 0. Most words of a mask are all ones or all zeros.

inline void mask_word(float* logits, uint32_t allowed, int64_t count) {
    if (allowed == UINT32_MAX) return;
    if (allowed == 0 && count == 32) {
        for (int i = 0; i < 32; i += kLanes) store(logits + i, splat(-INFINITY));
        return;
    }
    for (int64_t i = 0; i < count; ++i) logits[i] = allowed >> i & 1 ? logits[i] : -INFINITY;
}

void mask_logits(const Context& context, const MaskArgs& args) {
    const int64_t words = divide_rounding_up(args.vocab, 32);
    run_tasks(context, args.masks, [&](int64_t mask, int) {
        float* logits = args.logits + args.rows[mask] * args.vocab;
        for (int64_t word = 0; word < words; ++word) {
            const auto allowed = static_cast<uint32_t>(args.allowed[mask * words + word]);
            mask_word(logits + word * 32, allowed, smaller(32, args.vocab - word * 32));
        }
    });
}
