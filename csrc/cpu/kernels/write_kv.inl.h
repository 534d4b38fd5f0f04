// write_kv: keys and values of new tokens into the tiles of the cache (see attention_cache.inl.h).

// Puts one token's key into a tile, as column `column`.
template <class T>
void write_key(const T* key, int64_t head_dim, T* tile, int64_t column) {
    constexpr int kDepth = Format<T>::kDepth;
    for (int64_t d = 0; d < head_dim; d += kDepth) {
        memcpy(tile + d * kTileKeys + column * kDepth, key + d, kDepth * sizeof(T));
    }
}

// Puts one token's value into a tile, as key number `key`. Its neighbour in a pair may be written at the same time.
template <class T>
void write_value(const T* value, int64_t head_dim, T* tile, int64_t key) {
    constexpr int kDepth = Format<T>::kDepth;
    T* at = tile + key / kDepth * kDepth * kPanelColumns + key % kDepth;
    for (int64_t d = 0; d < head_dim; ++d) {
        at[d / kPanelColumns * kTileKeys * kPanelColumns + d % kPanelColumns * kDepth] = value[d];
    }
}

template <class T>
void write_kv_typed(const Context& context, const WriteKvArgs& args) {
    constexpr int kDepth = Format<T>::kDepth;
    constexpr int64_t kTokensPerTask = 32;  // tokens of one tile are mostly neighbours, and share cache lines
    const int64_t key_elements = divide_rounding_up(args.head_dim, kDepth) * kDepth * kTileKeys;
    const int64_t value_elements = divide_rounding_up(args.head_dim, kPanelColumns) * kPanelColumns * kTileKeys;
    const int64_t tiles_per_block = args.block_tokens / kTileKeys;
    const int64_t runs = divide_rounding_up(args.tokens, kTokensPerTask);
    run_tasks(context, runs, [&](int64_t run, int) {
        const int64_t begin = run * kTokensPerTask, end = smaller(args.tokens, begin + kTokensPerTask);
        for (int64_t head = 0; head < args.kv_heads; ++head) {
            for (int64_t token = begin; token < end; ++token) {
                const int64_t block = args.slots[token] / args.block_tokens, at = args.slots[token] % args.block_tokens;
                const int64_t tile = (block * args.kv_heads + head) * tiles_per_block + at / kTileKeys;
                const int64_t source = (token * args.kv_heads + head) * args.head_dim;
                write_key(static_cast<const T*>(args.k) + source, args.head_dim,
                          static_cast<T*>(args.keys) + tile * key_elements, at % kTileKeys);
                write_value(static_cast<const T*>(args.v) + source, args.head_dim,
                            static_cast<T*>(args.values) + tile * value_elements, at % kTileKeys);
            }
        }
    });
}

void write_kv(const Context& context, const WriteKvArgs& args) {
    args.element == Element::kBFloat16 ? write_kv_typed<Bf16>(context, args) : write_kv_typed<float>(context, args);
}
