// Bindings of the matrix products.
#include "bindings/kernels.h"

namespace py = pybind11;

namespace moelens {

namespace {

constexpr int64_t kPanelColumns = 32;

// A packed matrix [N, K] of x's dtype.
TensorView packed_matrix(Arguments& arguments, const char* name, py::handle storage, int64_t rows, int64_t columns,
                         DType dtype) {
    const int64_t panels = divide_up(rows, kPanelColumns);
    if (dtype == DType::kFloat32) return arguments.storage(name, storage, {panels, columns, kPanelColumns}, {dtype});
    return arguments.storage(name, storage, {panels, divide_up(columns, 2), kPanelColumns, 2}, {dtype});
}

void linear(Kernels& self, py::handle x, py::handle weight, int64_t rows, int64_t columns, py::handle bias,
            py::handle residual, double scale, py::handle out) {
    Arguments arguments("linear");
    arguments.set("N", rows);
    arguments.set("K", columns);
    const TensorView input = arguments.tensor("x", x, {"T", "K"}, kFloating);
    const TensorView panels = packed_matrix(arguments, "weight", weight, rows, columns, input.dtype);
    const TensorView added = arguments.optional("bias", bias, {"N"}, {input.dtype});
    const TensorView base = arguments.optional("residual", residual, {"T", "N"}, {input.dtype});
    const TensorView result = arguments.tensor("out", out, {"T", "N"}, {input.dtype, DType::kFloat32});
    self.call(self.table().linear,
              LinearArgs{element_of(input), element_of(result), arguments["T"], columns, rows, input.data, panels.data,
                         added.data, base.data, result.data, static_cast<float>(scale)});
}

}  // namespace

void bind_products(KernelsClass& kernels) {
    kernels.def("linear", linear, py::arg("x"), py::arg("weight"), py::arg("rows"), py::arg("columns"), py::arg("bias"),
                py::arg("residual"), py::arg("scale"), py::arg("out"));
}

}  // namespace moelens
