// The kernels for AVX2 with FMA.
#include "variants/standard.h"
#include "variants/variants.h"

#if defined(MOELENS_HAS_AVX2)

#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")

namespace moelens {
namespace {

#define MOELENS_ISA "avx2"
#include "vec/avx2.h"
#include "kernels/all.inl.h"

}  // namespace

const KernelTable avx2_table = kTable;

}  // namespace moelens

#pragma GCC pop_options

#endif
