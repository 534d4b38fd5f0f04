// The Python module moelens._cpu.
#include <pybind11/stl.h>

#include "bindings/kernels.h"

namespace py = pybind11;

namespace moelens {

PYBIND11_MODULE(_cpu, module) {
    import_torch();
    module.doc() = "Kernels for the CPU, compiled once per instruction set.";
    module.def(
        "available_isas",
        [] {
            std::vector<std::string> names;
            for (const KernelTable* table : available_variants()) names.emplace_back(table->isa);
            return names;
        },
        "Names of the instruction sets that this machine can run, best first.");
    module.def("best_isa", [] { return std::string(available_variants().front()->isa); });

    KernelsClass kernels(module, "Kernels", "One instruction set's kernels, with a team of threads.");
    kernels.def(py::init<const std::string&, int>(), py::arg("isa"), py::arg("threads"))
        .def_property_readonly("isa", [](const Kernels& self) { return std::string(self.table().isa); })
        .def_property_readonly("threads", &Kernels::threads);
    bind_rows(kernels);
    bind_products(kernels);
    bind_layer(kernels);
    bind_packing(kernels);
    bind_attention(kernels);
    bind_sample(kernels);
    bind_ceilings(kernels);
}

}  // namespace moelens
