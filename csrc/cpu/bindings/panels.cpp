// Checks of packed weights, whose dtype says how they are packed.
#include "bindings/kernels.h"

namespace py = pybind11;

namespace moelens {

namespace {

bool is_quantized(const char* name, py::handle storage, const char* op) {
    return view_tensor(op, name, storage).dtype == DType::kInt8;
}

}  // namespace

TensorView check_panels(Arguments& arguments, const char* name, py::handle storage, Dim panels, int64_t columns,
                        DType activations) {
    if (is_quantized(name, storage, arguments.op())) {
        return arguments.storage(name, storage, {panels, divide_up(columns, 4) + 1, kPanelColumns, 4}, {DType::kInt8});
    }
    if (activations == DType::kFloat32) {
        return arguments.storage(name, storage, {panels, columns, kPanelColumns}, {activations});
    }
    return arguments.storage(name, storage, {panels, divide_up(columns, 2), kPanelColumns, 2}, {activations});
}

TensorView check_expert_panels(Arguments& arguments, const char* name, py::handle storage, int64_t panels,
                               int64_t columns, DType activations) {
    if (is_quantized(name, storage, arguments.op())) {
        const int64_t lines = divide_up(columns, 4) + 1;
        return arguments.storage(name, storage, {"E", panels, lines, kPanelColumns, 4}, {DType::kInt8});
    }
    if (activations == DType::kFloat32) {
        return arguments.storage(name, storage, {"E", panels, columns, kPanelColumns}, {activations});
    }
    return arguments.storage(name, storage, {"E", panels, divide_up(columns, 2), kPanelColumns, 2}, {activations});
}

int64_t panel_bytes(DType storage, int64_t columns) {
    const int64_t lines = storage == DType::kInt8      ? divide_up(columns, 4) + 1
                          : storage == DType::kFloat32 ? columns
                                                       : divide_up(columns, 2);
    return lines * kPanelColumns * 4;
}

}  // namespace moelens
