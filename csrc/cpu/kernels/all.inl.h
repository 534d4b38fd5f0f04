// All kernels of one variant, included inside its target region and namespace, and their table.

#include "kernels/lanes.inl.h"
#include "kernels/norm.inl.h"
#include "kernels/tile.inl.h"
#include "kernels/panels.inl.h"
#include "kernels/linear.inl.h"
#include "kernels/pack.inl.h"

constexpr KernelTable kTable = {
    MOELENS_ISA, rms_norm, layer_norm, linear, pack_matrix,
};
