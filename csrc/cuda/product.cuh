// The product of rows and panels that linear and experts share: bfloat16 operands, float32 sums, by tensor cores.
//
// Weights are read as csrc/cpu keeps them, so the host holds one copy for both: a panel is 32 columns, and a step of it
// (128 bytes) holds of each column the pair of elements 2 s and 2 s + 1. That suits a tensor core: a pair is a register
// of the fragment b. Which column of the panel is which column of the fragments is free to choose, as it only names
// the results, and is chosen so that a lane loads 16 bytes, four columns of a step, for four fragments at once:
//
//   column g of fragment j (0 … 3)  is  column 4 * (g / 2) + j of the panel      for even g,
//                                       column 16 + 4 * (g / 2) + j              for odd g.
//
// A lane then holds the sums of columns 4 p + j and 16 + 4 p + j, p = lane % 4: neighbours to store, and, where the
// panel is 16 gates and 16 ups, each gate beside its up.
//
// A sum takes its terms in ascending order of k, 16 at a time, whatever the tile's shape: a row's bits depend neither
// on the rows beside it nor on their number.
#pragma once

#include "element.cuh"

namespace moelens {

constexpr int kPanelColumns = 32;
constexpr int kStepBytes = 128;
constexpr int kStageDepth = 32;                   // the ks that are loaded at a time
constexpr int kStageSteps = kStageDepth / 2;      // in a panel
constexpr int kRowChunks = kStageDepth * 2 / 16;  // 16-byte chunks that a row has of a stage
constexpr int kTilePanels = 4;

// Rows are divided among WarpRows warps of RowFragments * 16 each; each of these is a group of one warp per panel.
template <int WarpRows, int RowFragments, int Stages>
struct TileShape {
    static constexpr int kWarpRows = WarpRows, kRowFragments = RowFragments, kStages = Stages;
    static constexpr int kRows = WarpRows * RowFragments * 16;
    static constexpr int kThreads = 32 * WarpRows * kTilePanels;
    static constexpr int kRowBytes = kRows * kStageDepth * 2;
    static constexpr int kStageBytes = kRowBytes + kTilePanels * kStageSteps * kStepBytes;
    static constexpr int kSharedBytes = Stages * kStageBytes;
    static constexpr int kRowLoads = (kRows * kRowChunks + kThreads - 1) / kThreads;  // a thread's chunks of a stage
    static constexpr int kBlocksPerProcessor = 2;
};

// Rows [first_row, end_row) of one group times panels [first_panel, end_panel) of its weights.
struct Tile {
    int first_row, end_row;
    int first_panel, end_panel;
    const unsigned char* panels;  // of the group's first panel
    int steps;                    // in a panel
};

// Rows of x, `stride` elements apart, of which `columns` may be read (a multiple of 8).
struct SourceRows {
    const Bf16* x;
    int64_t stride;
    int columns;
};

// A thread's part in loading a tile: some chunks of rows, some of panels.
template <class Shape, class RowOf>
class TileLoader {
  public:
    __device__ TileLoader(const Tile& tile, const SourceRows& source, const RowOf& row_of)
        : tile_(tile), columns_(source.columns), chunk_(threadIdx.x % kRowChunks) {
#pragma unroll
        for (int i = 0; i < Shape::kRowLoads; ++i) {
            const int row = tile.first_row + tile_row(i);
            const bool valid = tile_row(i) < Shape::kRows && row < tile.end_row;
            rows_[i] = valid ? source.x + row_of(row) * source.stride + 8 * chunk_ : nullptr;
        }
    }

    // Starts copying ks [depth, depth + kStageDepth) to a stage; zeros past the ends of rows, panels and ks.
    __device__ void load(unsigned char* stage, int depth) const {
#pragma unroll
        for (int i = 0; i < Shape::kRowLoads; ++i) {
            const int row = tile_row(i);
            if (row >= Shape::kRows) break;
            const bool valid = rows_[i] != nullptr && depth + 8 * chunk_ < columns_;
            copy_async(stage + row_chunk(row, chunk_), rows_[i] + depth, valid);
        }
        constexpr int kChunks = kTilePanels * kStageSteps * kStepBytes / 16;
        for (int at = threadIdx.x; at < kChunks; at += Shape::kThreads) {
            const int panel = at / (kStageSteps * 8), step = at / 8 % kStageSteps, chunk = at % 8;
            const int global_panel = tile_.first_panel + panel, global_step = depth / 2 + step;
            const bool valid = global_panel < tile_.end_panel && global_step < tile_.steps;
            const int64_t offset = (static_cast<int64_t>(global_panel) * tile_.steps + global_step) * kStepBytes;
            copy_async(stage + Shape::kRowBytes + panel_chunk(panel, step, chunk), tile_.panels + offset + 16 * chunk,
                       valid);
        }
    }

