// Products of 8-bit whole numbers: the format of their panels, and rows and weights brought into it.
//
// Numbers are taken as scale * q with q in [-127, 127], scale being their largest magnitude / 127: all of a row of
// weights, and of activations 256 at a time, a group, so that the few that are far larger than the rest spoil only
// theirs. A step of a panel is four ks. Weights lie as q + 128, since the dot product wants one side unsigned; so a sum
// comes out as Σ q_w q_x + 128 Σ q_x, and the second term is known when the group is quantised. A group's sums are far
// below 2^24: exact in 32 bits and as floats, whatever their order and the instruction set. Behind the steps of a panel
// of weights lie its columns' scales, one more line.

struct Quads {
    using Element = int8_t;
    static constexpr int kDepth = 4;
    static constexpr int kUnitsPerStep = 1;
#ifdef MOELENS_TILES
    static constexpr int kUnitsTogether = kBlockSteps;

    template <int S, class T, class Ahead, class Beside>
    static MOELENS_INLINE void multiply(const T& t, Ahead ahead, const Beside& beside) {
        multiply_in_tiles<Quads, S>(t, ahead, beside);
    }
#else
    static constexpr int kUnitsTogether = 1;

    template <int R, int V>
    static MOELENS_INLINE void step(F32 (&sums)[R][V], const float* a, int next_row, int64_t, const float* b) {
        add_words(sums, a, next_row, b, [](F32 row, F32 column, F32& sum) { sum = dot_quads(column, row, sum); });
    }
#endif
};

struct QuadUnits {  // four int8 in one word
    using Element = int8_t;
    static constexpr int kElements = 4;
    static MOELENS_INLINE F32 load_units(const int8_t* p) { return load(reinterpret_cast<const float*>(p)); }
};
template <>
struct RowUnits<Quads> {
    using type = QuadUnits;
};

constexpr int64_t quad_panel_floats(int64_t k) {
    return (steps_of<Quads>(k) + 1) * kPanelColumns;
}

// --- rows of activations
// ------------------------------------------------------------------------------------------------------

constexpr int64_t kGroup = 256;  // ks that share a scale
constexpr int64_t kGroupSteps = kGroup / Quads::kDepth;

constexpr int64_t group_count(int64_t columns) {
    return divide_rounding_up(columns, kGroup);
}

struct QuantizedRows {
    int8_t* data;      // [rows, stride]
    float* scales;     // [rows, groups]; a NaN where the group holds one, or an infinity
    int32_t* offsets;  // [rows, groups]: 128 Σ q
    int64_t stride, groups;
};

// Bytes from one quantised row to the next.
constexpr int64_t quantized_stride(int64_t columns) {
    return divide_rounding_up(columns, 64) * 64;
}

constexpr float kLeastMagnitude = 1e-30f;  // a group of smaller numbers is taken as zeros: its factor would overflow

// The largest |x| of a row or a part of it; a NaN where some x is not finite.
template <class T>
MOELENS_INLINE float largest_magnitude(const T* row, int64_t columns) {
    constexpr int kChains = 4;
    F32 most[kChains], poison[kChains];  // x * 0 is zero, or a NaN
    for (int i = 0; i < kChains; ++i) most[i] = poison[i] = zeros();
    const auto take = [&](F32 x, int i) {
        most[i] = max(max(x, zeros() - x), most[i]);
        poison[i] = fma(x, zeros(), poison[i]);
    };
    int64_t c = 0;
    for (; c + kChains * kLanes <= columns; c += kChains * kLanes) {
#pragma GCC unroll 16
        for (int i = 0; i < kChains; ++i) take(load(row + c + i * kLanes), i);
    }
    for (; c < columns; c += kLanes) take(load_up_to(row + c, columns - c), 0);
    const F32 all = max(max(most[0], most[1]), max(most[2], most[3]));
    return largest(all) + sum((poison[0] + poison[1]) + (poison[2] + poison[3]));
}

// What x is multiplied by to become q; zero where all are zeros, or one is not finite.
MOELENS_INLINE float quantizing_factor(float magnitude) {
    return magnitude >= kLeastMagnitude ? 127.0f / magnitude : 0.0f;
}
MOELENS_INLINE float quantizing_scale(float magnitude) {
    return magnitude < kLeastMagnitude ? 0.0f : magnitude / 127.0f;
}

