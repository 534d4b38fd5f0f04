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

// A few tokens' keys become columns of the tile.
template <class T>
void write_keys(const TokenRun<T>& run, float* tile) {
    using U = typename ColumnUnits<T>::type;
    constexpr int kFewest = 4;  // with which turning whole vectors is worth it
    if (run.count >= kFewest) {
        const T* rows[kTileKeys];
        for (int i = 0; i < run.count; ++i) rows[i] = run.k + i * run.source_stride;
        write_panel<U>(rows, run.count, run.head_dim, tile + run.first, kTileKeys, run.head_dim / U::kElements);
        return;
    }
    for (int i = 0; i < run.count; ++i) {
        const T* key = run.k + i * run.source_stride;
        for (int64_t d = 0; d < run.head_dim; d += U::kElements) {
            memcpy(tile + d / U::kElements * kTileKeys + run.first + i, key + d, sizeof(float));
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

// Asks for the lines that one token's key and value will be written to; else each store would wait for memory in turn.
inline void fetch_lines(const float* keys, int64_t key_steps, int64_t column, const float* values, int64_t chunks,
                        int64_t chunk_steps, int64_t step) {
    for (int64_t s = 0; s < key_steps; ++s) __builtin_prefetch(keys + s * kTileKeys + column, 1);
    for (int64_t c = 0; c < chunks; ++c) {
        const float* line = values + (c * chunk_steps + step) * kPanelColumns;
        __builtin_prefetch(line, 1);
        __builtin_prefetch(line + kPanelColumns / 2, 1);
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
    void fetch(int64_t token, int64_t head) const {
        const int64_t at = tile(token, head), key = args.slots[token] % kTileKeys;
        fetch_lines(keys(at), key_steps, key, values(at), chunks, chunk_steps, key / F::kDepth);
    }

    // Tokens [token, result) go to neighbouring slots of one tile.
    int64_t run_end(int64_t token, int64_t end) const {
        int64_t next = token + 1;
        while (next < end && args.slots[next] == args.slots[next - 1] + 1 && args.slots[next] % kTileKeys != 0) ++next;
        return next;
    }

    void write(int64_t token, int64_t end, int64_t head) const {
        const int64_t source = (token * args.kv_heads + head) * args.head_dim;
        const TokenRun<T> run{static_cast<const T*>(args.k) + source, static_cast<const T*>(args.v) + source,
                              args.kv_heads * args.head_dim,          args.head_dim,
                              static_cast<int>(end - token),          args.slots[token] % kTileKeys};
        write_keys(run, keys(tile(token, head)));
        write_values(run, values(tile(token, head)));
    }
};

template <class T>
void write_kv_typed(const Context& context, const WriteKvArgs& args) {
    constexpr int64_t kTokensPerTask = 32;
    const CacheTiles<T> cache{args};
    run_tasks(context, divide_rounding_up(args.tokens, kTokensPerTask), [&](int64_t task, int) {
        const int64_t begin = task * kTokensPerTask, end = smaller(args.tokens, begin + kTokensPerTask);
        for (int64_t token = begin; token < end;) {
            const int64_t next = cache.run_end(token, end);
            for (int64_t head = 0; head < args.kv_heads; ++head) {
                if (head == 0 && token == begin) cache.fetch(token, head);
                if (head + 1 < args.kv_heads) {
                    cache.fetch(token, head + 1);
                } else if (next < end) {
                    cache.fetch(next, 0);
                }
                cache.write(token, next, head);
            }
            token = next;
        }
    });
}

void write_kv(const Context& context, const WriteKvArgs& args) {
    args.element == Element::kBFloat16 ? write_kv_typed<Bf16>(context, args) : write_kv_typed<float>(context, args);
}
