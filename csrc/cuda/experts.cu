// Starts experts: sort, gate and up, and then down and the sum, for as many columns at a time as the workspace holds.
#include "experts.cuh"

#include <algorithm>

#include "sort_by_expert.cuh"
#include "starting.h"

namespace moelens {

namespace {

constexpr int64_t kTermBytes = int64_t{64} << 20;  // of terms at a time, unless one tile of columns takes more
constexpr int64_t kAlignment = 256;

// What lies in the workspace, one after another.
struct Workspace {
    int64_t order, offsets, tile_starts, inner, terms, total;  // in bytes
    int64_t term_columns;
};

Workspace plan_workspace(int64_t tokens, int64_t hidden, int64_t experts, int64_t active, int64_t width) {
    Workspace w = {};
    const int64_t pairs = tokens * active, tile_columns = kTilePanels * kPanelColumns;
    const int64_t most = kTermBytes / (pairs * static_cast<int64_t>(sizeof(float))) / tile_columns * tile_columns;
    w.term_columns = std::min(round_up(hidden, tile_columns), std::max(tile_columns, most));
    const auto take = [&](int64_t bytes) {
        const int64_t begin = w.total;
        w.total = round_up(w.total + bytes, kAlignment);
        return begin;
    };
    w.order = take(4 * pairs);
    w.offsets = take(4 * (experts + 1));
    w.tile_starts = take(4 * (experts + 1));
    w.inner = take(2 * pairs * round_up(width, kInnerColumns));
    w.terms = take(4 * pairs * w.term_columns);
    return w;
}

// A call's arguments, its workspace and the shape of its tiles.
struct Call {
    const ExpertsArgs& args;
    Workspace workspace;
    cudaStream_t stream;

    template <class T>
    T* at(int64_t offset) const {
        return reinterpret_cast<T*>(static_cast<unsigned char*>(args.workspace) + offset);
    }
    int pairs() const { return static_cast<int>(args.tokens * args.active); }
    SortedRows sorted() const {
        return {at<const int32_t>(workspace.order), at<const int32_t>(workspace.offsets),
                at<const int32_t>(workspace.tile_starts), static_cast<int>(args.experts)};
    }
    // No more tiles than this, however the rows fall: every expert that is used may leave one half empty.
    unsigned blocks(int tile_rows, int64_t column_tiles) const {
        const int64_t tiles = pairs() / tile_rows + std::min<int64_t>(args.experts, pairs());
        return static_cast<unsigned>(tiles * column_tiles);
    }
};

void sort(const Call& call, int tile_rows) {
    const int experts = static_cast<int>(call.args.experts);
    const SortArgs args{call.args.ids,
                        call.pairs(),
                        experts,
                        tile_rows,
                        call.at<int32_t>(call.workspace.order),
                        call.at<int32_t>(call.workspace.offsets),
                        call.at<int32_t>(call.workspace.tile_starts)};
    const int shared_bytes = kSortWarps * experts * static_cast<int>(sizeof(int));
    const auto kernel = sort_by_expert_kernel;
    check("experts", cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                          cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
    MOELENS_LAUNCH(kernel, dim3(1), dim3(kSortThreads), static_cast<size_t>(shared_bytes), call.stream, args);
    check_launch("experts (sort)");
}

template <class Shape>
void multiply_gate_up(const Call& call) {
    const ExpertsArgs& args = call.args;
    const int panels = static_cast<int>(divide_rounding_up(args.width, kInnerColumns));
    const GateUpArgs gate_up{
        {static_cast<const Bf16*>(args.x), args.x_stride, static_cast<int>(round_up(args.hidden, 8))},
        call.sorted(),
        static_cast<const unsigned char*>(args.gate_up),
        call.at<Bf16>(call.workspace.inner),
        static_cast<int>(args.active),
        static_cast<int>(args.hidden),
        panels,
        args.activation};
    const dim3 blocks(call.blocks(Shape::kRows, divide_rounding_up(panels, kTilePanels)));
    MOELENS_LAUNCH(gate_up_kernel<Shape>, blocks, dim3(Shape::kThreads), Shape::kSharedBytes, call.stream, gate_up);
    check_launch("experts (gate and up)");
}

template <class Shape>
void multiply_down(const Call& call, int64_t first_column) {
    const ExpertsArgs& args = call.args;
    const int64_t stride = round_up(args.width, kInnerColumns);
    const DownArgs down{{call.at<const Bf16>(call.workspace.inner), stride, static_cast<int>(stride)},
                        call.sorted(),
                        static_cast<const unsigned char*>(args.down),
                        args.scores,
                        call.at<float>(call.workspace.terms),
                        static_cast<int>(args.width),
                        static_cast<int>(divide_rounding_up(args.hidden, kPanelColumns)),
                        static_cast<int>(first_column / kPanelColumns),
                        static_cast<int>(call.workspace.term_columns)};
    const dim3 blocks(call.blocks(Shape::kRows, call.workspace.term_columns / (kTilePanels * kPanelColumns)));
    MOELENS_LAUNCH(down_kernel<Shape>, blocks, dim3(Shape::kThreads), Shape::kSharedBytes, call.stream, down);
    check_launch("experts (down)");
}

template <class Out>
void combine(const Call& call, int64_t first_column) {
    const ExpertsArgs& args = call.args;
    const CombineArgs<Out> combined{call.at<const float>(call.workspace.terms),
                                    static_cast<const Out*>(args.residual),
                                    static_cast<Out*>(args.out),
                                    static_cast<int>(args.active),
                                    static_cast<int>(args.hidden),
                                    static_cast<int>(first_column),
                                    static_cast<int>(std::min(call.workspace.term_columns, args.hidden - first_column)),
                                    static_cast<int>(call.workspace.term_columns),
                                    args.scale};
    MOELENS_LAUNCH(combine_kernel<Out>, dim3(static_cast<unsigned>(args.tokens)), dim3(kCombineThreads), 0, call.stream,
                   combined);
    check_launch("experts (sum)");
}

}  // namespace

int64_t experts_workspace_bytes(int64_t tokens, int64_t hidden, int64_t experts, int64_t active, int64_t width) {
    return plan_workspace(tokens, hidden, experts, active, width).total;
}

void experts(const ExpertsArgs& args, Stream stream) {
    const Call call{args, plan_workspace(args.tokens, args.hidden, args.experts, args.active, args.width),
                    stream_of(stream)};
    with_tile_shape(divide_rounding_up(call.pairs(), args.experts), [&](auto shape) {
        using Shape = decltype(shape);
        sort(call, Shape::kRows);
        multiply_gate_up<Shape>(call);
        for (int64_t column = 0; column < args.hidden; column += call.workspace.term_columns) {
            multiply_down<Shape>(call, column);
            args.out_element == Element::kBFloat16 ? combine<Bf16>(call, column) : combine<float>(call, column);
        }
    });
}

}  // namespace moelens
