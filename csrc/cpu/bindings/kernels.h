// The Python class Kernels: one variant of the kernels, with its team of threads and its scratch memory.
#pragma once

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "../../ops/arguments.h"
#include "calls.h"
#include "isa.h"
#include "kernel_table.h"

namespace moelens {

class Kernels {
  public:
    Kernels(const std::string& isa, int threads)
        : table_(find_variant(isa)), scratch_(checked(threads)), team_(threads) {}

    const KernelTable& table() const { return table_; }
    int threads() const { return team_.threads(); }

    // Runs kernel(context, args) without the GIL, one call at a time; while calls are deferred, beside the caller.
    template <class Args>
    void call(const Arguments& arguments, void (*kernel)(const Context&, const Args&), const Args& args) {
        run(arguments, [kernel, args](const Context& context) { kernel(context, args); });
    }

    // The same for several kernels, one after the other. `kernels` must hold all that it uses, but for tensors.
    template <class Run>
    void run(const Arguments& arguments, const Run& kernels) {
        if (calls_.are_deferred()) {
            if (calls_.add(arguments, kernels)) team_.start(&Kernels::run_calls, this);
            return;
        }
        if (calls_.are_of_this_thread()) run_waiting();
        pybind11::gil_scoped_release release;
        const auto lock = team_.lock();
        kernels(Context{team_, scratch_});
    }

    // Returns when the calls that were deferred have run. Those after one that throws are dropped.
    void run_waiting() {
        if (calls_.is_empty()) return;
        calls_.close();
        {
            pybind11::gil_scoped_release release;
            team_.join();
            const auto lock = team_.lock();
            calls_.run_all({team_, scratch_});  // what no worker has run
        }
        calls_.clear();
    }

    const Calls& calls() const { return calls_; }
    Calls& calls() { return calls_; }

    // Memory for what passes from one of them to the next: use it in `run` only.
    Buffer& between(int index) { return between_[index]; }

  private:
    // By a worker.
    static void run_calls(void* self) {
        Kernels& kernels = *static_cast<Kernels*>(self);
        kernels.calls_.run_all({kernels.team_, kernels.scratch_});
    }
    static int checked(int threads) {
        if (threads < 1) throw std::invalid_argument("threads must be at least 1, found " + std::to_string(threads));
        return threads;
    }

    const KernelTable& table_;
    Calls calls_;
    Scratch scratch_;
    Buffer between_[2];
    Team team_;  // goes first: its workers use the others
};

using KernelsClass = pybind11::class_<Kernels>;

constexpr int64_t kPanelColumns = 32;  // of packed weights

// Packed panels of matrices with `columns` columns: […, panels, columns, 32] in float32, […, panels, ceil(columns/2),
// 32, 2] in bfloat16, […, panels, ceil(columns/4) + 1, 32, 4] in int8, whose last line is the scales. Quantised weights
// go with activations of either dtype, others with those of their own: which it is, the storage says.
TensorView check_panels(Arguments& arguments, const char* name, pybind11::handle storage, Dim panels, int64_t columns,
                        DType activations);
TensorView check_expert_panels(Arguments& arguments, const char* name, pybind11::handle storage, int64_t panels,
                               int64_t columns, DType activations);
// The kernel for the weights' dtype.
template <class Kernel>
Kernel kernel_for(const TensorView& weights, Kernel plain, Kernel int8) {
    return weights.dtype == DType::kInt8 ? int8 : plain;
}
// x [T, K], W [N, K], bias [N], residual and out [T, N], checked, and the kernel for the weights. `names` are what x,
// W, residual and out are called in messages.
struct Product {
    void (*multiply)(const Context&, const LinearArgs&);
    LinearArgs args;
};
struct ProductNames {
    const char *x = "x", *weight = "weight", *residual = "residual", *out = "out";
};
Product product_of(const KernelTable& table, Arguments& arguments, const ProductNames& names, pybind11::handle x,
                   pybind11::handle weight, int64_t rows, int64_t columns, pybind11::handle bias,
                   pybind11::handle residual, double scale, pybind11::handle out);
// Bytes of one panel.
int64_t panel_bytes(DType storage, int64_t columns);

// One function per family of ops adds its methods.
void bind_rows(KernelsClass& kernels);
void bind_products(KernelsClass& kernels);
void bind_layer(KernelsClass& kernels);
void bind_packing(KernelsClass& kernels);
void bind_attention(KernelsClass& kernels);
void bind_sample(KernelsClass& kernels);
void bind_ceilings(KernelsClass& kernels);

}  // namespace moelens
