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
    const TensorView result = arguments.tensor("out", out, {"T", "N"}, {input.dtype, DType::kFloat32});
    const TensorView base = arguments.optional("residual", residual, {"T", "N"}, {result.dtype});
    self.call(self.table().linear,
              LinearArgs{element_of(input), element_of(result), arguments["T"], columns, rows, input.data, panels.data,
                         added.data, base.data, result.data, static_cast<float>(scale)});
}

void sigmoid_scores(Kernels& self, py::handle x, py::handle weight, int64_t rows, int64_t columns, py::handle out) {
    Arguments arguments("sigmoid_scores");
    if (rows != 1) arguments.reject("weight must be [1, K], found " + std::to_string(rows) + " rows");
    arguments.set("K", columns);
    const TensorView input = arguments.tensor("x", x, {"T", "K"}, kFloating);
    const TensorView panel = packed_matrix(arguments, "weight", weight, rows, columns, input.dtype);
    const TensorView result = arguments.tensor("out", out, {"T", 1}, {DType::kFloat32});
    self.call(self.table().linear, LinearArgs{element_of(input), Element::kFloat32, arguments["T"], columns, rows,
                                              input.data, panel.data, nullptr, nullptr, result.data, 1.0f});
    self.call(self.table().sigmoid, ElementwiseArgs{Element::kFloat32, arguments["T"], result.data, result.data, 0.0f});
}

// The packed matrices [N, K] of all experts, of x's dtype.
TensorView packed_experts(Arguments& arguments, const char* name, py::handle storage, int64_t panels, int64_t columns,
                          DType dtype) {
    if (dtype == DType::kFloat32) {
        return arguments.storage(name, storage, {"E", panels, columns, kPanelColumns}, {dtype});
    }
    return arguments.storage(name, storage, {"E", panels, divide_up(columns, 2), kPanelColumns, 2}, {dtype});
}

void experts(Kernels& self, py::handle x, py::handle gate_up, py::handle down, int64_t width, py::handle ids,
             py::handle scores, const std::string& activation, py::handle residual, double scale, py::handle out) {
    Arguments arguments("experts");
    const TensorView input = arguments.tensor("x", x, {"T", "H"}, kFloating);
    const int64_t hidden = arguments["H"];
    if (width < 1) arguments.reject("width must be at least 1, found " + std::to_string(width));
    if (hidden < 1) arguments.reject("x must have at least 1 column, found 0");
    const TensorView first =
        packed_experts(arguments, "gate_up", gate_up, divide_up(width, kPanelColumns / 2), hidden, input.dtype);
    const TensorView second =
        packed_experts(arguments, "down", down, divide_up(hidden, kPanelColumns), width, input.dtype);
    const TensorView chosen = arguments.tensor("ids", ids, {"T", "A"}, {DType::kInt32});
    const TensorView weights = arguments.tensor("scores", scores, {"T", "A"}, {DType::kFloat32});
    const TensorView result = arguments.tensor("out", out, {"T", "H"}, {input.dtype, DType::kFloat32});
    const TensorView base = arguments.optional("residual", residual, {"T", "H"}, {result.dtype});
    if (arguments["E"] < 1) arguments.reject("gate_up must hold at least 1 expert, found 0");
    arguments.check_indices("ids", chosen, arguments["E"]);
    self.call(self.table().experts,
              ExpertsArgs{element_of(input), element_of(result), activation_named(arguments, activation),
                          arguments["T"], hidden, arguments["E"], arguments["A"], width, input.data, first.data,
                          second.data, static_cast<const int32_t*>(chosen.data),
                          static_cast<const float*>(weights.data), base.data, result.data, static_cast<float>(scale)});
}

}  // namespace

void bind_products(KernelsClass& kernels) {
    kernels
        .def("linear", linear, py::arg("x"), py::arg("weight"), py::arg("rows"), py::arg("columns"), py::arg("bias"),
             py::arg("residual"), py::arg("scale"), py::arg("out"))
        .def("sigmoid_scores", sigmoid_scores, py::arg("x"), py::arg("weight"), py::arg("rows"), py::arg("columns"),
             py::arg("out"))
        .def("experts", experts, py::arg("x"), py::arg("gate_up"), py::arg("down"), py::arg("width"), py::arg("ids"),
             py::arg("scores"), py::arg("activation"), py::arg("residual"), py::arg("scale"), py::arg("out"));
}

}  // namespace moelens
