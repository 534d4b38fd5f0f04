// The kernels for AVX-512 F, BW, VL and DQ.
#include "variants/standard.h"
#include "variants/variants.h"

#if defined(MOELENS_HAS_AVX512)

#pragma GCC push_options
// GCC 12 warns of its own intrinsics, some of which start from an undefined vector.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")

namespace moelens {
namespace {

#define MOELENS_ISA "avx512"
#include "vec/avx512.h"
#include "kernels/all.inl.h"

}  // namespace

const KernelTable avx512_table = kTable;

}  // namespace moelens

#pragma GCC pop_options

#endif
