// pack_matrix and pack_gate_up: weights into panels of 32 columns (see formats.inl.h); padding is zero.

// Rows [first, first + count) of the source, as columns `lane` … of the panel; missing rows are zeros.
template <class T>
void pack_lanes(const MatrixSource& source, int64_t first, int count, float* panel, int lane) {
    using U = typename ColumnUnits<T>::type;
    const T* rows[kPanelColumns];
    for (int r = 0; r < count; ++r) {
        const int64_t row = first + r;
        rows[r] = row < source.rows ? static_cast<const T*>(source.data) + row * source.row_stride : nullptr;
    }
    const int64_t units = divide_rounding_up(source.columns, U::kElements);
    write_panel<U>(rows, count, source.columns, panel + lane, kPanelColumns, units);
}

MOELENS_INLINE void copy_transposed(const float* k, int64_t, int n, bool, float* out) {
    memcpy(out, k, 4 * n);
}

MOELENS_INLINE void copy_transposed(const Bf16* k, int64_t column_stride, int n, bool has_second, float* out) {
    Bf16 first[kPanelColumns] = {}, second[kPanelColumns] = {};
    memcpy(first, k, 2 * n);
    if (has_second) memcpy(second, k + column_stride, 2 * n);
    for (int lane = 0; lane < kPanelColumns; lane += kLanes) store(out + lane, join_pairs(first + lane, second + lane));
}

// The same for a source whose columns are contiguous: a step of the panel is then one run of memory, or two joined.
template <class T>
void pack_transposed_lanes(const MatrixSource& source, int64_t first, int count, float* panel, int lane) {
    constexpr int kDepth = ColumnUnits<T>::type::kElements;
    const int n = static_cast<int>(larger(0, smaller(count, source.rows - first)));
    for (int64_t k = 0; k < source.columns; k += kDepth) {
        float line[kPanelColumns] = {};
        const T* from = static_cast<const T*>(source.data) + k * source.column_stride + first;
        copy_transposed(from, source.column_stride, n, k + 1 < source.columns, line);
        memcpy(panel + k / kDepth * kPanelColumns + lane, line, 4 * count);
    }
}

template <class T>
void pack_any_lanes(const MatrixSource& source, int64_t first, int count, float* panel, int lane) {
    if (source.column_stride == 1) {
        pack_lanes<T>(source, first, count, panel, lane);
    } else {
        pack_transposed_lanes<T>(source, first, count, panel, lane);
    }
}

template <class T>
void pack_matrix_typed(const MatrixSource& source, float* storage) {
    const int64_t panel_floats = divide_rounding_up(source.columns, ColumnUnits<T>::type::kElements) * kPanelColumns;
    for (int64_t row = 0; row < source.rows; row += kPanelColumns) {
        pack_any_lanes<T>(source, row, kPanelColumns, storage + row / kPanelColumns * panel_floats, 0);
    }
}

void pack_matrix(Element element, const MatrixSource& source, void* storage) {
    float* out = static_cast<float*>(storage);
    element == Element::kBFloat16 ? pack_matrix_typed<Bf16>(source, out) : pack_matrix_typed<float>(source, out);
}

template <class T>
void pack_gate_up_typed(const MatrixSource& gate, const MatrixSource& up, float* storage) {
    constexpr int kHalf = kPanelColumns / 2;
    const int64_t panel_floats = divide_rounding_up(gate.columns, ColumnUnits<T>::type::kElements) * kPanelColumns;
    for (int64_t row = 0; row < gate.rows; row += kHalf) {
        float* panel = storage + row / kHalf * panel_floats;
        pack_any_lanes<T>(gate, row, kHalf, panel, 0);
        pack_any_lanes<T>(up, row, kHalf, panel, kHalf);
    }
}

void pack_gate_up(Element element, const MatrixSource& gate, const MatrixSource& up, void* storage) {
    float* out = static_cast<float*>(storage);
    element == Element::kBFloat16 ? pack_gate_up_typed<Bf16>(gate, up, out) : pack_gate_up_typed<float>(gate, up, out);
}
