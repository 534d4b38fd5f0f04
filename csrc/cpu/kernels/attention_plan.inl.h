// The tasks of one call of attention: runs of query blocks that take about the same time. They don't change results.

struct AttentionPlan {
    int64_t* first_block;  // [S + 1]: of each request; its blocks are ordered by head, then by row
    int64_t* task_begin;   // [tasks + 1], in blocks
    int64_t tasks;
};

inline int64_t rows_of(const AttentionArgs& args, int64_t request) {
    return (args.starts[request + 1] - args.starts[request]) * (args.query_heads / args.kv_heads);
}
inline int64_t blocks_per_head(const AttentionArgs& args, int64_t request) {
    return divide_rounding_up(rows_of(args, request), kBlockPanels * kMaxRows);
}

inline QueryBlock block_of(const AttentionArgs& args, int64_t request, int64_t index) {
    const int64_t rows = rows_of(args, request), count = blocks_per_head(args, request);
    const int64_t part = index % count;
    return {request, index / count, part * rows / count, (part + 1) * rows / count};
}

inline QueryBlock find_block(const AttentionArgs& args, const AttentionPlan& plan, int64_t block) {
    int64_t low = 0, high = args.requests;  // first_block[low] <= block < first_block[high]
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        (plan.first_block[middle] <= block ? low : high) = middle;
    }
    return block_of(args, low, block - plan.first_block[low]);
}

// In about 50 ns of one thread: reading a tile takes as long as multiplying it with 8 rows.
inline int64_t block_cost(const AttentionArgs& args, const QueryBlock& block) {
    const TileRange tiles = tiles_of(args, block);
    return (tiles.end - tiles.first) * (block.end_row - block.first_row + 8 * block.panels());
}

inline int64_t total_cost(const AttentionArgs& args) {
    int64_t total = 0;
    for (int64_t request = 0; request < args.requests; ++request) {
        for (int64_t i = 0; i < blocks_per_head(args, request); ++i) {
            total += args.kv_heads * block_cost(args, block_of(args, request, i));
        }
    }
    return total;
}

inline AttentionPlan plan_attention(const AttentionArgs& args, int threads, Buffer& memory) {
    int64_t blocks = 0;
    for (int64_t request = 0; request < args.requests; ++request) {
        blocks += args.kv_heads * blocks_per_head(args, request);
    }
    AttentionPlan plan;
    plan.first_block = static_cast<int64_t*>(memory.reserve((args.requests + blocks + 2) * sizeof(int64_t)));
    plan.task_begin = plan.first_block + args.requests + 1;
    plan.tasks = 0;
    constexpr int64_t kLeastCost = 1000, kTasksPerThread = 8;
    const int64_t wanted = larger(kLeastCost, total_cost(args) / (kTasksPerThread * threads));
    int64_t block = 0, cost = wanted;
    for (int64_t request = 0; request < args.requests; ++request) {
        plan.first_block[request] = block;
        for (int64_t i = 0; i < args.kv_heads * blocks_per_head(args, request); ++i, ++block) {
            if (cost >= wanted) {
                plan.task_begin[plan.tasks++] = block;
                cost = 0;
            }
            cost += block_cost(args, block_of(args, request, i));
        }
    }
    plan.first_block[args.requests] = plan.task_begin[plan.tasks] = block;
    return plan;
}

template <class T>
void attention_typed(const Context& context, const AttentionArgs& args) {
    const AttentionPlan plan = plan_attention(args, context.team.threads(), context.scratch.shared);
    for (Buffer& memory : context.scratch.local) memory.reserve(AttentionPass<T>::memory_floats(args.head_dim) * 4);
    run_tasks(context, plan.tasks, [&](int64_t task, int thread) {
        AttentionPass<T> pass(args, static_cast<float*>(context.scratch.local[thread].data()));
        const int64_t begin = plan.task_begin[task], end = plan.task_begin[task + 1];
        QueryBlock block = find_block(args, plan, begin);
        for (int64_t i = begin; i < end; ++i) {
            const QueryBlock next = i + 1 < end ? find_block(args, plan, i + 1) : block;
            pass.attend(block, i == begin, i + 1 < end ? &next : nullptr);
            block = next;
        }
    });
}

void attention(const Context& context, const AttentionArgs& args) {
    args.element == Element::kBFloat16 ? attention_typed<Bf16>(context, args) : attention_typed<float>(context, args);
}