template <class T>
MOELENS_INLINE void quantize_group(const T* x, int64_t columns, int8_t* q, float* scale, int32_t* offset) {
    const float magnitude = largest_magnitude(x, columns), factor = quantizing_factor(magnitude);
    *scale = quantizing_scale(magnitude);
    *offset = 0;
    if (factor == 0) {
        memset(q, 0, static_cast<size_t>(columns));
        return;
    }
    F32 total = zeros();  // whole numbers far below 2^24: exact
    for (int64_t c = 0; c < columns; c += kLanes) {
        const F32 whole = round_even(load_up_to(x + c, columns - c) * splat(factor));
        store_int8(q + c, whole);
        total = total + whole;
    }
    *offset = 128 * static_cast<int32_t>(sum(total));
}

template <class T>
MOELENS_INLINE void quantize_row(const T* row, int64_t columns, int64_t index, const QuantizedRows& out) {
    for (int64_t group = 0; group < out.groups; ++group) {
        const int64_t c = group * kGroup, at = index * out.groups + group;
        int8_t* q = out.data + index * out.stride + c;
        quantize_group(row + c, smaller(kGroup, columns - c), q, out.scales + at, out.offsets + at);
    }
}

// totals [count][32] += (sums [count][32] - offset) * scale of a group, or = for the first; A's row r is row_at(r) of
// the quantised ones.
template <class RowAt>
MOELENS_INLINE void add_group(const float* sums, int count, const QuantizedRows& quantized, int64_t group,
                              const RowAt& row_at, float* totals) {
    for (int r = 0; r < count; ++r, sums += kPanelColumns, totals += kPanelColumns) {
        const int64_t at = row_at(r) * quantized.groups + group;
        const F32 scale = splat(quantized.scales[at]);
        const int32_t offset = quantized.offsets[at];
        for (int c = 0; c < kPanelColumns; c += kLanes) {
            const F32 y = to_floats(load(sums + c), offset) * scale;
            store(totals + c, group == 0 ? y : load(totals + c) + y);
        }
    }
}

MOELENS_INLINE void scale_columns(const float* scales, int count, float* totals) {
    for (int r = 0; r < count; ++r, totals += kPanelColumns) {
        for (int c = 0; c < kPanelColumns; c += kLanes) store(totals + c, load(totals + c) * load(scales + c));
    }
}

// As multiply_panel, of rows that were quantised: row_at(r) is the quantised row that A's row r is. What begin(row)
// returns finishes the rows of a tile from `row` on.
template <class RowAt, class Begin>
MOELENS_INLINE void multiply_quad_panel(const Panels& a, const QuantizedRows& quantized, const RowAt& row_at,
                                        const float* b, int64_t steps, const float* next, const Begin& begin) {
    alignas(64) float sums[kMaxRows * kPanelColumns], totals[kMaxRows * kPanelColumns];
    const int64_t tiles = a.last_tile - a.first_tile;
    const int64_t row_floats = floats_of_steps<Quads>(steps);
    for (int64_t tile = a.first_tile; tile < a.last_tile; ++tile) {
        const int64_t row = a.begin(tile);
        const int count = static_cast<int>(a.begin(tile + 1) - row);
        const float* rows = a.data + row * row_floats;
        const bool rests = leaves_fetching(count, b, b + (steps + 1) * kPanelColumns, next);
        for (int64_t group = 0; group < quantized.groups; ++group) {
            const int64_t s = group * kGroupSteps, some = smaller(kGroupSteps, steps - s);
            const float* part = rows + s * count;
            auto share = share_of_panel<Quads>(next + s * kPanelColumns, some, tile - a.first_tile, tiles,
                                               part + count * row_floats, count);
            if (rests) share.rest_at(b);
            multiply_tile<Quads>({part, b + s * kPanelColumns, some, count, sums, kPanelColumns, false}, share);
            add_group(sums, count, quantized, group, [&](int r) { return row_at(row + r); }, totals);
        }
        scale_columns(b + steps * kPanelColumns, count, totals);
        const auto finish = begin(row);
        for (int r = 0; r < count; ++r) finish(r, totals + r * kPanelColumns);
    }
}

// --- weights
// ------------------------------------------------------------------------------------------------------

