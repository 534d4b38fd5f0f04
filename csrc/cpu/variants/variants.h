// The compiled variants, one per file beside this.
#pragma once

#include "kernel_table.h"

#if defined(__x86_64__)
#ifndef MOELENS_WITHOUT_AVX2
#define MOELENS_HAS_AVX2 1
#endif
#ifndef MOELENS_WITHOUT_AVX512
#define MOELENS_HAS_AVX512 1
#endif
#ifndef MOELENS_WITHOUT_AVX512_BF16
#define MOELENS_HAS_AVX512_BF16 1
#endif
// Whether the assembler knows the instructions, and the operating system is one that lets us ask for the registers.
#if !defined(MOELENS_WITHOUT_AMX_BF16) && !defined(MOELENS_EMULATE_TILES) && defined(__linux__) && \
    __has_include(<amxbf16intrin.h>)
#define MOELENS_HAS_AMX 1
#endif
#endif

namespace moelens {

extern const KernelTable scalar_table;
#if defined(MOELENS_HAS_AVX2)
extern const KernelTable avx2_table;
#endif
#if defined(MOELENS_HAS_AVX512)
extern const KernelTable avx512_table;
#endif
#if defined(MOELENS_HAS_AVX512_BF16)
extern const KernelTable avx512_bf16_table;
#endif
#if defined(MOELENS_HAS_AMX) || defined(MOELENS_EMULATE_TILES)
extern const KernelTable amx_bf16_table;
#endif

}  // namespace moelens
