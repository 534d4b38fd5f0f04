// Bindings of the row-wise ops.
#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "bindings/kernels.h"

namespace py = pybind11;

namespace moelens {

namespace {

void rms_norm(Kernels& self, py::handle x, py::handle weight, double eps, py::handle out) {
    Arguments arguments("rms_norm");
    self.call(arguments, self.table().rms_norm, norm_args(arguments, x, weight, eps, out));
}

void layer_norm(Kernels& self, py::handle x, py::handle weight, double eps, py::handle out) {
    Arguments arguments("layer_norm");
    self.call(arguments, self.table().layer_norm, norm_args(arguments, x, weight, eps, out));
}

void embed(Kernels& self, py::handle table, py::handle token_ids, py::handle out) {
    Arguments arguments("embed");
    const TensorView rows = arguments.weight("table", table, {"V", "H"}, kFloating);
    const TensorView ids = arguments.tensor("token_ids", token_ids, {"T"}, {DType::kInt32});
    const TensorView result = arguments.tensor("out", out, {"T", "H"}, {rows.dtype, DType::kFloat32});
    arguments.check_indices("token_ids", ids, arguments["V"]);
    self.call(arguments, self.table().embed,
              EmbedArgs{element_of(rows), element_of(result), arguments["T"], arguments["H"], rows.data,
                        static_cast<const int32_t*>(ids.data), result.data});
}

void split_qkv(Kernels& self, py::handle joined, py::handle positions, py::handle inverse_frequencies, double magnitude,
               py::handle q_norm, py::handle k_norm, double eps, std::optional<double> limit, py::handle q,
               py::handle k, py::handle v) {
    Arguments arguments("split_qkv");
    self.call(arguments, self.table().split_qkv,
              split_qkv_args(arguments, joined, positions, inverse_frequencies, magnitude, q_norm, k_norm, eps, limit,
                             q, k, v));
}

ElementwiseArgs elementwise_args(Arguments& arguments, py::handle x, double parameter, py::handle out) {
    const TensorView input = arguments.any_shape("x", x, kFloating);
    const TensorView result = arguments.like("out", out, input);
    return {element_of(input), input.count(), input.data, result.data, static_cast<float>(parameter)};
}

void scale(Kernels& self, py::handle x, double factor, py::handle out) {
    Arguments arguments("scale");
    self.call(arguments, self.table().scale, elementwise_args(arguments, x, factor, out));
}

void route(Kernels& self, py::handle logits, const std::string& scoring, std::optional<double> norm, py::handle ids,
           py::handle weights) {
    Arguments arguments("route");
    self.call(arguments, self.table().route, route_args(arguments, logits, scoring, norm, ids, weights));
}

}  // namespace

void bind_rows(KernelsClass& kernels) {
    kernels.def("rms_norm", rms_norm, py::arg("x"), py::arg("weight"), py::arg("eps"), py::arg("out"))
        .def("layer_norm", layer_norm, py::arg("x"), py::arg("weight"), py::arg("eps"), py::arg("out"))
        .def("embed", embed, py::arg("table"), py::arg("token_ids"), py::arg("out"))
        .def("split_qkv", split_qkv, py::arg("joined"), py::arg("positions"), py::arg("inverse_frequencies"),
             py::arg("magnitude"), py::arg("q_norm"), py::arg("k_norm"), py::arg("eps"), py::arg("limit"), py::arg("q"),
             py::arg("k"), py::arg("v"))
        .def("scale", scale, py::arg("x"), py::arg("factor"), py::arg("out"))
        .def("route", route, py::arg("logits"), py::arg("scoring"), py::arg("norm"), py::arg("ids"),
             py::arg("weights"));
}

}  // namespace moelens
