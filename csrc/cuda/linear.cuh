// linear: residual + scale * (x Wᵀ + bias), rounded once.
#pragma once

#include "product.cuh"

namespace moelens {

template <class Out>
struct LinearRows {
    SourceRows source;
    const unsigned char* panels;
    const Bf16* bias;
    const Out* residual;
    Out* out;
    int rows, columns, inner;
    float scale;
};

// Four results from `column` on, of which those past the end are left out.
template <class Out>
__device__ __forceinline__ void write_linear(const LinearRows<Out>& args, int row, int column, const float (&sums)[4]) {
    const int64_t at = static_cast<int64_t>(row) * args.columns + column;
    const int count = min(4, args.columns - column);
    float y[4] = {sums[0], sums[1], sums[2], sums[3]}, base[4] = {};
    const bool whole = args.columns % 4 == 0 && count == 4;
    if (args.bias != nullptr) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            if (j < count) y[j] += widen(args.bias[column + j]);
        }
    }
    if (args.residual != nullptr) {
        if (whole) {
            load_four(args.residual + at, base);
        } else {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                if (j < count) base[j] = widen(args.residual[at + j]);
            }
        }
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) y[j] = base[j] + args.scale * y[j];
    if (whole) {
        store_four(args.out + at, y);
    } else {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
            if (j < count) args.out[at + j] = narrow<Out>(y[j]);
        }
    }
}

// Block b computes tile b % m of the rows, for the panels of tile b / m: neighbours share weights.
template <class Shape, class Out>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocksPerProcessor) linear_kernel(LinearRows<Out> args) {
    const int row_tiles = (args.rows + Shape::kRows - 1) / Shape::kRows;
    const int first_row = static_cast<int>(blockIdx.x) % row_tiles * Shape::kRows;
    const int first_panel = static_cast<int>(blockIdx.x) / row_tiles * kTilePanels;
    const int panels = (args.columns + kPanelColumns - 1) / kPanelColumns;
    const Tile tile{first_row, args.rows, first_panel, panels, args.panels, (args.inner + 1) / 2};
    multiply_tile<Shape>(
        tile, args.source, [](int row) { return static_cast<int64_t>(row); },
        [&](int row, int panel, int column, const float (&first)[4], const float (&second)[4]) {
            const int at = panel * kPanelColumns + column;
            write_linear(args, row, at, first);
            write_linear(args, row, at + 16, second);
        });
}

}  // namespace moelens
