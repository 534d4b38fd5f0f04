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
        .def_property_readonly("threads", &Kernels::threads)
        .def_property(
            "deferring", [](const Kernels& self) { return self.calls().are_deferred(); },
            [](Kernels& self, bool wanted) { self.calls().defer(wanted); },
            "Whether calls of the thread that has set it run beside it, until `finish` or one that isn't deferred.")
        .def_property_readonly(
            "deferred", [](const Kernels& self) { return self.calls().count(); },
            "Calls that were deferred since `finish`.")
        .def_property_readonly(
            "deferred_bytes", [](const Kernels& self) { return self.calls().bytes(); },
            "Bytes of activations that they use, counted by each.")
        .def(
            "finish",
            [](Kernels& self) {
                self.run_waiting();
                return self.calls().take_times();
            },
            "Wait for them; returns start and end, in seconds, of each since the last `finish`.");
    bind_rows(kernels);
    bind_products(kernels);
    bind_layer(kernels);
    bind_packing(kernels);
    bind_attention(kernels);
    bind_sample(kernels);
    bind_ceilings(kernels);
}

}  // namespace moelens
