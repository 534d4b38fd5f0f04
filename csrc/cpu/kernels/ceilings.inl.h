// What the machine can do at most, with the threads and instructions that the kernels use: for benches and plans.

#ifdef MOELENS_DOT_PAIRS
constexpr int64_t kFlopsPerLane = 4;
MOELENS_INLINE F32 multiply_once(F32 a, F32 b, F32 sum) {
    return dot_pairs(a, b, sum);
}
#else
constexpr int64_t kFlopsPerLane = 2;
MOELENS_INLINE F32 multiply_once(F32 a, F32 b, F32 sum) {
    return fma(a, b, sum);
}
#endif

// Reads all of args.data, and does nothing that takes longer.
inline float read_part(const float* part, int64_t count) {
    constexpr int kStreams = 4;
    F32 sums[kStreams];
    for (F32& one : sums) one = zeros();
    for (int64_t i = 0; i + kStreams * kLanes <= count; i += kStreams * kLanes) {
#pragma GCC unroll 16
        for (int j = 0; j < kStreams; ++j) sums[j] = sums[j] + load(part + i + j * kLanes);
    }
    for (int j = 1; j < kStreams; ++j) sums[0] = sums[0] + sums[j];
    return sum(sums[0]);
}

void read_memory(const Context& context, const CeilingArgs& args) {
    const int64_t threads = context.team.threads();
    run_tasks(context, threads, [&](int64_t task, int) {
        const int64_t begin = task * args.count / threads, end = (task + 1) * args.count / threads;
        args.results[task] = read_part(args.data + begin, end - begin);
    });
}

// Calls multiply(a, b, sum) on registers only, in each thread a little more than args.count flops. data holds two
// vectors.
template <class Multiply>
void multiply_in_registers(const Context& context, const CeilingArgs& args, int64_t flops_per_lane,
                           const Multiply& multiply) {
    constexpr int kSums = kLanes >= 16 ? 16 : 12;  // what hides the latency of two a cycle, and leaves two registers
    const int64_t rounds = args.count / (kSums * kLanes * flops_per_lane) + 1;
    *args.flops = context.team.threads() * rounds * kSums * kLanes * flops_per_lane;
    run_tasks(context, context.team.threads(), [&](int64_t task, int) {
        const F32 a = load(args.data), b = load(args.data + kLanes);
        F32 sums[kSums];
        for (F32& one : sums) one = zeros();
        for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 16
            for (int j = 0; j < kSums; ++j) sums[j] = multiply(a, b, sums[j]);
        }
        for (int j = 1; j < kSums; ++j) sums[0] = sums[0] + sums[j];
        args.results[task] = sum(sums[0]);
    });
}

#ifdef MOELENS_TILES
// The same of tile registers; dot(sums, a, b) is one of theirs, of `depth` ks a step.
#define MOELENS_MULTIPLY_TILES(name, dot, depth)                                                 \
    void name(const Context& context, const CeilingArgs& args) {                                 \
        constexpr int64_t kFlops = 4 * 2 * kRegisterRows * kHalfColumns * (depth) * kBlockSteps; \
        const int64_t rounds = args.count / kFlops + 1;                                          \
        *args.flops = context.team.threads() * rounds * kFlops;                                  \
        run_tasks(context, context.team.threads(), [&](int64_t task, int) {                      \
            shape_tiles(kMaxRows);                                                               \
            MOELENS_TILE_LOAD(4, args.data, 0);                                                  \
            MOELENS_TILE_LOAD(5, args.data, 0);                                                  \
            MOELENS_TILE_LOAD(6, args.data + kLanes, 0);                                         \
            MOELENS_TILE_LOAD(7, args.data + kLanes, 0);                                         \
            alignas(64) float sums[kRegisterRows * kHalfColumns] = {};                           \
            begin_sums<true>(sums, 0, false);                                                    \
            for (int64_t i = 0; i < rounds; ++i) {                                               \
                dot(0, 4, 6);                                                                    \
                dot(1, 4, 7);                                                                    \
                dot(2, 5, 6);                                                                    \
                dot(3, 5, 7);                                                                    \
            }                                                                                    \
            MOELENS_TILE_STORE(0, sums, kRegisterBytes);                                         \
            args.results[task] = sums[0];                                                        \
        });                                                                                      \
    }
MOELENS_MULTIPLY_TILES(multiply_registers, MOELENS_TILE_DOT_PAIRS, TilePairs::kDepth)
MOELENS_MULTIPLY_TILES(multiply_quads, MOELENS_TILE_DOT_QUADS, Quads::kDepth)
#else
void multiply_registers(const Context& context, const CeilingArgs& args) {
    multiply_in_registers(context, args, kFlopsPerLane, [](F32 a, F32 b, F32 sum) { return multiply_once(a, b, sum); });
}

// Of 8-bit whole numbers, as linear_int8 multiplies them.
void multiply_quads(const Context& context, const CeilingArgs& args) {
    constexpr int64_t kQuadFlopsPerLane = 8;
    multiply_in_registers(context, args, kQuadFlopsPerLane, [](F32 a, F32 b, F32 sum) { return dot_quads(a, b, sum); });
}
#endif
