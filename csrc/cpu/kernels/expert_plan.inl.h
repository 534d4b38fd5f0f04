// How the tokens of one call of `experts` are sorted and cut into tasks.
//
// A slot is one (token, active expert). Tokens are taken in groups; within a group, slots are sorted by expert and, of
// one expert, by token: a segment. A row's place changes nothing in its sums, so every number here is free to choose.

struct Segment {
    int64_t begin, rows, tiles;  // sorted slots begin … begin + rows
    int32_t expert;
};

// Rows of some tiles of a segment times some panels of gate and up.
struct GateUpTask {
    int32_t segment, block;
    int64_t first_tile, last_tile, first_panel, last_panel;
};

struct ExpertPlan {
    int64_t tokens, groups, active;
    int64_t segment_count;  // groups * experts; a group's segments are consecutive, and may be empty
    int64_t task_count;
    Segment* segments;
    GateUpTask* tasks;
    int32_t* token_at;  // [sorted slot]
    float* score_at;    // [sorted slot]

    int64_t first_token(int64_t group) const { return group * tokens / groups; }
    // What the thread that does task `index` will take next, if all threads are equally fast.
    const GateUpTask& following(int64_t index, int threads) const {
        return tasks[smaller(index + threads, task_count - 1)];
    }
};

// Work of some rows on a byte of weights, in units of reading it from memory: from about 10 rows on, computing rules.
constexpr int64_t kRowsPerRead = 10;

struct GateUpTiling {
    int64_t panels, panel_bytes;
    int64_t tiles_per_block;  // whose packed rows stay in the second-level cache
    int64_t task_cost;        // wanted: bytes of weights times reads

    // Such that tasks are of no more than the wanted cost, or of one panel, and of panels as even as can be.
    int64_t panels_per_task(int64_t rows) const {
        const int64_t most = task_cost * kRowsPerRead / (panel_bytes * larger(kRowsPerRead, rows));
        return divide_rounding_up(panels, divide_rounding_up(panels, larger(1, smaller(panels, most))));
    }
};

// Fills token_at, score_at and segments.
void sort_slots(const int32_t* ids, const float* scores, int64_t experts, ExpertPlan& plan) {
    int64_t begin = 0;
    for (int64_t group = 0; group < plan.groups; ++group) {
        const int64_t first = plan.first_token(group) * plan.active, last = plan.first_token(group + 1) * plan.active;
        Segment* segments = plan.segments + group * experts;
        for (int64_t e = 0; e < experts; ++e) segments[e] = {0, 0, 0, static_cast<int32_t>(e)};
        for (int64_t slot = first; slot < last; ++slot) ++segments[ids[slot]].rows;
        for (int64_t e = 0; e < experts; ++e) {
            segments[e].begin = begin;
            segments[e].tiles = tile_count(segments[e].rows);
            begin += segments[e].rows;
            segments[e].rows = 0;  // counts again below
        }
        for (int64_t token = first / plan.active, slot = first; slot < last; ++token) {
            for (int64_t a = 0; a < plan.active; ++a, ++slot) {
                Segment& segment = segments[ids[slot]];
                const int64_t sorted = segment.begin + segment.rows++;
                plan.token_at[sorted] = static_cast<int32_t>(token);
                plan.score_at[sorted] = scores[slot];
            }
        }
    }
}

// Fills tasks, and counts them. Consecutive tasks share their rows where they can.
void cut_gate_up(const GateUpTiling& tiling, ExpertPlan& plan) {
    plan.task_count = 0;
    int32_t block = 0;
    for (int64_t i = 0; i < plan.segment_count; ++i) {
        // All groups of one expert in turn, while its weights are near.
        const int64_t s = i % plan.groups * (plan.segment_count / plan.groups) + i / plan.groups;
        const Segment& segment = plan.segments[s];
        const int64_t blocks = divide_rounding_up(segment.tiles, tiling.tiles_per_block);
        for (int64_t b = 0; b < blocks; ++b, ++block) {
            const int64_t first_tile = b * segment.tiles / blocks, last_tile = (b + 1) * segment.tiles / blocks;
            const int64_t rows = segment.rows * (last_tile - first_tile) / segment.tiles;
            const int64_t step = tiling.panels_per_task(rows);
            for (int64_t panel = 0; panel < tiling.panels; panel += step) {
                plan.tasks[plan.task_count++] = {
                    static_cast<int32_t>(s), block, first_tile, last_tile, panel, smaller(tiling.panels, panel + step)};
            }
        }
    }
}
