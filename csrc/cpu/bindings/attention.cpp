// Bindings of attention and of the cache that it reads.
#include <pybind11/stl.h>

#include <algorithm>
#include <limits>
#include <optional>

#include "bindings/kernels.h"

namespace py = pybind11;

namespace moelens {

namespace {

constexpr int64_t kTileKeys = 32;

struct Cache {
    TensorView keys, values;
};

// One layer's keys and values, for heads of arguments["D"] elements: blocks [N, K], each of tiles of 32 keys.
Cache check_cache(Arguments& arguments, py::handle keys, py::handle values, int64_t block_tokens, DType dtype) {
    if (block_tokens < kTileKeys || block_tokens % kTileKeys != 0) {
        arguments.reject("block_tokens must be a multiple of 32, found " + std::to_string(block_tokens));
    }
    const int64_t head_dim = arguments["D"], tiles = block_tokens / kTileKeys;
    const int64_t chunks = divide_up(head_dim, kPanelColumns);
    if (dtype == DType::kFloat32) {
        return {arguments.storage("keys", keys, {"N", "K", tiles, head_dim, kTileKeys}, {dtype}),
                arguments.storage("values", values, {"N", "K", tiles, chunks, kTileKeys, kPanelColumns}, {dtype})};
    }
    if (head_dim % 2 != 0) {
        arguments.reject("D must be even in bfloat16, found " + std::to_string(head_dim) + "; use float32");
    }
    return {arguments.storage("keys", keys, {"N", "K", tiles, head_dim / 2, kTileKeys, 2}, {dtype}),
            arguments.storage("values", values, {"N", "K", tiles, chunks, kTileKeys / 2, kPanelColumns, 2}, {dtype})};
}

void write_kv(Kernels& self, py::handle k, py::handle v, py::handle keys, py::handle values, int64_t block_tokens,
              py::handle slots) {
    Arguments arguments("write_kv");
    const TensorView new_keys = arguments.tensor("k", k, {"T", "K", "D"}, kFloating);
    const TensorView new_values = arguments.tensor("v", v, {"T", "K", "D"}, {new_keys.dtype});
    const Cache cache = check_cache(arguments, keys, values, block_tokens, new_keys.dtype);
    const TensorView places = arguments.tensor("slots", slots, {"T"}, {DType::kInt32});
    const auto* slot = static_cast<const int32_t*>(places.data);
    const int64_t tokens = arguments["T"], count = arguments["N"] * block_tokens;
    for (int64_t i = 0; i < tokens; ++i) {
        if (slot[i] >= 0 && slot[i] < count) continue;
        arguments.reject("slots must be in [0, " + std::to_string(count) + "), found " + std::to_string(slot[i]) +
                         " at " + std::to_string(i));
    }
    self.call(arguments, self.table().write_kv,
              WriteKvArgs{element_of(new_keys), tokens, arguments["K"], arguments["D"], block_tokens, new_keys.data,
                          new_values.data, cache.keys.data, cache.values.data, slot});
}

// The values of starts, cached and block_ids, of which only the used columns are looked at.
void check_rows(const Arguments& arguments, const AttentionArgs& args, int64_t tokens, int64_t blocks) {
    if (args.starts[0] != 0 || args.starts[args.requests] != tokens) {
        arguments.reject("starts must go from 0 to T = " + std::to_string(tokens) + ", found " +
                         std::to_string(args.starts[0]) + " to " + std::to_string(args.starts[args.requests]));
    }
    for (int64_t s = 0; s < args.requests; ++s) {
        const int64_t rows = args.starts[s + 1] - static_cast<int64_t>(args.starts[s]), cached = args.cached[s];
        const std::string where = " of request " + std::to_string(s);
        if (rows < 0) arguments.reject("starts must not fall, but the rows" + where + " end before they start");
        if (cached < 0) arguments.reject("cached must not be negative, found " + std::to_string(cached) + where);
        const int64_t used = rows == 0 ? 0 : divide_up(cached + rows, args.block_tokens);
        if (used > args.block_columns) {
            arguments.reject("block_ids has " + std::to_string(args.block_columns) + " columns, but the " +
                             std::to_string(cached + rows) + " tokens" + where + " take " + std::to_string(used));
        }
        const int64_t first = std::max<int64_t>(0, cached + 1 - args.window) / args.block_tokens;
        for (int64_t i = first; i < used; ++i) {
            const int32_t block = args.block_ids[s * args.block_columns + i];
            if (block >= 0 && block < blocks) continue;
            arguments.reject("block_ids must be in [0, N) = [0, " + std::to_string(blocks) + "), found " +
                             std::to_string(block) + where);
        }
    }
}

void attention(Kernels& self, py::handle q, py::handle keys, py::handle values, int64_t kv_heads, int64_t block_tokens,
               py::handle starts, py::handle cached, py::handle block_ids, double scale, std::optional<int64_t> window,
               py::handle out) {
    Arguments arguments("attention");
    const TensorView queries = arguments.tensor("q", q, {"T", "Q", "D"}, kFloating);
    const int64_t query_heads = arguments["Q"];
    if (kv_heads < 1 || query_heads % kv_heads != 0) {
        arguments.reject("Q must be a multiple of K = " + std::to_string(kv_heads) + ", found " +
                         std::to_string(query_heads));
    }
    arguments.set("K", kv_heads);
    const Cache cache = check_cache(arguments, keys, values, block_tokens, queries.dtype);
    const TensorView counts = arguments.tensor("cached", cached, {"S"}, {DType::kInt32});
    const TensorView begins = arguments.tensor("starts", starts, {arguments["S"] + 1}, {DType::kInt32});
    const TensorView blocks = arguments.tensor("block_ids", block_ids, {"S", "columns"}, {DType::kInt32});
    const TensorView result = arguments.tensor("out", out, {"T", "Q", "D"}, {queries.dtype});
    if (!(scale > 0)) arguments.reject("scale must be positive, found " + std::to_string(scale));
    if (window && *window < 1) arguments.reject("window must be at least 1, found " + std::to_string(*window));
    const AttentionArgs args{element_of(queries),
                             arguments["S"],
                             query_heads,
                             kv_heads,
                             arguments["D"],
                             block_tokens,
                             arguments["columns"],
                             queries.data,
                             cache.keys.data,
                             cache.values.data,
                             static_cast<const int32_t*>(begins.data),
                             static_cast<const int32_t*>(counts.data),
                             static_cast<const int32_t*>(blocks.data),
                             result.data,
                             static_cast<float>(scale),
                             window.value_or(std::numeric_limits<int64_t>::max())};
    check_rows(arguments, args, arguments["T"], arguments["N"]);
    self.call(arguments, self.table().attention, args);
}

}  // namespace

void bind_attention(KernelsClass& kernels) {
    kernels
        .def("write_kv", write_kv, py::arg("k"), py::arg("v"), py::arg("keys"), py::arg("values"),
             py::arg("block_tokens"), py::arg("slots"))
        .def("attention", attention, py::arg("q"), py::arg("keys"), py::arg("values"), py::arg("kv_heads"),
             py::arg("block_tokens"), py::arg("starts"), py::arg("cached"), py::arg("block_ids"), py::arg("scale"),
             py::arg("window"), py::arg("out"));
}

}  // namespace moelens
