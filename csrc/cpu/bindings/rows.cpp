// Bindings of the row-wise ops.
#include <pybind11/stl.h>

#include <optional>

#include "bindings/kernels.h"

namespace py = pybind11;

namespace moelens {

namespace {

NormArgs norm_args(Arguments& arguments, py::handle x, py::handle weight, double eps, py::handle out) {
    const TensorView rows = arguments.tensor("x", x, {"T", "W"}, kFloating);
    const TensorView factors = rows.dtype == DType::kFloat32 ? arguments.tensor("weight", weight, {"W"}, kFloating)
                                                             : arguments.tensor("weight", weight, {"W"}, {rows.dtype});
    const TensorView result = arguments.tensor("out", out, {"T", "W"}, {factors.dtype});
    return {element_of(rows), element_of(factors), arguments["T"], arguments["W"],
            rows.data,        factors.data,        result.data,    static_cast<float>(eps)};
}

void rms_norm(Kernels& self, py::handle x, py::handle weight, double eps, py::handle out) {
    Arguments arguments("rms_norm");
    self.call(self.table().rms_norm, norm_args(arguments, x, weight, eps, out));
}

void layer_norm(Kernels& self, py::handle x, py::handle weight, double eps, py::handle out) {
    Arguments arguments("layer_norm");
    self.call(self.table().layer_norm, norm_args(arguments, x, weight, eps, out));
}

void embed(Kernels& self, py::handle table, py::handle token_ids, py::handle out) {
    Arguments arguments("embed");
    const TensorView rows = arguments.tensor("table", table, {"V", "H"}, kFloating);
    const TensorView ids = arguments.tensor("token_ids", token_ids, {"T"}, {DType::kInt32});
    const TensorView result = arguments.tensor("out", out, {"T", "H"}, {rows.dtype});
    arguments.check_indices("token_ids", ids, arguments["V"]);
    self.call(self.table().embed, EmbedArgs{element_of(rows), arguments["T"], arguments["H"], rows.data,
                                            static_cast<const int32_t*>(ids.data), result.data});
}

void rotary(Kernels& self, py::handle x, py::handle positions, py::handle inverse_frequencies, double magnitude,
            py::handle out) {
    Arguments arguments("rotary");
    const TensorView heads = arguments.tensor("x", x, {"T", "heads", "D"}, kFloating);
    const TensorView places = arguments.tensor("positions", positions, {"T"}, {DType::kInt32});
    const TensorView frequencies =
        arguments.tensor("inverse_frequencies", inverse_frequencies, {"R/2"}, {DType::kFloat32});
    const TensorView result = arguments.like("out", out, heads);
    if (2 * arguments["R/2"] > arguments["D"]) {
        arguments.reject("inverse_frequencies must be at most D/2 = " + std::to_string(arguments["D"] / 2) +
                         ", found " + std::to_string(arguments["R/2"]));
    }
    self.call(self.table().rotary,
              RotaryArgs{element_of(heads), arguments["T"], arguments["heads"], arguments["D"], arguments["R/2"],
                         heads.data, static_cast<const int32_t*>(places.data),
                         static_cast<const float*>(frequencies.data), result.data, static_cast<float>(magnitude)});
}

ElementwiseArgs elementwise_args(Arguments& arguments, py::handle x, double parameter, py::handle out) {
    const TensorView input = arguments.any_shape("x", x, kFloating);
    const TensorView result = arguments.like("out", out, input);
    return {element_of(input), input.count(), input.data, result.data, static_cast<float>(parameter)};
}

void clamp(Kernels& self, py::handle x, double limit, py::handle out) {
    Arguments arguments("clamp");
    if (!(limit >= 0)) arguments.reject("limit must be at least 0, found " + std::to_string(limit));
    self.call(self.table().clamp, elementwise_args(arguments, x, limit, out));
}

void scale(Kernels& self, py::handle x, double factor, py::handle out) {
    Arguments arguments("scale");
    self.call(self.table().scale, elementwise_args(arguments, x, factor, out));
}

Scoring scoring_named(const Arguments& arguments, const std::string& name) {
    if (name == "softmax") return Scoring::kSoftmax;
    if (name == "topk_softmax") return Scoring::kTopkSoftmax;
    arguments.reject("scoring must be softmax or topk_softmax, found " + name);
}

void route(Kernels& self, py::handle logits, const std::string& scoring, std::optional<double> norm, py::handle ids,
           py::handle weights) {
    Arguments arguments("route");
    const TensorView scores = arguments.tensor("logits", logits, {"T", "E"}, {DType::kFloat32});
    const TensorView chosen = arguments.tensor("ids", ids, {"T", "A"}, {DType::kInt32});
    const TensorView result = arguments.tensor("weights", weights, {"T", "A"}, {DType::kFloat32});
    const int64_t experts = arguments["E"], active = arguments["A"];
    if (active < 1 || active > experts) {
        arguments.reject("active must be from 1 to the number of experts, " + std::to_string(experts) + ", found " +
                         std::to_string(active));
    }
    if (norm && !(*norm > 0)) arguments.reject("norm must be above 0 or None, found " + std::to_string(*norm));
    self.call(self.table().route,
              RouteArgs{arguments["T"], experts, active, scoring_named(arguments, scoring),
                        static_cast<float>(norm.value_or(0)), static_cast<const float*>(scores.data),
                        static_cast<int32_t*>(chosen.data), static_cast<float*>(result.data)});
}

}  // namespace

void bind_rows(KernelsClass& kernels) {
    kernels.def("rms_norm", rms_norm, py::arg("x"), py::arg("weight"), py::arg("eps"), py::arg("out"))
        .def("layer_norm", layer_norm, py::arg("x"), py::arg("weight"), py::arg("eps"), py::arg("out"))
        .def("embed", embed, py::arg("table"), py::arg("token_ids"), py::arg("out"))
        .def("rotary", rotary, py::arg("x"), py::arg("positions"), py::arg("inverse_frequencies"), py::arg("magnitude"),
             py::arg("out"))
        .def("clamp", clamp, py::arg("x"), py::arg("limit"), py::arg("out"))
        .def("scale", scale, py::arg("x"), py::arg("factor"), py::arg("out"))
        .def("route", route, py::arg("logits"), py::arg("scoring"), py::arg("norm"), py::arg("ids"),
             py::arg("weights"));
}

}  // namespace moelens
