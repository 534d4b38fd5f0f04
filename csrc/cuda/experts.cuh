// experts: the rows of each expert gathered, gate · up · activation in one product, down, and the weighted sum.
#pragma once

#include "launch.h"
#include "product.cuh"

namespace moelens {

constexpr int kInnerColumns = kPanelColumns / 2;  // of a panel of gates and ups

// Sorted rows, as sort_by_expert leaves them.
struct SortedRows {
    const int32_t* order;
    const int32_t* offsets;
    const int32_t* tile_starts;
    int experts;
};

struct ExpertTile {
    int expert;  // experts: there is nothing to do for this block
    int row_tile, column_tile;
};

// Block b's tile. Each expert has as many blocks as tiles of rows times tiles of columns, expert after expert and rows
// first within one, so that blocks that run together share weights. The number of blocks is an upper bound.
__device__ __forceinline__ ExpertTile find_tile(const SortedRows& sorted, int column_tiles) {
    const int lane = threadIdx.x % 32, block = static_cast<int>(blockIdx.x);
    int expert = 0;
    for (int first = 0; first < sorted.experts; first += 32) {
        const int e = first + lane;
        const bool is_before = e < sorted.experts && sorted.tile_starts[e + 1] * column_tiles <= block;
        expert += __popc(__ballot_sync(kAllLanes, is_before));
    }
    if (expert == sorted.experts) return {expert, 0, 0};
    const int start = sorted.tile_starts[expert], row_tiles = sorted.tile_starts[expert + 1] - start;
    const int within = block - start * column_tiles;
    return {expert, within % row_tiles, within / row_tiles};
}

template <class Shape>
__device__ __forceinline__ Tile tile_of(const SortedRows& sorted, const ExpertTile& at, const unsigned char* weights,
                                        int first_panel, int panels, int inner) {
    const int steps = (inner + 1) / 2;
    return {sorted.offsets[at.expert] + at.row_tile * Shape::kRows,
            sorted.offsets[at.expert + 1],
            first_panel,
            panels,
            weights + static_cast<int64_t>(at.expert) * panels * steps * kStepBytes,
            steps};
}

__device__ __forceinline__ float activate(float a, Activation activation) {
    if (activation == Activation::kSilu) return a / (1.0f + expf(-a));
    if (activation == Activation::kGelu) return 0.5f * a * (1.0f + erff(a * 0.70710678118654752f));
    const float inner = 0.79788456080286536f * (a + 0.044715f * a * a * a);
    return 0.5f * a * (1.0f + tanhf(inner));
}

struct GateUpArgs {
    SourceRows source;
    SortedRows sorted;
    const unsigned char* gate_up;
    Bf16* inner;  // [pairs, 16 * panels], sorted
    int active, hidden, panels;
    Activation activation;
};

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocksPerProcessor) gate_up_kernel(GateUpArgs args) {
    const ExpertTile at = find_tile(args.sorted, (args.panels + kTilePanels - 1) / kTilePanels);
    if (at.expert == args.sorted.experts) return;
    const Tile tile =
        tile_of<Shape>(args.sorted, at, args.gate_up, at.column_tile * kTilePanels, args.panels, args.hidden);
    const int64_t stride = static_cast<int64_t>(kInnerColumns) * args.panels;
    multiply_tile<Shape>(
        tile, args.source, [&](int row) { return static_cast<int64_t>(args.sorted.order[row] / args.active); },
        [&](int row, int panel, int column, const float (&gate)[4], const float (&up)[4]) {
            float inner[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) inner[j] = activate(gate[j], args.activation) * up[j];
            store_four(args.inner + row * stride + panel * kInnerColumns + column, inner);
        });
}

struct DownArgs {
    SourceRows source;  // the inner activations
    SortedRows sorted;
    const unsigned char* down;
    const float* scores;  // [pairs]
    float* terms;         // [pairs, term_columns], in the pairs' own order
    int width, panels, first_panel, term_columns;
};

// A range of the columns, from first_panel on: as many as `terms` has.
template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocksPerProcessor) down_kernel(DownArgs args) {
    const ExpertTile at = find_tile(args.sorted, args.term_columns / (kTilePanels * kPanelColumns));
    if (at.expert == args.sorted.experts) return;
    const int first_panel = args.first_panel + at.column_tile * kTilePanels;
    const Tile tile = tile_of<Shape>(args.sorted, at, args.down, first_panel, args.panels, args.width);
    multiply_tile<Shape>(
        tile, args.source, [](int row) { return static_cast<int64_t>(row); },
        [&](int row, int panel, int column, const float (&first)[4], const float (&second)[4]) {
            const int pair = args.sorted.order[row];
            const float score = args.scores[pair];
            float a[4], b[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) a[j] = score * first[j], b[j] = score * second[j];
            float* out = args.terms + static_cast<int64_t>(pair) * args.term_columns +
                         (panel - args.first_panel) * kPanelColumns + column;
            store_four(out, a);
            store_four(out + 16, b);
        });
}

constexpr int kCombineThreads = 128;

template <class Out>
struct CombineArgs {
    const float* terms;  // [tokens * active, term_columns]
    const Out* residual;
    Out* out;
    int active, hidden, first_column, columns, term_columns;
    float scale;
};

// Columns [first_column, first_column + columns) of the result; a block per token, terms added in ascending order.
template <class Out>
__global__ void __launch_bounds__(kCombineThreads) combine_kernel(CombineArgs<Out> args) {
    const int64_t token = blockIdx.x;
    const float* terms = args.terms + token * args.active * args.term_columns;
    const int64_t begin = token * args.hidden + args.first_column;
    for (int i = threadIdx.x; i < args.columns; i += kCombineThreads) {
        float total = terms[i];
        for (int a = 1; a < args.active; ++a) total += terms[static_cast<int64_t>(a) * args.term_columns + i];
        const float residual = args.residual != nullptr ? widen(args.residual[begin + i]) : 0.0f;
        args.out[begin + i] = narrow<Out>(residual + args.scale * total);
    }
}

}  // namespace moelens
