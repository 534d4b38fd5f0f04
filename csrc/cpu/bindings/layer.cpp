// Bindings of several ops of a layer in one call: Python is not in between, and what passes from one to the next stays
// in the caches.
#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string>

#include "bindings/kernels.h"

namespace py = pybind11;

namespace moelens {

namespace {

constexpr int64_t kRowsAtOnce = 512;
// So many rows are worth it that each thread reads all of a layer's output projection and router.
constexpr int64_t kRowsOfThread = 256;

int64_t element_bytes(Element element) {
    return element == Element::kBFloat16 ? 2 : 4;
}
const void* from_element(const void* data, Element element, int64_t index) {
    return static_cast<const char*>(data) + index * element_bytes(element);
}
void* from_element(void* data, Element element, int64_t index) {
    return static_cast<char*>(data) + index * element_bytes(element);
}

// Whether one kernel does all of project_qkv: else it takes three.
bool is_one_kernel(const SplitQkvArgs& split, DType weight) {
    const auto is_of_heads = [&](const NormWeight& norm) {
        return norm.data == nullptr || norm.width == split.head_dim;
    };
    return weight != DType::kInt8 && split.head_dim % kPanelColumns == 0 && is_of_heads(split.q_norm) &&
           is_of_heads(split.k_norm);
}

void project_qkv(Kernels& self, py::handle x, py::handle norm_weight, double norm_eps, bool centred, py::handle weight,
                 int64_t columns, py::handle bias, py::handle positions, py::handle inverse_frequencies,
                 double magnitude, py::handle q_norm, py::handle k_norm, double eps, std::optional<double> limit,
                 py::handle q, py::handle k, py::handle v) {
    Arguments arguments("project_qkv");
    const NormArgs norm = norm_args(arguments, x, "norm_weight", norm_weight, norm_eps);
    const DType dtype = dtype_of(norm.element);
    arguments.set("(Q+2K)·D", columns);
    const TensorView panels =
        check_panels(arguments, "weight", weight, divide_up(columns, kPanelColumns), norm.width, dtype);
    const TensorView added = arguments.optional("bias", bias, {"(Q+2K)·D"}, {dtype});
    TensorView joined;
    joined.dtype = q_norm.is_none() ? dtype : DType::kFloat32;
    const SplitQkvArgs split = split_qkv_args(arguments, joined, positions, inverse_frequencies, magnitude, q_norm,
                                              k_norm, eps, limit, q, k, v);
    if (split.element != norm.element) arguments.reject("q must be of norm_weight's dtype");
    const LinearArgs product{norm.element, split.joined_element, norm.rows, norm.width, columns, nullptr,
                             panels.data,  added.data,           nullptr,   nullptr,    1.0f};
    if (is_one_kernel(split, panels.dtype)) {
        return self.call(arguments, self.table().project_qkv, ProjectQkvArgs{norm, centred, product, split});
    }
    const auto normalise = centred ? self.table().layer_norm : self.table().rms_norm;
    const auto multiply = kernel_for(panels, self.table().linear, self.table().linear_int8);
    self.run(arguments, [=, &self](const Context& context) {
        const int64_t most = std::min(norm.rows, kRowsAtOnce);
        void* normed = self.between(0).reserve(most * norm.width * element_bytes(norm.element));
        void* joined = self.between(1).reserve(most * columns * element_bytes(split.joined_element));
        for (int64_t first = 0; first < norm.rows; first += kRowsAtOnce) {
            const int64_t rows = std::min(kRowsAtOnce, norm.rows - first);
            NormArgs of_norm = norm;
            of_norm.rows = rows;
            of_norm.x = from_element(norm.x, norm.x_element, first * norm.width);
            of_norm.out = normed;
            normalise(context, of_norm);
            LinearArgs of_product = product;
            of_product.rows = rows;
            of_product.x = normed;
            of_product.out = joined;
            multiply(context, of_product);
            SplitQkvArgs of_split = split;
            of_split.rows = rows;
            of_split.joined = joined;
            of_split.positions = split.positions + first;
            of_split.q = from_element(split.q, split.element, first * split.query_heads * split.head_dim);
            of_split.k = from_element(split.k, split.element, first * split.kv_heads * split.head_dim);
            of_split.v = from_element(split.v, split.element, first * split.kv_heads * split.head_dim);
            self.table().split_qkv(context, of_split);
        }
    });
}

void project_and_route(Kernels& self, py::handle attended, py::handle output, int64_t rows, int64_t columns,
                       py::handle bias, py::handle x, double scale, py::handle norm_weight, double norm_eps,
                       bool centred, py::handle router, int64_t experts, const std::string& scoring,
                       std::optional<double> norm_power, py::handle sum, py::handle normed, py::handle ids,
                       py::handle weights) {
    Arguments arguments("project_and_route");
    if (x.is_none()) arguments.reject("x must be a tensor, found None");
    const Product projection = product_of(self.table(), arguments, {"attended", "output", "x", "sum"}, attended, output,
                                          rows, columns, bias, x, scale, sum);
    NormArgs norm = norm_args(arguments, sum, "norm_weight", norm_weight, norm_eps);
    norm.out = arguments.tensor("normed", normed, {"T", "W"}, {dtype_of(norm.element)}).data;
    const TensorView panels = check_panels(arguments, "router", router, divide_up(experts, kPanelColumns), norm.width,
                                           dtype_of(norm.element));
    arguments.set("E", experts);
    const RouteArgs route = route_args(arguments, scoring, norm_power, ids, weights);
    const LinearArgs logits_of{norm.element, Element::kFloat32, norm.rows, norm.width, experts, nullptr,
                               panels.data,  nullptr,           nullptr,   nullptr,    1.0f};
    const bool is_int8 = panels.dtype == DType::kInt8 || projection.multiply == self.table().linear_int8;
    if (!is_int8 && norm.rows >= kRowsOfThread * self.threads()) {
        return self.call(arguments, self.table().project_and_route,
                         ProjectAndRouteArgs{projection.args, norm, centred, logits_of, route});
    }
    const auto normalise = centred ? self.table().layer_norm : self.table().rms_norm;
    const auto multiply = kernel_for(panels, self.table().linear, self.table().linear_int8);
    self.run(arguments, [=, &self](const Context& context) {
        float* logits =
            static_cast<float*>(self.between(0).reserve(std::min(norm.rows, kRowsAtOnce) * experts * sizeof(float)));
        for (int64_t first = 0; first < norm.rows; first += kRowsAtOnce) {
            const int64_t rows = std::min(kRowsAtOnce, norm.rows - first);
            LinearArgs of_projection = projection.args;
            of_projection.rows = rows;
            of_projection.x = from_element(of_projection.x, of_projection.element, first * of_projection.inner);
            of_projection.residual =
                from_element(of_projection.residual, of_projection.out_element, first * of_projection.columns);
            of_projection.out =
                from_element(of_projection.out, of_projection.out_element, first * of_projection.columns);
            projection.multiply(context, of_projection);
            NormArgs of_norm = norm;
            of_norm.rows = rows;
            of_norm.x = of_projection.out;
            of_norm.out = from_element(norm.out, norm.element, first * norm.width);
            normalise(context, of_norm);
            LinearArgs of_router = logits_of;
            of_router.rows = rows;
            of_router.x = of_norm.out;
            of_router.out = logits;
            multiply(context, of_router);
            RouteArgs of_route = route;
            of_route.rows = rows;
            of_route.logits = logits;
            of_route.ids = route.ids + first * route.active;
            of_route.weights = route.weights + first * route.active;
            self.table().route(context, of_route);
        }
    });
}

}  // namespace

void bind_layer(KernelsClass& kernels) {
    kernels
        .def("project_qkv", project_qkv, py::arg("x"), py::arg("norm_weight"), py::arg("norm_eps"), py::arg("centred"),
             py::arg("weight"), py::arg("columns"), py::arg("bias"), py::arg("positions"),
             py::arg("inverse_frequencies"), py::arg("magnitude"), py::arg("q_norm"), py::arg("k_norm"), py::arg("eps"),
             py::arg("limit"), py::arg("q"), py::arg("k"), py::arg("v"))
        .def("project_and_route", project_and_route, py::arg("attended"), py::arg("output"), py::arg("rows"),
             py::arg("columns"), py::arg("bias"), py::arg("x"), py::arg("scale"), py::arg("norm_weight"),
             py::arg("norm_eps"), py::arg("centred"), py::arg("router"), py::arg("experts"), py::arg("scoring"),
             py::arg("norm_power"), py::arg("sum"), py::arg("normed"), py::arg("ids"), py::arg("weights"));
}

}  // namespace moelens
