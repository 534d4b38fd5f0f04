// Bindings of the matrix products.
#include "bindings/kernels.h"

namespace py = pybind11;

namespace moelens {

Product product_of(const KernelTable& table, Arguments& arguments, const ProductNames& names, py::handle x,
                   py::handle weight, int64_t rows, int64_t columns, py::handle bias, py::handle residual, double scale,
                   py::handle out) {
    arguments.set("N", rows);
    arguments.set("K", columns);
    const TensorView input = arguments.tensor(names.x, x, {"T", "K"}, kFloating);
    const TensorView panels =
        check_panels(arguments, names.weight, weight, divide_up(rows, kPanelColumns), columns, input.dtype);
    const TensorView added = arguments.optional("bias", bias, {"N"}, {input.dtype});
    const TensorView result = arguments.tensor(names.out, out, {"T", "N"}, {input.dtype, DType::kFloat32});
    const TensorView base = arguments.optional(names.residual, residual, {"T", "N"}, {result.dtype});
    return {kernel_for(panels, table.linear, table.linear_int8),
            {element_of(input), element_of(result), arguments["T"], columns, rows, input.data, panels.data, added.data,
             base.data, result.data, static_cast<float>(scale)}};
}

namespace {

void linear(Kernels& self, py::handle x, py::handle weight, int64_t rows, int64_t columns, py::handle bias,
            py::handle residual, double scale, py::handle out) {
    Arguments arguments("linear");
    const Product product =
        product_of(self.table(), arguments, {}, x, weight, rows, columns, bias, residual, scale, out);
    self.call(arguments, product.multiply, product.args);
}

void sigmoid_scores(Kernels& self, py::handle x, py::handle weight, int64_t rows, int64_t columns, py::handle out) {
    Arguments arguments("sigmoid_scores");
    if (rows != 1) arguments.reject("weight must be [1, K], found " + std::to_string(rows) + " rows");
    arguments.set("K", columns);
    const TensorView input = arguments.tensor("x", x, {"T", "K"}, kFloating);
    const TensorView panel =
        check_panels(arguments, "weight", weight, divide_up(rows, kPanelColumns), columns, input.dtype);
    const TensorView result = arguments.tensor("out", out, {"T", 1}, {DType::kFloat32});
    self.call(arguments, kernel_for(panel, self.table().linear, self.table().linear_int8),
              LinearArgs{element_of(input), Element::kFloat32, arguments["T"], columns, rows, input.data, panel.data,
                         nullptr, nullptr, result.data, 1.0f});
    self.call(arguments, self.table().sigmoid,
              ElementwiseArgs{Element::kFloat32, arguments["T"], result.data, result.data, 0.0f});
}

void experts(Kernels& self, py::handle x, py::handle gate_up, py::handle down, int64_t width, py::handle ids,
             py::handle scores, const std::string& activation, py::handle residual, double scale, py::handle out) {
    Arguments arguments("experts");
    const TensorView input = arguments.tensor("x", x, {"T", "H"}, kFloating);
    const int64_t hidden = arguments["H"];
    if (width < 1) arguments.reject("width must be at least 1, found " + std::to_string(width));
    if (hidden < 1) arguments.reject("x must have at least 1 column, found 0");
    const TensorView first =
        check_expert_panels(arguments, "gate_up", gate_up, divide_up(width, kPanelColumns / 2), hidden, input.dtype);
    const TensorView second =
        check_expert_panels(arguments, "down", down, divide_up(hidden, kPanelColumns), width, input.dtype);
    const TensorView chosen = arguments.tensor("ids", ids, {"T", "A"}, {DType::kInt32});
    const TensorView weights = arguments.tensor("scores", scores, {"T", "A"}, {DType::kFloat32});
    const TensorView result = arguments.tensor("out", out, {"T", "H"}, {input.dtype, DType::kFloat32});
    const TensorView base = arguments.optional("residual", residual, {"T", "H"}, {result.dtype});
    arguments.require((first.dtype == DType::kInt8) == (second.dtype == DType::kInt8),
                      "gate_up and down must be of one dtype");
    if (arguments["E"] < 1) arguments.reject("gate_up must hold at least 1 expert, found 0");
    const auto kernel = kernel_for(first, self.table().experts, self.table().experts_int8);
    const ExpertsArgs args{element_of(input),
                           element_of(result),
                           activation_named(arguments, activation),
                           arguments["T"],
                           hidden,
                           arguments["E"],
                           arguments["A"],
                           width,
                           input.data,
                           first.data,
                           second.data,
                           static_cast<const int32_t*>(chosen.data),
                           static_cast<const float*>(weights.data),
                           base.data,
                           result.data,
                           static_cast<float>(scale)};
    self.run(arguments, [=](const Context& context) {  // ids may be what a call that waits before this one makes
        arguments.check_indices("ids", chosen, args.experts);
        kernel(context, args);
    });
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
