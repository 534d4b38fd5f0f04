// write_kv: keys and values of new tokens into the tiles of the cache (see attention_cache.inl.h).

// Tokens that follow each other in one tile: their keys and values lie `source_stride` elements apart.
template <class T>
struct TokenRun {
    const T* k;
    const T* v;
    int64_t source_stride, head_dim;
    int count;
    int64_t first;  // the number of the first one's key in the tile
};

// Asks for the lines that one token's key will be written to; else each store would wait for memory in turn.
MOELENS_INLINE void fetch_column(const float* column, int64_t steps) {
    for (int64_t s = 0; s < steps; ++s) __builtin_prefetch(column + s * kTileKeys, 1);
}

// A few tokens' keys become columns of the tile. Meanwhile the lines of the column `next` are asked for, one with each
// step that is written: of all at once, some would be dropped.
template <class T>
void write_keys(const TokenRun<T>& run, float* tile, const float* next) {
    using U = typename ColumnUnits<T>::type;
    constexpr int kFewest = 4;  // with which turning whole vectors is worth it
    if (run.count >= kFewest) {
        fetch_column(next, run.head_dim / U::kElements);
        const T* rows[kTileKeys];
        for (int i = 0; i < run.count; ++i) rows[i] = run.k + i * run.source_stride;
        write_panel<U>(rows, run.count, run.head_dim, tile + run.first, kTileKeys, run.head_dim / U::kElements);
        return;
    }
    for (int i = 0; i < run.count; ++i) {
        const T* key = run.k + i * run.source_stride;
        for (int64_t d = 0; d < run.head_dim; d += U::kElements) {
            const int64_t step = d / U::kElements * kTileKeys;
            memcpy(tile + step + run.first + i, key + d, sizeof(float));
            if (i == 0) __builtin_prefetch(next + step, 1);
        }
    }
}

// One token's value, element by element: its neighbour in a pair may be written by another thread at the same time.
template <class T>
void write_value(const T* value, int64_t head_dim, float* tile, int64_t key) {
    constexpr int64_t kDepth = Format<T>::kDepth, kChunk = kTileKeys * kPanelColumns;
    T* at = reinterpret_cast<T*>(tile) + key / kDepth * kDepth * kPanelColumns + key % kDepth;
    for (int64_t d = 0; d < head_dim; ++d) {
        at[d / kPanelColumns * kChunk + d % kPanelColumns * kDepth] = value[d];
    }
}

// The values of both tokens of a pair, from element d on, at the step that they share.
MOELENS_INLINE void write_pair(const Bf16* first, const Bf16* second, float* step) {
    for (int i = 0; i < kPanelColumns; i += kLanes) store(step + i, join_pairs(first + i, second + i));
}
MOELENS_INLINE void write_pair(const float*, const float*, float*) {}

template <class T>
void write_values(const TokenRun<T>& run, float* tile) {
    constexpr int kDepth = Format<T>::kDepth;
    const bool whole = run.head_dim % kPanelColumns == 0;
    for (int i = 0; i < run.count;) {
        const T* value = run.v + i * run.source_stride;
        const int64_t key = run.first + i;
        if (kDepth == 1 || !whole || key % 2 != 0 || i + 1 == run.count) {
            write_value(value, run.head_dim, tile, key);
            ++i;
            continue;
        }
        for (int64_t d = 0; d < run.head_dim; d += kPanelColumns) {
            float* step = tile + (d / kPanelColumns * (kTileKeys / 2) + key / 2) * kPanelColumns;
            write_pair(value + d, value + run.source_stride + d, step);
        }
        i += 2;
    }
}

// Where tokens go.
template <class T>
struct CacheTiles {
    using F = Format<T>;
    const WriteKvArgs& args;
    int64_t key_steps = steps_of<F>(args.head_dim);
    int64_t chunks = divide_rounding_up(args.head_dim, kPanelColumns), chunk_steps = steps_of<F>(kTileKeys);
    int64_t tiles_per_block = args.block_tokens / kTileKeys;

    int64_t tile(int64_t token, int64_t head) const {
        const int64_t block = args.slots[token] / args.block_tokens, at = args.slots[token] % args.block_tokens;
        return (block * args.kv_heads + head) * tiles_per_block + at / kTileKeys;
    }
    float* keys(int64_t tile) const { return static_cast<float*>(args.keys) + tile * key_steps * kPanelColumns; }
    float* values(int64_t tile) const {
        return static_cast<float*>(args.values) + tile * chunks * chunk_steps * kPanelColumns;
    }
    // What a token's key is written to, all its steps kTileKeys floats apart.
    const float* key_column(int64_t token, int64_t head) const {
        return keys(tile(token, head)) + args.slots[token] % kTileKeys;
    }
    // Asks for the lines that a token's value will be written to.
    MOELENS_INLINE void fetch_value(int64_t token, int64_t head) const {
        const int64_t step = args.slots[token] % kTileKeys / F::kDepth;
        for (int64_t c = 0; c < chunks; ++c) {
            const float* line = values(tile(token, head)) + (c * chunk_steps + step) * kPanelColumns;
            __builtin_prefetch(line, 1);
            __builtin_prefetch(line + kPanelColumns / 2, 1);
        }
    }

    // Tokens [token, result) go to neighbouring slots of one tile.
    int64_t run_end(int64_t token, int64_t end) const {
        int64_t next = token + 1;
        while (next < end && args.slots[next] == args.slots[next - 1] + 1 && args.slots[next] % kTileKeys != 0) ++next;
        return next;
    }

    // Tokens [token, end) of a head, and what `next_token` of `next_head`, written after them, takes is fetched.
    void write(int64_t token, int64_t end, int64_t head, int64_t next_token, int64_t next_head) const {
        const int64_t source = (token * args.kv_heads + head) * args.head_dim;
        const TokenRun<T> run{static_cast<const T*>(args.k) + source, static_cast<const T*>(args.v) + source,
                              args.kv_heads * args.head_dim,          args.head_dim,
                              static_cast<int>(end - token),          args.slots[token] % kTileKeys};
        fetch_value(next_token, next_head);
        write_keys(run, keys(tile(token, head)), key_column(next_token, next_head));
        write_values(run, values(tile(token, head)));
    }
};

template <class T>
void write_kv_typed(const Context& context, const WriteKvArgs& args) {
    constexpr int64_t kTokensPerTask = 32;
    if (args.kv_heads == 0) return;
    const CacheTiles<T> cache{args};
    run_tasks(context, divide_rounding_up(args.tokens, kTokensPerTask), [&](int64_t task, int) {
        const int64_t begin = task * kTokensPerTask, end = smaller(args.tokens, begin + kTokensPerTask);
        fetch_column(cache.key_column(begin, 0), cache.key_steps);
        cache.fetch_value(begin, 0);
        for (int64_t token = begin; token < end;) {
            const int64_t next = cache.run_end(token, end);
            for (int64_t head = 0; head + 1 < args.kv_heads; ++head) cache.write(token, next, head, token, head + 1);
            cache.write(token, next, args.kv_heads - 1, smaller(next, end - 1), 0);
            token = next;
        }
    });
}

void write_kv(const Context& context, const WriteKvArgs& args) {
    args.element == Element::kBFloat16 ? write_kv_typed<Bf16>(context, args) : write_kv_typed<float>(context, args);
}
