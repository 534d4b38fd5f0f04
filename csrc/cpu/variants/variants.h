// The compiled variants, one per file beside this.
#pragma once

#include "kernel_table.h"

namespace moelens {

extern const KernelTable scalar_table;
#if defined(__x86_64__)
extern const KernelTable avx2_table;
extern const KernelTable avx512_table;
extern const KernelTable avx512_bf16_table;
#endif

}  // namespace moelens
