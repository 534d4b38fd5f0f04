// All kernels of one variant, included inside its target region and namespace, and their table.

#include "kernels/lanes.inl.h"
#include "kernels/math.inl.h"
#include "kernels/norm.inl.h"
#include "kernels/embed.inl.h"
#include "kernels/split_qkv.inl.h"
#include "kernels/elementwise.inl.h"
#include "kernels/route.inl.h"
#include "kernels/formats.inl.h"
#include "kernels/fetching.inl.h"
#include "kernels/tile.inl.h"
#include "kernels/tile_registers.inl.h"
#include "kernels/panels.inl.h"
#include "kernels/linear.inl.h"
#include "kernels/project_qkv.inl.h"
#include "kernels/project_and_route.inl.h"
#include "kernels/expert_plan.inl.h"
#include "kernels/experts.inl.h"
#include "kernels/quads.inl.h"
#include "kernels/linear_int8.inl.h"
#include "kernels/experts_int8.inl.h"
#include "kernels/pack.inl.h"
#include "kernels/exp2.inl.h"
#include "kernels/attention_cache.inl.h"
#include "kernels/attention_panel.inl.h"
#include "kernels/attention.inl.h"
#include "kernels/attention_plan.inl.h"
#include "kernels/write_kv.inl.h"
#include "kernels/mask_logits.inl.h"
#include "kernels/sample_order.inl.h"
#include "kernels/sample_row.inl.h"
#include "kernels/sample_bins.inl.h"
#include "kernels/sample.inl.h"
#include "kernels/ceilings.inl.h"

// One name a line, in the order of KernelTable.
// clang-format off
constexpr KernelTable kTable = {
    MOELENS_ISA,
    rms_norm,
    layer_norm,
    embed,
    split_qkv,
    scale,
    sigmoid,
    route,
    linear,
    linear_int8,
    project_qkv,
    project_and_route,
    experts,
    experts_int8,
    write_kv,
    attention,
    mask_logits,
    sample,
    read_memory,
    multiply_registers,
    multiply_quads,
    pack_matrix,
    pack_matrix_int8,
    pack_gate_up,
    pack_gate_up_int8,
};
// clang-format on
