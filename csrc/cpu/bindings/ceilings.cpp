// Bindings of what measures the machine's ceilings. They are no ops.
#include <vector>

#include "bindings/kernels.h"

namespace py = pybind11;

namespace moelens {

namespace {

void read_memory(Kernels& self, py::handle memory) {
    Arguments arguments("read_memory");
    const TensorView floats = arguments.tensor("memory", memory, {"n"}, {DType::kFloat32});
    std::vector<float> results(static_cast<size_t>(self.threads()));
    self.call(arguments, self.table().read_memory,
              CeilingArgs{static_cast<const float*>(floats.data), arguments["n"], results.data(), nullptr});
}

int64_t multiply_registers(Kernels& self, int64_t flops, bool int8) {
    const std::vector<float> data(64, 0.5f);  // two of the longest vectors
    std::vector<float> results(static_cast<size_t>(self.threads()));
    int64_t done = 0;
    self.call(Arguments("multiply_registers"), int8 ? self.table().multiply_quads : self.table().multiply_registers,
              CeilingArgs{data.data(), flops, results.data(), &done});
    return done;
}

}  // namespace

void bind_ceilings(KernelsClass& kernels) {
    kernels.def("read_memory", read_memory, py::arg("memory"), "Read memory [n] float32 with all threads.")
        .def(
            "multiply_registers", multiply_registers, py::arg("flops"), py::arg("int8") = false,
            "Multiply and add in registers, about `flops` in each thread, of floats or of 8-bit whole numbers; returns "
            "the flops of all threads.");
}

}  // namespace moelens
