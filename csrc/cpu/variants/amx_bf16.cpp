// The kernels for AMX with bfloat16, and AVX-512 as in avx512_bf16.cpp.
#include "variants/standard.h"
#include "variants/variants.h"

#if defined(MOELENS_HAS_AMX) || defined(MOELENS_EMULATE_TILES)

#pragma GCC push_options
// GCC 12 warns of its own intrinsics, some of which start from an undefined vector.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#ifndef MOELENS_EMULATE_TILES
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni,avx2,fma,f16c")
#endif

namespace moelens {
namespace {

#define MOELENS_ISA "amx_bf16"
#include "vec/amx_bf16.h"
#include "kernels/all.inl.h"

}  // namespace

const KernelTable amx_bf16_table = kTable;

}  // namespace moelens

#pragma GCC pop_options

#endif
