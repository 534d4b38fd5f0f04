// Starts every op once or more on small inputs, for runs under sanitizers (see sanitized.py).
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "emu/emulation.h"
#include "launch.h"

using namespace moelens;

namespace {

// Heap memory of exactly this size, so that the sanitizer knows its ends.
template <class T>
struct Memory {
    explicit Memory(size_t count, T value = T()) {
        void* memory = nullptr;
        if (posix_memalign(&memory, 256, count * sizeof(T)) != 0) std::abort();
        data = static_cast<T*>(memory);
        for (size_t i = 0; i < count; ++i) data[i] = value;
    }
    ~Memory() { std::free(data); }
    T* data = nullptr;
};

constexpr uint16_t kOne = 0x3f80, kSmall = 0x3c00;

void run_norms() {
    for (int64_t width : {64, 1000}) {
        Memory<float> x(3 * width, 0.5f), weight(width, 1.0f), out(3 * width);
        const NormArgs args{Element::kFloat32, Element::kFloat32, 3, width, x.data, weight.data, out.data, 1e-6f};
        rms_norm(args, 0);
        layer_norm(args, 0);
    }
}

void run_split_qkv() {
    Memory<float> joined(2 * 128, 0.5f), frequencies(8, 0.1f);
    Memory<int32_t> positions(2, 3);
    Memory<uint16_t> q_norm(16, kOne), k_norm(32, kOne), q(2 * 64), k(2 * 32), v(2 * 32);
    split_qkv({Element::kFloat32,
               Element::kBFloat16,
               2,
               4,
               2,
               16,
               8,
               joined.data,
               positions.data,
               frequencies.data,
               1.0f,
               {q_norm.data, 16},
               {k_norm.data, 32},
               1e-6f,
               4.0f,
               q.data,
               k.data,
               v.data},
              0);
}

void run_linear(int64_t rows, int64_t columns, int64_t inner) {
    Memory<uint16_t> x(rows * inner, kOne), weight((columns + 31) / 32 * 32 * inner, kSmall);
    Memory<uint16_t> bias(columns, kOne);
    Memory<float> residual(rows * columns, 1.0f), out(rows * columns);
    linear(
        {Element::kFloat32, rows, inner, columns, inner, x.data, weight.data, bias.data, residual.data, out.data, 1.0f},
        0);
}

void run_experts(int64_t tokens, int64_t count) {
    const int64_t hidden = 136, width = 72, active = 2;
    Memory<float> logits(tokens * count), scores(tokens * active), out(tokens * hidden);
    for (int64_t i = 0; i < tokens * count; ++i) logits.data[i] = static_cast<float>(i * 2654435761u % 1000) / 100.0f;
    Memory<int32_t> ids(tokens * active);
    route({tokens, count, active, Scoring::kSoftmax, 1.0f, logits.data, ids.data, scores.data}, 0);
    Memory<uint16_t> x(tokens * hidden, kOne), gate_up(count * 5 * 32 * hidden, kSmall),
        down(count * 5 * 32 * width, kSmall);
    Memory<unsigned char> workspace(static_cast<size_t>(experts_workspace_bytes(tokens, hidden, count, active, width)));
    experts({Element::kFloat32, Activation::kSilu, tokens, hidden, count, active, width, hidden, x.data, gate_up.data,
             down.data, ids.data, scores.data, nullptr, out.data, workspace.data, 1.0f},
            0);
}

void run_kv() {
    const int64_t tokens = 40, heads = 2, head_dim = 34, blocks = 2;
    Memory<uint16_t> k(tokens * heads * head_dim, kOne), v(tokens * heads * head_dim, kOne);
    Memory<uint16_t> keys(blocks * heads * 32 * head_dim), values(blocks * heads * 32 * 64);
    Memory<int32_t> slots(tokens);
    for (int i = 0; i < tokens; ++i) slots.data[i] = i;
    const KvArgs args{tokens, heads, head_dim, 32, k.data, v.data, keys.data, values.data, slots.data};
    write_kv(args, 0);
    read_kv(args, 0);
}

}  // namespace

int main() {
    emulation::set_seed(3);
    run_norms();
    run_split_qkv();
    run_linear(3, 40, 200);
    run_linear(40, 7, 40);
    run_linear(130, 136, 72);
    run_experts(20, 4);
    run_experts(4, 33);
    run_kv();
    std::puts("done");
}