    // Where chunks lie in a stage: turned about, so that lanes that read together read from different banks.
    static __device__ int row_chunk(int row, int chunk) {
        return row * kStageDepth * 2 + (chunk ^ (row / 2 % kRowChunks)) * 16;
    }
    static __device__ int panel_chunk(int panel, int step, int chunk) {
        return (panel * kStageSteps + step) * kStepBytes + (chunk ^ (step % 4)) * 16;
    }

  private:
    static __device__ int tile_row(int load) {
        return (static_cast<int>(threadIdx.x) + load * Shape::kThreads) / kRowChunks;
    }

    Tile tile_;
    int columns_, chunk_;
    const Bf16* rows_[Shape::kRowLoads];
};

// The sums of one warp's rows and its panel: [fragment of rows][fragment of columns][as the tensor core returns them].
template <class Shape>
using Sums = float[Shape::kRowFragments][4][4];

// Adds the products of one stage.
template <class Shape, class Loader>
__device__ __forceinline__ void multiply_stage(const unsigned char* stage, Sums<Shape>& sums) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, panel = warp % kTilePanels;
    const int first_row = warp / kTilePanels * Shape::kRowFragments * 16;
    const int group = lane / 4, pair = lane % 4, column_chunk = group / 2 + group % 2 * 4;
    const unsigned char* panels = stage + Shape::kRowBytes;
#pragma unroll
    for (int part = 0; part < kStageDepth / 16; ++part) {
        uint32_t a[Shape::kRowFragments][4];
#pragma unroll
        for (int i = 0; i < Shape::kRowFragments; ++i) {
            load_fragments(a[i], stage + Loader::row_chunk(first_row + 16 * i + lane % 16, 2 * part + lane / 16));
        }
        const int step = 8 * part + pair;
        const uint4 b0 = *as_vector<const uint4>(panels + Loader::panel_chunk(panel, step, column_chunk));
        const uint4 b1 = *as_vector<const uint4>(panels + Loader::panel_chunk(panel, step + 4, column_chunk));
#pragma unroll
        for (int i = 0; i < Shape::kRowFragments; ++i) {
            multiply_fragments(sums[i][0], a[i], b0.x, b1.x);
            multiply_fragments(sums[i][1], a[i], b0.y, b1.y);
            multiply_fragments(sums[i][2], a[i], b0.z, b1.z);
            multiply_fragments(sums[i][3], a[i], b0.w, b1.w);
        }
    }
}

// Multiplies a tile and gives its sums away: use(row, panel, column, first, second) for four columns from `column` of
// the panel on, and for four from 16 + `column` on. row_of(row) is the row of x for a row of the tile.
template <class Shape, class RowOf, class Use>
__device__ __forceinline__ void multiply_tile(const Tile& tile, const SourceRows& source, const RowOf& row_of,
                                              const Use& use) {
    MOELENS_DYNAMIC_SHARED(unsigned char, stages);
    using Loader = TileLoader<Shape, RowOf>;
    const Loader loader(tile, source, row_of);
    const int count = (2 * tile.steps + kStageDepth - 1) / kStageDepth;
#pragma unroll
    for (int s = 0; s < Shape::kStages - 1; ++s) {
        if (s < count) loader.load(stages + s * Shape::kStageBytes, s * kStageDepth);
        commit_copies();
    }
    Sums<Shape> sums = {};
    for (int s = 0; s < count; ++s) {
        wait_for_copies<Shape::kStages - 2>();
        __syncthreads();  // everyone's copies are there, and everyone is done with the stage that is loaded next
        const int next = s + Shape::kStages - 1;
        if (next < count) loader.load(stages + next % Shape::kStages * Shape::kStageBytes, next * kStageDepth);
        commit_copies();
        multiply_stage<Shape, Loader>(stages + s % Shape::kStages * Shape::kStageBytes, sums);
    }
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, panel = tile.first_panel + warp % kTilePanels;
    if (panel >= tile.end_panel) return;
#pragma unroll
    for (int i = 0; i < Shape::kRowFragments; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = tile.first_row + (warp / kTilePanels * Shape::kRowFragments + i) * 16 + half * 8 + lane / 4;
            if (row >= tile.end_row) continue;
            float first[4], second[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) first[j] = sums[i][j][2 * half], second[j] = sums[i][j][2 * half + 1];
            use(row, panel, 4 * (lane % 4), first, second);
        }
    }
}

// The shapes of tiles: for a few rows, where weights are what takes time, and for many.
using FewRows = TileShape<1, 1, 4>;   // 16
using SomeRows = TileShape<2, 2, 3>;  // 64
using ManyRows = TileShape<2, 4, 3>;  // 128

// Calls f(a shape) for `rows` rows in each of the groups.
template <class F>
void with_tile_shape(int64_t rows_per_group, const F& f) {
    if (rows_per_group <= 24) {
        f(FewRows());
    } else if (rows_per_group <= 96) {
        f(SomeRows());
    } else {
        f(ManyRows());
    }
}

}  // namespace moelens
