// The kernels for any processor: vectors of four floats, which the compiler lowers to what there is.
#include "variants/standard.h"
#include "variants/variants.h"

namespace moelens {
namespace {

#define MOELENS_ISA "scalar"
#include "vec/scalar.h"
#include "kernels/all.inl.h"

}  // namespace

const KernelTable scalar_table = kTable;

}  // namespace moelens
