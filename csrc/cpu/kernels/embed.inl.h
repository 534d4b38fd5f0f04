// embed: rows of a table.

void embed(const Context& context, const EmbedArgs& args) {
    const bool widen = args.element != args.out_element;
    const int64_t bytes = args.width * (args.element == Element::kBFloat16 ? 2 : 4);
    for_rows(context, args.rows, args.width, [&](int64_t row) {
        const char* from = static_cast<const char*>(args.table) + args.token_ids[row] * bytes;
        if (!widen) {
            memcpy(static_cast<char*>(args.out) + row * bytes, from, static_cast<size_t>(bytes));
            return;
        }
        const Bf16* elements = reinterpret_cast<const Bf16*>(from);
        float* out = static_cast<float*>(args.out) + row * args.width;
        for (int64_t i = 0; i < args.width; i += kLanes) {
            store_up_to(out + i, load_up_to(elements + i, args.width - i), args.width - i);
        }
    });
}
