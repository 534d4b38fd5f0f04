// The kernels for AVX-512 with the dot products of bfloat16 and of bytes (VNNI).
#include "variants/standard.h"
#include "variants/variants.h"

#if defined(MOELENS_HAS_AVX512_BF16)

#pragma GCC push_options
// GCC 12 warns of its own intrinsics, some of which start from an undefined vector.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni,avx2,fma,f16c")

namespace moelens {
namespace {

#define MOELENS_ISA "avx512_bf16"
#define MOELENS_PACED_ROWS 5  // whose multiplications take less than 12 cycles a step
#include "vec/avx512_bf16.h"
#include "kernels/all.inl.h"

}  // namespace

const KernelTable avx512_bf16_table = kTable;

}  // namespace moelens

#pragma GCC pop_options

#endif
