// The checks; every message names op, argument, expected, found.
#include "arguments.h"

#include <limits>

namespace py = pybind11;

namespace moelens {

namespace {

// A tensor of the dtype of `rows`, which may be float32 beside any other.
TensorView tensor_beside(Arguments& arguments, const TensorView& rows, const char* name, py::handle object,
                         Shape shape) {
    if (rows.dtype == DType::kFloat32) return arguments.tensor(name, object, shape, kFloating);
    return arguments.tensor(name, object, shape, {rows.dtype});
}

// The weights of a norm over one head or over all of them; None is no norm.
NormWeight norm_weight(Arguments& arguments, const char* name, py::handle weight, int64_t heads, DType dtype) {
    if (weight.is_none()) return {nullptr, 1};
    const TensorView factors = arguments.tensor(name, weight, {name}, {dtype});
    const int64_t width = factors.shape[0], head_dim = arguments["D"];
    if (width != head_dim && width != heads * head_dim) {
        arguments.reject(std::string(name) + " must have D = " + std::to_string(head_dim) + " elements or " +
                         std::to_string(heads) + " times as many, found " + std::to_string(width));
    }
    return {factors.data, width};
}

Scoring scoring_named(const Arguments& arguments, const std::string& name) {
    if (name == "softmax") return Scoring::kSoftmax;
    if (name == "topk_softmax") return Scoring::kTopkSoftmax;
    arguments.reject("scoring must be softmax or topk_softmax, found " + name);
}

}  // namespace

Element element_of(const TensorView& tensor) {
    return tensor.dtype == DType::kBFloat16 ? Element::kBFloat16 : Element::kFloat32;
}

DType dtype_of(Element element) {
    return element == Element::kBFloat16 ? DType::kBFloat16 : DType::kFloat32;
}

Activation activation_named(const Arguments& arguments, const std::string& name) {
    if (name == "silu") return Activation::kSilu;
    if (name == "gelu") return Activation::kGelu;
    if (name == "gelu_tanh") return Activation::kGeluTanh;
    arguments.reject("activation must be silu, gelu or gelu_tanh, found " + name);
}

NormArgs norm_args(Arguments& arguments, py::handle x, const char* name, py::handle weight, double eps) {
    const TensorView rows = arguments.tensor("x", x, {"T", "W"}, kFloating);
    const TensorView factors = tensor_beside(arguments, rows, name, weight, {"W"});
    return {element_of(rows), element_of(factors), arguments["T"], arguments["W"],
            rows.data,        factors.data,        nullptr,        static_cast<float>(eps)};
}

NormArgs norm_args(Arguments& arguments, py::handle x, py::handle weight, double eps, py::handle out) {
    NormArgs args = norm_args(arguments, x, "weight", weight, eps);
    args.out = arguments.tensor("out", out, {"T", "W"}, {dtype_of(args.element)}).data;
    return args;
}

SplitQkvArgs split_qkv_args(Arguments& arguments, py::handle joined, py::handle positions,
                            py::handle inverse_frequencies, double magnitude, py::handle q_norm, py::handle k_norm,
                            double eps, std::optional<double> limit, py::handle q, py::handle k, py::handle v) {
    const TensorView rows = arguments.tensor("joined", joined, {"T", "(Q+2K)·D"}, kFloating);
    return split_qkv_args(arguments, rows, positions, inverse_frequencies, magnitude, q_norm, k_norm, eps, limit, q, k,
                          v);
}

SplitQkvArgs split_qkv_args(Arguments& arguments, const TensorView& rows, py::handle positions,
                            py::handle inverse_frequencies, double magnitude, py::handle q_norm, py::handle k_norm,
                            double eps, std::optional<double> limit, py::handle q, py::handle k, py::handle v) {
    const TensorView query = tensor_beside(arguments, rows, "q", q, {"T", "Q", "D"});
    const TensorView key = arguments.tensor("k", k, {"T", "K", "D"}, {query.dtype});
    const TensorView value = arguments.like("v", v, key);
    const int64_t width = (arguments["Q"] + 2 * arguments["K"]) * arguments["D"];
    if (arguments["(Q+2K)·D"] != width) {
        arguments.reject("joined must have (Q+2K)·D = " + std::to_string(width) + " columns, found " +
                         std::to_string(arguments["(Q+2K)·D"]));
    }
    const TensorView places = arguments.tensor("positions", positions, {"T"}, {DType::kInt32});
    const TensorView frequencies =
        arguments.tensor("inverse_frequencies", inverse_frequencies, {"R/2"}, {DType::kFloat32});
    if (2 * arguments["R/2"] > arguments["D"]) {
        arguments.reject("inverse_frequencies must be at most D/2 = " + std::to_string(arguments["D"] / 2) +
                         ", found " + std::to_string(arguments["R/2"]));
    }
    if (limit && !(*limit >= 0)) arguments.reject("limit must be at least 0, found " + std::to_string(*limit));
    const NormWeight q_weight = norm_weight(arguments, "q_norm", q_norm, arguments["Q"], query.dtype);
    const NormWeight k_weight = norm_weight(arguments, "k_norm", k_norm, arguments["K"], query.dtype);
    return {element_of(rows),
            element_of(query),
            arguments["T"],
            arguments["Q"],
            arguments["K"],
            arguments["D"],
            arguments["R/2"],
            rows.data,
            static_cast<const int32_t*>(places.data),
            static_cast<const float*>(frequencies.data),
            static_cast<float>(magnitude),
            q_weight,
            k_weight,
            static_cast<float>(eps),
            limit ? static_cast<float>(*limit) : std::numeric_limits<float>::infinity(),
            query.data,
            key.data,
            value.data};
}

RouteArgs route_args(Arguments& arguments, py::handle logits, const std::string& scoring, std::optional<double> norm,
                     py::handle ids, py::handle weights) {
    const TensorView scores = arguments.tensor("logits", logits, {"T", "E"}, {DType::kFloat32});
    RouteArgs args = route_args(arguments, scoring, norm, ids, weights);
    args.logits = static_cast<const float*>(scores.data);
    return args;
}

RouteArgs route_args(Arguments& arguments, const std::string& scoring, std::optional<double> norm, py::handle ids,
                     py::handle weights) {
    const TensorView chosen = arguments.tensor("ids", ids, {"T", "A"}, {DType::kInt32});
    const TensorView result = arguments.tensor("weights", weights, {"T", "A"}, {DType::kFloat32});
    const int64_t experts = arguments["E"], active = arguments["A"];
    if (active < 1 || active > experts) {
        arguments.reject("active must be from 1 to the number of experts, " + std::to_string(experts) + ", found " +
                         std::to_string(active));
    }
    if (norm && !(*norm > 0)) arguments.reject("norm must be above 0 or None, found " + std::to_string(*norm));
    return {arguments["T"],
            experts,
            active,
            scoring_named(arguments, scoring),
            static_cast<float>(norm.value_or(0)),
            nullptr,
            static_cast<int32_t*>(chosen.data),
            static_cast<float*>(result.data)};
}

}  // namespace moelens
