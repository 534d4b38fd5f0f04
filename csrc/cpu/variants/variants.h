// The compiled variants, one per file beside this.
#pragma once

#include "kernel_table.h"

// Whether the assembler knows the instructions, and the operating system is one that lets us ask for the registers.
#if !defined(MOELENS_EMULATE_TILES) && defined(__x86_64__) && defined(__linux__) && __has_include(<amxbf16intrin.h>)
#define MOELENS_HAS_AMX 1
#endif

namespace moelens {

extern const KernelTable scalar_table;
#if defined(__x86_64__)
extern const KernelTable avx2_table;
extern const KernelTable avx512_table;
extern const KernelTable avx512_bf16_table;
#endif
#if defined(MOELENS_HAS_AMX) || defined(MOELENS_EMULATE_TILES)
extern const KernelTable amx_bf16_table;
#endif

}  // namespace moelens