// values [n] = elements k … k + n of a row of W.
template <class T>
MOELENS_INLINE void gather_row(const MatrixSource& source, int64_t row, int64_t k, int64_t n, float* values) {
    const T* from = static_cast<const T*>(source.data) + row * source.row_stride + k * source.column_stride;
    if (source.column_stride == 1) {
        for (int64_t i = 0; i < n; i += kLanes) store(values + i, load_up_to(from + i, n - i));
    } else {
        for (int64_t i = 0; i < n; ++i) values[i] = widen(from[i * source.column_stride]);
    }
}

constexpr int64_t kQuantizedBlock = 512;  // ks of a row that are quantised at a time

template <class T>
float magnitude_of_row(const MatrixSource& source, int64_t row) {
    float values[kQuantizedBlock], most = 0;
    for (int64_t k = 0; k < source.columns; k += kQuantizedBlock) {
        const int64_t n = smaller(kQuantizedBlock, source.columns - k);
        gather_row<T>(source, row, k, n, values);
        const float magnitude = largest_magnitude(values, n);
        if (!(magnitude <= most)) most = magnitude;
        if (most != most) return most;
    }
    return most;
}

MOELENS_INLINE void quantize_block(const float* values, int64_t n, float factor, int8_t* quads) {
    for (int64_t i = 0; i < n; i += kLanes) {
        const F32 whole = factor == 0 ? zeros() : round_even(load_up_to(values + i, n - i) * splat(factor));
        store_int8(quads + i, whole);
    }
    for (int64_t i = 0; i < n; ++i) quads[i] = static_cast<int8_t>(quads[i] ^ 0x80);
}

// Rows [first, first + count) of the source, as columns `lane` … of the panel; missing rows are zeros.
template <class T>
void pack_quad_lanes(const MatrixSource& source, int64_t first, int count, float* panel, int lane) {
    alignas(64) int8_t quads[kPanelColumns][kQuantizedBlock];
    alignas(64) float values[kQuantizedBlock];
    float factors[kPanelColumns];
    const int8_t* rows[kPanelColumns];
    float* scales = panel + steps_of<Quads>(source.columns) * kPanelColumns + lane;
    for (int r = 0; r < count; ++r) {
        const bool there = first + r < source.rows;
        const float magnitude = there ? magnitude_of_row<T>(source, first + r) : 0.0f;
        rows[r] = there ? quads[r] : nullptr;
        factors[r] = quantizing_factor(magnitude);
        scales[r] = quantizing_scale(magnitude);
    }
    for (int64_t k = 0; k < source.columns; k += kQuantizedBlock) {
        const int64_t n = smaller(kQuantizedBlock, source.columns - k);
        for (int r = 0; r < count; ++r) {
            if (rows[r] == nullptr) continue;
            gather_row<T>(source, first + r, k, n, values);
            quantize_block(values, n, factors[r], quads[r]);
        }
        float* out = panel + k / Quads::kDepth * kPanelColumns + lane;
        write_panel<QuadUnits>(rows, count, n, out, kPanelColumns, steps_of<Quads>(n));
    }
}

template <class T>
void pack_matrix_int8_typed(const MatrixSource& source, float* storage) {
    for (int64_t row = 0; row < source.rows; row += kPanelColumns) {
        float* panel = storage + row / kPanelColumns * quad_panel_floats(source.columns);
        pack_quad_lanes<T>(source, row, kPanelColumns, panel, 0);
    }
}

void pack_matrix_int8(Element element, const MatrixSource& source, void* storage) {
    float* out = static_cast<float*>(storage);
    element == Element::kBFloat16 ? pack_matrix_int8_typed<Bf16>(source, out)
                                  : pack_matrix_int8_typed<float>(source, out);
}

template <class T>
void pack_gate_up_int8_typed(const MatrixSource& gate, const MatrixSource& up, float* storage) {
    constexpr int kHalf = kPanelColumns / 2;
    for (int64_t row = 0; row < gate.rows; row += kHalf) {
        float* panel = storage + row / kHalf * quad_panel_floats(gate.columns);
        pack_quad_lanes<T>(gate, row, kHalf, panel, 0);
        pack_quad_lanes<T>(up, row, kHalf, panel, kHalf);
    }
}

void pack_gate_up_int8(Element element, const MatrixSource& gate, const MatrixSource& up, void* storage) {
    float* out = static_cast<float*>(storage);
    element == Element::kBFloat16 ? pack_gate_up_int8_typed<Bf16>(gate, up, out)
                                  : pack_gate_up_int8_typed<float>(gate, up, out);
}
