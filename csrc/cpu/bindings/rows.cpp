// Bindings of the row-wise ops.
#include "bindings/kernels.h"

namespace py = pybind11;

namespace moelens {

namespace {

NormArgs norm_args(Arguments& arguments, py::handle x, py::handle weight, double eps, py::handle out) {
    const TensorView rows = arguments.tensor("x", x, {"T", "W"}, kFloating);
    const TensorView factors = arguments.tensor("weight", weight, {"W"}, {rows.dtype});
    const TensorView result = arguments.tensor("out", out, {"T", "W"}, {rows.dtype});
    return {element_of(rows), arguments["T"], arguments["W"],         rows.data,
            factors.data,     result.data,    static_cast<float>(eps)};
}

void rms_norm(Kernels& self, py::handle x, py::handle weight, double eps, py::handle out) {
    Arguments arguments("rms_norm");
    self.call(self.table().rms_norm, norm_args(arguments, x, weight, eps, out));
}

void layer_norm(Kernels& self, py::handle x, py::handle weight, double eps, py::handle out) {
    Arguments arguments("layer_norm");
    self.call(self.table().layer_norm, norm_args(arguments, x, weight, eps, out));
}

}  // namespace

void bind_rows(KernelsClass& kernels) {
    kernels.def("rms_norm", rms_norm, py::arg("x"), py::arg("weight"), py::arg("eps"), py::arg("out"))
        .def("layer_norm", layer_norm, py::arg("x"), py::arg("weight"), py::arg("eps"), py::arg("out"));
}

}  // namespace moelens
