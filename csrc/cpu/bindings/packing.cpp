// Bindings of the functions that put weights into the order that the products read. They don't take the team.
#include "bindings/kernels.h"

namespace py = pybind11;

namespace moelens {

namespace {

MatrixSource source_of(const TensorView& matrix) {
    // A stride of a dimension of one element means nothing; give it the value that the kernels look for.
    const bool rows_contiguous = matrix.strides[1] == 1 || matrix.shape[1] <= 1;
    const int64_t row_stride = rows_contiguous ? matrix.strides[0] : 1;
    return {matrix.data, matrix.shape[0], matrix.shape[1], row_stride, rows_contiguous ? 1 : matrix.strides[1]};
}

// Without the GIL.
void pack_into(const Kernels& self, const TensorView& rows, const TensorView& panels, int64_t offset) {
    const auto pack = panels.dtype == DType::kInt8 ? self.table().pack_matrix_int8 : self.table().pack_matrix;
    pack(element_of(rows), source_of(rows), static_cast<char*>(panels.data) + offset);
}

void pack_matrix(Kernels& self, py::handle source, py::handle storage, int64_t first_row) {
    Arguments arguments("pack_matrix");
    const TensorView rows = arguments.matrix("source", source, {"n", "K"}, kFloating);
    const TensorView panels = check_panels(arguments, "storage", storage, "panels", arguments["K"], rows.dtype);
    if (first_row < 0 || first_row % kPanelColumns != 0) {
        arguments.reject("first_row must be a multiple of 32, found " + std::to_string(first_row));
    }
    const int64_t first_panel = first_row / kPanelColumns;
    if (first_panel + divide_up(arguments["n"], kPanelColumns) > arguments["panels"]) {
        arguments.reject("source has " + std::to_string(arguments["n"]) + " rows, which don't fit from first_row " +
                         std::to_string(first_row) + " into storage for " +
                         std::to_string(arguments["panels"] * kPanelColumns));
    }
    const int64_t offset = first_panel * panel_bytes(panels.dtype, arguments["K"]);
    py::gil_scoped_release release;
    pack_into(self, rows, panels, offset);
}

void pack_gate_up(Kernels& self, py::handle gate, py::handle up, py::handle storage) {
    Arguments arguments("pack_gate_up");
    const TensorView first = arguments.matrix("gate", gate, {"I", "K"}, kFloating);
    const TensorView second = arguments.matrix("up", up, {"I", "K"}, {first.dtype});
    const TensorView panels = check_panels(arguments, "storage", storage, divide_up(arguments["I"], kPanelColumns / 2),
                                           arguments["K"], first.dtype);
    const auto pack = panels.dtype == DType::kInt8 ? self.table().pack_gate_up_int8 : self.table().pack_gate_up;
    py::gil_scoped_release release;
    pack(element_of(first), source_of(first), source_of(second), panels.data);
}

void pack_down(Kernels& self, py::handle source, py::handle storage) {
    Arguments arguments("pack_down");
    const TensorView rows = arguments.matrix("source", source, {"N", "K"}, kFloating);
    const TensorView panels = check_panels(arguments, "storage", storage, divide_up(arguments["N"], kPanelColumns),
                                           arguments["K"], rows.dtype);
    py::gil_scoped_release release;
    pack_into(self, rows, panels, 0);
}

}  // namespace

void bind_packing(KernelsClass& kernels) {
    kernels.def("pack_matrix", pack_matrix, py::arg("source"), py::arg("storage"), py::arg("first_row"))
        .def("pack_gate_up", pack_gate_up, py::arg("gate"), py::arg("up"), py::arg("storage"))
        .def("pack_down", pack_down, py::arg("source"), py::arg("storage"));
}

}  // namespace moelens
