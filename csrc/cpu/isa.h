// Which compiled variants of the kernels this machine and its operating system can run.
#pragma once

#include <string>
#include <vector>

#include "kernel_table.h"

namespace moelens {

// Best first; never empty.
const std::vector<const KernelTable*>& available_variants();

// Throws std::invalid_argument that lists what there is.
const KernelTable& find_variant(const std::string& isa);

}  // namespace moelens
