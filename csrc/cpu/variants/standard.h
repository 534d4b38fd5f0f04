// Everything from outside that kernels use. It comes before a variant's target region, so that no inline function of a
// header that other files share is compiled for a processor that they may not run on.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "isa.h"
#include "kernel_table.h"

#define MOELENS_INLINE inline __attribute__((always_inline))
#define MOELENS_INLINED __attribute__((always_inline))  // of a lambda
