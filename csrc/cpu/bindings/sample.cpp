// Bindings of mask_logits and sample.
#include <limits>

#include "bindings/kernels.h"

namespace py = pybind11;

namespace moelens {

namespace {

// A float32 [R] whose values are all in [0, most], or [0, most) if the end is open.
const float* check_range(Arguments& arguments, const char* name, py::handle object, float most, bool open = false) {
    const TensorView tensor = arguments.tensor(name, object, {"R"}, {DType::kFloat32});
    const auto* values = static_cast<const float*>(tensor.data);
    for (int64_t i = 0; i < tensor.shape[0]; ++i) {
        if (values[i] >= 0 && (open ? values[i] < most : values[i] <= most)) continue;
        arguments.reject(std::string(name) + " must be in [0, " + std::to_string(most) + (open ? ")" : "]") +
                         ", found " + std::to_string(values[i]) + " in row " + std::to_string(i));
    }
    return values;
}

void mask_logits(Kernels& self, py::handle logits, py::handle allowed, py::handle rows) {
    Arguments arguments("mask_logits");
    const TensorView scores = arguments.tensor("logits", logits, {"R", "V"}, {DType::kFloat32});
    const TensorView masks = arguments.tensor("allowed", allowed, {"M", "words"}, {DType::kInt32});
    const TensorView where = arguments.tensor("rows", rows, {"M"}, {DType::kInt32});
    if (arguments["words"] != (arguments["V"] + 31) / 32) {
        arguments.reject("allowed must have a bit for each of " + std::to_string(arguments["V"]) + " tokens, found " +
                         std::to_string(arguments["words"]) + " words of 32");
    }
    arguments.check_indices("rows", where, arguments["R"]);
    self.call(arguments, self.table().mask_logits,
              MaskArgs{arguments["M"], arguments["V"], static_cast<const int32_t*>(masks.data),
                       static_cast<const int32_t*>(where.data), static_cast<float*>(scores.data)});
}

void sample(Kernels& self, py::handle logits, py::handle temperature, py::handle top_k, py::handle top_p,
            py::handle min_p, py::handle uniform, py::handle out) {
    Arguments arguments("sample");
    const TensorView rows = arguments.tensor("logits", logits, {"R", "V"}, {DType::kFloat32});
    if (arguments["V"] < 1) arguments.reject("V must be at least 1, found 0");
    const TensorView counts = arguments.tensor("top_k", top_k, {"R"}, {DType::kInt32});
    const TensorView ids = arguments.tensor("out", out, {"R"}, {DType::kInt32});
    constexpr float kHottest = std::numeric_limits<float>::max();
    const SampleArgs args{arguments["R"],
                          arguments["V"],
                          static_cast<const float*>(rows.data),
                          check_range(arguments, "temperature", temperature, kHottest),
                          static_cast<const int32_t*>(counts.data),
                          check_range(arguments, "top_p", top_p, 1),
                          check_range(arguments, "min_p", min_p, 1),
                          check_range(arguments, "uniform", uniform, 1, true),
                          static_cast<int32_t*>(ids.data)};
    self.call(arguments, self.table().sample, args);
}

}  // namespace

void bind_sample(KernelsClass& kernels) {
    kernels.def("mask_logits", mask_logits, py::arg("logits"), py::arg("allowed"), py::arg("rows"));
    kernels.def("sample", sample, py::arg("logits"), py::arg("temperature"), py::arg("top_k"), py::arg("top_p"),
                py::arg("min_p"), py::arg("uniform"), py::arg("out"));
}

}  // namespace moelens
