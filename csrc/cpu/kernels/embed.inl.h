// embed: rows of a table.

void embed(const Context& context, const EmbedArgs& args) {
    const int64_t bytes = args.width * (args.element == Element::kBFloat16 ? 2 : 4);
    for_rows(context, args.rows, args.width, [&](int64_t row) {
        memcpy(static_cast<char*>(args.out) + row * bytes,
               static_cast<const char*>(args.table) + args.token_ids[row] * bytes, static_cast<size_t>(bytes));
    });
}
