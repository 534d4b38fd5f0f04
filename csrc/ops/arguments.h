// From Python's arguments to the records of records.h, checked; the bindings of both modules use these.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>
#include <string>

#include "checks.h"
#include "records.h"

namespace moelens {

// The dtypes that an activation may have.
constexpr std::initializer_list<DType> kFloating{DType::kFloat32, DType::kBFloat16};

Element element_of(const TensorView& tensor);
DType dtype_of(Element element);
Activation activation_named(const Arguments& arguments, const std::string& name);

NormArgs norm_args(Arguments& arguments, pybind11::handle x, pybind11::handle weight, double eps, pybind11::handle out);
// The same without `out`; `name` is the weight's in messages.
NormArgs norm_args(Arguments& arguments, pybind11::handle x, const char* name, pybind11::handle weight, double eps);
SplitQkvArgs split_qkv_args(Arguments& arguments, pybind11::handle joined, pybind11::handle positions,
                            pybind11::handle inverse_frequencies, double magnitude, pybind11::handle q_norm,
                            pybind11::handle k_norm, double eps, std::optional<double> limit, pybind11::handle q,
                            pybind11::handle k, pybind11::handle v);
// The same of rows that were checked before: [T, (Q+2K)·D], both in `arguments`.
SplitQkvArgs split_qkv_args(Arguments& arguments, const TensorView& rows, pybind11::handle positions,
                            pybind11::handle inverse_frequencies, double magnitude, pybind11::handle q_norm,
                            pybind11::handle k_norm, double eps, std::optional<double> limit, pybind11::handle q,
                            pybind11::handle k, pybind11::handle v);
RouteArgs route_args(Arguments& arguments, pybind11::handle logits, const std::string& scoring,
                     std::optional<double> norm, pybind11::handle ids, pybind11::handle weights);
// The same without logits: [T, E], both in `arguments`.
RouteArgs route_args(Arguments& arguments, const std::string& scoring, std::optional<double> norm, pybind11::handle ids,
                     pybind11::handle weights);

}  // namespace moelens
