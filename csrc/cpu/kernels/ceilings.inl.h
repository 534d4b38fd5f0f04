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

// Multiplies in registers only, in each thread a little more than args.count flops. data holds two vectors.
void multiply_registers(const Context& context, const CeilingArgs& args) {
    constexpr int kSums = 12;
    const int64_t rounds = args.count / (kSums * kLanes * kFlopsPerLane) + 1;
    *args.flops = context.team.threads() * rounds * kSums * kLanes * kFlopsPerLane;
    run_tasks(context, context.team.threads(), [&](int64_t task, int) {
        const F32 a = load(args.data), b = load(args.data + kLanes);
        F32 sums[kSums];
        for (F32& one : sums) one = zeros();
        for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 16
            for (int j = 0; j < kSums; ++j) sums[j] = multiply_once(a, b, sums[j]);
        }
        for (int j = 1; j < kSums; ++j) sums[0] = sums[0] + sums[j];
        args.results[task] = sum(sums[0]);
    });
}
