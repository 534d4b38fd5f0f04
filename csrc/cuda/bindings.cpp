// The Python module moelens._cuda: checks arguments by name and starts the kernels on a stream.
//
// Compiled with MOELENS_CUDA_EMULATION it is the module _cuda_emu, whose tensors lie on the CPU; only tests load it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "../ops/arguments.h"
#include "launch.h"

#ifdef MOELENS_CUDA_EMULATION
#include "emu/emulation.h"
#define MODULE_NAME _cuda_emu
#else
#define MODULE_NAME _cuda
#endif

namespace py = pybind11;

namespace moelens {

namespace {

constexpr int64_t kPanelColumns = 32, kRowAlignment = 8;

// Kernels read 16 bytes at a time.
void require_aligned(const Arguments& arguments, const char* name, const void* data) {
    if (reinterpret_cast<uintptr_t>(data) % 16 != 0) {
        arguments.reject(std::string(name) + " must start at a multiple of 16 bytes; pass .clone()");
    }
}

const TensorView& aligned(const Arguments& arguments, const char* name, const TensorView& tensor) {
    require_aligned(arguments, name, tensor.data);
    return tensor;
}

void require_positive(const Arguments& arguments, const char* name, int64_t value) {
    if (value < 1) arguments.reject(std::string(name) + " must be at least 1, found " + std::to_string(value));
}

template <class Args>
void start(void (*op)(const Args&, Stream), const Args& args, Stream stream) {
    py::gil_scoped_release release;
    op(args, stream);
}

void normalise(const char* op, void (*kernel)(const NormArgs&, Stream), py::handle x, py::handle weight, double eps,
               py::handle out, Stream stream) {
    Arguments arguments(op);
    const NormArgs args = norm_args(arguments, x, weight, eps, out);
    require_aligned(arguments, "x", args.x);
    require_aligned(arguments, "weight", args.weight);
    require_positive(arguments, "x's width", args.width);
    if (args.rows > 0) start(kernel, args, stream);
}

void bind_rms_norm(py::handle x, py::handle weight, double eps, py::handle out, Stream stream) {
    normalise("rms_norm", rms_norm, x, weight, eps, out, stream);
}

void bind_layer_norm(py::handle x, py::handle weight, double eps, py::handle out, Stream stream) {
    normalise("layer_norm", layer_norm, x, weight, eps, out, stream);
}

void bind_split_qkv(py::handle joined, py::handle positions, py::handle inverse_frequencies, double magnitude,
                    py::handle q_norm, py::handle k_norm, double eps, std::optional<double> limit, py::handle q,
                    py::handle k, py::handle v, Stream stream) {
    Arguments arguments("split_qkv");
    const SplitQkvArgs args = split_qkv_args(arguments, joined, positions, inverse_frequencies, magnitude, q_norm,
                                             k_norm, eps, limit, q, k, v);
    const int64_t width = (args.query_heads + 2 * args.kv_heads) * args.head_dim;
    if (args.rows > 0 && width > 0) start(split_qkv, args, stream);
}

void bind_route(py::handle logits, const std::string& scoring, std::optional<double> norm, py::handle ids,
                py::handle weights, Stream stream) {
    Arguments arguments("route");
    const RouteArgs args = route_args(arguments, logits, scoring, norm, ids, weights);
    if (args.experts > kMaxExperts || args.active > kMaxActive) {
        arguments.reject("at most " + std::to_string(kMaxExperts) + " experts of which " + std::to_string(kMaxActive) +
                         " are active can be routed to, found " + std::to_string(args.experts) + " and " +
                         std::to_string(args.active));
    }
    if (args.rows > 0) start(route, args, stream);
}

// x [T, columns rounded up to a multiple of 8], the rest of each row finite.
TensorView padded_rows(Arguments& arguments, py::handle x, int64_t columns) {
    require_positive(arguments, "x's width", columns);
    const TensorView rows =
        arguments.tensor("x", x, {"T", divide_up(columns, kRowAlignment) * kRowAlignment}, {DType::kBFloat16});
    return aligned(arguments, "x", rows);
}

void bind_linear(py::handle x, py::handle weight, int64_t rows, int64_t columns, py::handle bias, py::handle residual,
                 double scale, py::handle out, Stream stream) {
    Arguments arguments("linear");
    require_positive(arguments, "weight's rows", rows);
    arguments.set("N", rows);
    const TensorView input = padded_rows(arguments, x, columns);
    const TensorView panels =
        arguments.storage("weight", weight, {divide_up(rows, kPanelColumns), divide_up(columns, 2), kPanelColumns, 2},
                          {DType::kBFloat16});
    const TensorView added = arguments.optional("bias", bias, {"N"}, {DType::kBFloat16});
    const TensorView result = aligned(arguments, "out", arguments.tensor("out", out, {"T", "N"}, kFloating));
    const TensorView base = arguments.optional("residual", residual, {"T", "N"}, {result.dtype});
    aligned(arguments, "residual", base);
    if (arguments["T"] == 0) return;
    start(linear,
          LinearArgs{element_of(result), arguments["T"], columns, rows, input.shape[1], input.data, panels.data,
                     added.data, base.data, result.data, static_cast<float>(scale)},
          stream);
}

void bind_experts(py::handle x, py::handle gate_up, py::handle down, int64_t width, int64_t hidden, py::handle ids,
                  py::handle scores, const std::string& activation, py::handle residual, double scale,
                  py::handle workspace, py::handle out, Stream stream) {
    Arguments arguments("experts");
    require_positive(arguments, "width", width);
    const TensorView input = padded_rows(arguments, x, hidden);
    const TensorView first = arguments.storage(
        "gate_up", gate_up, {"E", divide_up(width, kPanelColumns / 2), divide_up(hidden, 2), kPanelColumns, 2},
        {DType::kBFloat16});
    const TensorView second =
        arguments.storage("down", down, {"E", divide_up(hidden, kPanelColumns), divide_up(width, 2), kPanelColumns, 2},
                          {DType::kBFloat16});
    const TensorView chosen = arguments.tensor("ids", ids, {"T", "A"}, {DType::kInt32});
    const TensorView weights = arguments.tensor("scores", scores, {"T", "A"}, {DType::kFloat32});
    const TensorView result = arguments.tensor("out", out, {"T", hidden}, kFloating);
    const TensorView base = arguments.optional("residual", residual, {"T", hidden}, {result.dtype});
    const int64_t tokens = arguments["T"], experts_count = arguments["E"], active = arguments["A"];
    if (experts_count < 1 || experts_count > kMaxExperts) {
        arguments.reject("gate_up must hold from 1 to " + std::to_string(kMaxExperts) + " experts, found " +
                         std::to_string(experts_count));
    }
    require_positive(arguments, "ids' width", active);
    if (tokens == 0) return;
    const int64_t bytes = experts_workspace_bytes(tokens, hidden, experts_count, active, width);
    const TensorView memory = arguments.storage("workspace", workspace, {divide_up(bytes, 4)}, {DType::kInt32});
    start(experts,
          ExpertsArgs{element_of(result), activation_named(arguments, activation), tokens, hidden, experts_count,
                      active, width, input.shape[1], input.data, first.data, second.data,
                      static_cast<const int32_t*>(chosen.data), static_cast<const float*>(weights.data), base.data,
                      result.data, memory.data, static_cast<float>(scale)},
          stream);
}

void move_kv(const char* op, void (*kernel)(const KvArgs&, Stream), py::handle k, py::handle v, py::handle keys,
             py::handle values, int64_t block_tokens, py::handle slots, Stream stream) {
    Arguments arguments(op);
    constexpr int64_t kTile = 32;
    if (block_tokens < kTile || block_tokens % kTile != 0) {
        arguments.reject("block_tokens must be a multiple of 32, found " + std::to_string(block_tokens));
    }
    const TensorView rows = arguments.tensor("k", k, {"T", "K", "D"}, {DType::kBFloat16});
    const TensorView others = arguments.tensor("v", v, {"T", "K", "D"}, {DType::kBFloat16});
    const int64_t head_dim = arguments["D"], tiles = block_tokens / kTile;
    if (head_dim % 2 != 0) arguments.reject("D must be even, found " + std::to_string(head_dim));
    const TensorView key_tiles =
        arguments.tensor("keys", keys, {"N", "K", tiles, head_dim / 2, kTile, 2}, {DType::kBFloat16});
    const TensorView value_tiles = arguments.tensor(
        "values", values, {"N", "K", tiles, divide_up(head_dim, 32), kTile / 2, 32, 2}, {DType::kBFloat16});
    const TensorView places = arguments.tensor("slots", slots, {"T"}, {DType::kInt32});
    if (rows.count() == 0) return;
    start(kernel,
          KvArgs{arguments["T"], arguments["K"], head_dim, block_tokens, rows.data, others.data, key_tiles.data,
                 value_tiles.data, static_cast<const int32_t*>(places.data)},
          stream);
}

void bind_write_kv(py::handle k, py::handle v, py::handle keys, py::handle values, int64_t block_tokens,
                   py::handle slots, Stream stream) {
    move_kv("write_kv", write_kv, k, v, keys, values, block_tokens, slots, stream);
}

void bind_read_kv(py::handle keys, py::handle values, int64_t block_tokens, py::handle slots, py::handle k,
                  py::handle v, Stream stream) {
    move_kv("read_kv", read_kv, k, v, keys, values, block_tokens, slots, stream);
}

}  // namespace

PYBIND11_MODULE(MODULE_NAME, module) {
    module.doc() = "Kernels for CUDA devices; each is started on a stream (a cudaStream_t as an integer).";
#ifdef MOELENS_CUDA_EMULATION
    import_torch(Device::kCpu);
    module.def("set_seed", emulation::set_seed, py::arg("seed"));
#else
    import_torch(Device::kCuda);
#endif
    module.def("count_devices", [] {
        const char* reason = nullptr;
        const int count = count_devices(&reason);
        return py::make_tuple(count, std::string(reason));
    });
    module.def("experts_workspace_bytes", experts_workspace_bytes, py::arg("tokens"), py::arg("hidden"),
               py::arg("experts"), py::arg("active"), py::arg("width"));
    module.def("rms_norm", bind_rms_norm, py::arg("x"), py::arg("weight"), py::arg("eps"), py::arg("out"),
               py::arg("stream"));
    module.def("layer_norm", bind_layer_norm, py::arg("x"), py::arg("weight"), py::arg("eps"), py::arg("out"),
               py::arg("stream"));
    module.def("split_qkv", bind_split_qkv, py::arg("joined"), py::arg("positions"), py::arg("inverse_frequencies"),
               py::arg("magnitude"), py::arg("q_norm"), py::arg("k_norm"), py::arg("eps"), py::arg("limit"),
               py::arg("q"), py::arg("k"), py::arg("v"), py::arg("stream"));
    module.def("route", bind_route, py::arg("logits"), py::arg("scoring"), py::arg("norm"), py::arg("ids"),
               py::arg("weights"), py::arg("stream"));
    module.def("linear", bind_linear, py::arg("x"), py::arg("weight"), py::arg("rows"), py::arg("columns"),
               py::arg("bias"), py::arg("residual"), py::arg("scale"), py::arg("out"), py::arg("stream"));
    module.def("experts", bind_experts, py::arg("x"), py::arg("gate_up"), py::arg("down"), py::arg("width"),
               py::arg("hidden"), py::arg("ids"), py::arg("scores"), py::arg("activation"), py::arg("residual"),
               py::arg("scale"), py::arg("workspace"), py::arg("out"), py::arg("stream"));
    module.def("write_kv", bind_write_kv, py::arg("k"), py::arg("v"), py::arg("keys"), py::arg("values"),
               py::arg("block_tokens"), py::arg("slots"), py::arg("stream"));
    module.def("read_kv", bind_read_kv, py::arg("keys"), py::arg("values"), py::arg("block_tokens"), py::arg("slots"),
               py::arg("k"), py::arg("v"), py::arg("stream"));
}

}  // namespace moelens
