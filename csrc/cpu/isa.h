// Which compiled variants of the kernels this machine and its operating system can run.
#pragma once

#include <string>
#include <vector>

#include "kernel_table.h"

namespace moelens {

// Best first; never empty.
const std::vector<const KernelTable*>& available_variants();

// Whether memory that is read slowly, a few hundred bytes at a time between computations, should be prefetched by hand
// even where it lies in one piece. Measured for attention with 4 rows: on Zen 5 1.15 to 1.35 times as fast (by AMD's
// family number, so on what follows it too), on Zen 4, whose own prefetching does better, a fifth slower.
bool wants_prefetching();

// Throws std::invalid_argument that lists what there is.
const KernelTable& find_variant(const std::string& isa);

}  // namespace moelens
