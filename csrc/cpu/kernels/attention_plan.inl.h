// The tasks of one call of attention: runs of query blocks that take about the same time. They don't change results.

struct AttentionPlan {
    int64_t* first_block;  // [S + 1]: of each request; its blocks are ordered by head, then by row
    int64_t* task_begin;   // [tasks + 1], in blocks
    int64_t tasks;
    int64_t heads;  // of the blocks of requests with few rows
};

// How the rows of a request are cut.
struct RequestCut {
    int64_t rows;
    int64_t heads_per_block, head_blocks;
    int64_t row_blocks;

    int64_t blocks() const { return head_blocks * row_blocks; }
};

inline RequestCut cut_request(const AttentionArgs& args, const AttentionPlan& plan, int64_t request) {
    RequestCut cut;
    cut.rows = (args.starts[request + 1] - args.starts[request]) * (args.query_heads / args.kv_heads);
    const bool few = cut.rows <= kMaxRows && cut.rows > 0;
    cut.heads_per_block = few ? smaller(plan.heads, kBlockRows / cut.rows) : 1;
    cut.head_blocks = divide_rounding_up(args.kv_heads, cut.heads_per_block);
    cut.row_blocks = divide_rounding_up(cut.rows, kWideRows);
    return cut;
}

inline QueryBlock block_of(const AttentionArgs& args, const RequestCut& cut, int64_t request, int64_t index) {
    const int64_t head = index / cut.row_blocks * cut.heads_per_block, part = index % cut.row_blocks;
    return {request, head, smaller(args.kv_heads, head + cut.heads_per_block), part * cut.rows / cut.row_blocks,
            (part + 1) * cut.rows / cut.row_blocks};
}

inline QueryBlock find_block(const AttentionArgs& args, const AttentionPlan& plan, int64_t block) {
    int64_t low = 0, high = args.requests;  // first_block[low] <= block < first_block[high]
    while (high - low > 1) {
        const int64_t middle = (low + high) / 2;
        (plan.first_block[middle] <= block ? low : high) = middle;
    }
    return block_of(args, cut_request(args, plan, low), low, block - plan.first_block[low]);
}

// In about 50 ns of one thread: reading a tile takes as long as multiplying it with 8 rows.
inline int64_t block_cost(const AttentionArgs& args, const QueryBlock& block) {
    const TileRange tiles = tiles_of(args, block);
    const int64_t per_head = block.rows() + 8 * block.panels_per_head();
    return (tiles.end - tiles.first) * per_head * (block.end_head - block.first_head);
}

// Calls f(request, index in the request, block) for every block in order.
template <class Visit>
void for_blocks(const AttentionArgs& args, const AttentionPlan& plan, const Visit& f) {
    for (int64_t request = 0; request < args.requests; ++request) {
        const RequestCut cut = cut_request(args, plan, request);
        for (int64_t i = 0; i < cut.blocks(); ++i) f(request, i, block_of(args, cut, request, i));
    }
}

inline AttentionPlan plan_attention(const AttentionArgs& args, int threads, Buffer& memory) {
    constexpr int64_t kLeastCost = 1000, kTasksPerThread = 8;
    AttentionPlan plan;
    plan.heads = args.kv_heads;
    while (plan.heads > 1 && args.requests * (args.kv_heads / plan.heads) < 4 * threads)
        plan.heads = (plan.heads + 1) / 2;
    int64_t blocks = 0, total = 0;
    for_blocks(args, plan, [&](int64_t, int64_t, const QueryBlock& block) {
        ++blocks;
        total += block_cost(args, block);
    });
    plan.first_block = static_cast<int64_t*>(memory.reserve((args.requests + blocks + 2) * sizeof(int64_t)));
    plan.task_begin = plan.first_block + args.requests + 1;
    plan.tasks = 0;
    const int64_t wanted = larger(kLeastCost, total / (kTasksPerThread * threads));
    int64_t block = 0, cost = wanted;
    for (int64_t request = 0; request < args.requests; ++request) {
        const RequestCut cut = cut_request(args, plan, request);
        plan.first_block[request] = block;
        for (int64_t i = 0; i < cut.blocks(); ++i, ++block) {
            if (cost >= wanted) {
                plan.task_begin[plan.tasks++] = block;
                cost = 0;
            }
            cost += block_cost(args, block_of(args, cut, request, i));
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
            pass.attend(block, i + 1 < end ? &next : nullptr);
            block = next;
        }
    });
}

void attention(const Context& context, const AttentionArgs& args) {
    args.element == Element::kBFloat16 ? attention_typed<Bf16>(context, args) : attention_typed<float>(context, args);
}
