// Which compiled variants of the kernels this machine and its operating system can run.
#pragma once

#include <string>
#include <vector>

#include "kernel_table.h"

namespace moelens {

// Best first; never empty.
const std::vector<const KernelTable*>& available_variants();

// Whether what a product of few rows reads next should be prefetched to the first-level cache, not to the second.
// Measured with cold weights and caches: on Zen 5 (by AMD's family number, so on what follows it too) up to 1.15 times
// as fast; on Zen 4, where reading waits for those prefetches, the second-level cache is up to 1.4 times as fast.
bool prefetches_to_first_cache();

// Throws std::invalid_argument that lists what there is.
const KernelTable& find_variant(const std::string& isa);

}  // namespace moelens
