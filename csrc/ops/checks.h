// Checks of an op's arguments: shapes in letters, dtypes, layout. Every message names op, argument, expected, found.
#pragma once

#include <initializer_list>
#include <string>
#include <vector>

#include "tensor.h"

namespace moelens {

// A dimension by letter, or a number that is known beforehand.
struct Dim {
    Dim(const char* letter) : letter(letter) {}  // NOLINT: implicit, so that shapes read as lists
    Dim(int64_t value) : value(value) {}         // NOLINT
    Dim(int value) : value(value) {}             // NOLINT

    const char* letter = nullptr;
    int64_t value = -1;
};

using Shape = std::initializer_list<Dim>;
using DTypes = std::initializer_list<DType>;

// The arguments of one call of `op`. The first tensor that uses a letter fixes it; later ones must agree.
class Arguments {
  public:
    explicit Arguments(const char* op) : op_(op) {}

    const char* op() const { return op_; }
    // The tensors that were looked at.
    std::vector<pybind11::object> tensors() const;
    // Bytes of those that are activations.
    int64_t activation_bytes() const { return activation_bytes_; }

    void set(const char* letter, int64_t value);
    int64_t operator[](const char* letter) const;

    // A contiguous tensor.
    TensorView tensor(const char* name, pybind11::handle object, Shape shape, DTypes dtypes);
    TensorView any_shape(const char* name, pybind11::handle object, DTypes dtypes);
    // A contiguous tensor of the shape and dtype of `other`.
    TensorView like(const char* name, pybind11::handle object, const TensorView& other);
    // A contiguous tensor, or None: then data is null.
    TensorView optional(const char* name, pybind11::handle object, Shape shape, DTypes dtypes);
    // A contiguous tensor that is no activation.
    TensorView weight(const char* name, pybind11::handle object, Shape shape, DTypes dtypes);
    // Packed weights: contiguous, and starting at a multiple of 64 bytes.
    TensorView storage(const char* name, pybind11::handle object, Shape shape, DTypes dtypes);
    // A matrix whose rows or whose columns are contiguous.
    TensorView matrix(const char* name, pybind11::handle object, Shape shape, DTypes dtypes);

    // Every element of an int32 tensor must be in [0, count).
    void check_indices(const char* name, const TensorView& indices, int64_t count) const;

    // Throws a ValueError that names the op.
    [[noreturn]] void reject(const std::string& message) const;
    void require(bool condition, const char* message) const {
        if (!condition) reject(message);
    }

  private:
    TensorView view(const char* name, pybind11::handle object, DTypes dtypes);
    void check_contiguous(const char* name, const TensorView& tensor) const;
    void match(const char* name, const TensorView& tensor, Shape shape);
    std::string describe(Shape shape) const;
    int find(const char* letter) const;

    static constexpr int kMaxLetters = 16, kMaxTensors = 24;
    const char* op_;
    int tensors_ = 0;
    pybind11::handle tensor_[kMaxTensors];
    int64_t activation_bytes_ = 0;
    int letters_ = 0;
    const char* letter_[kMaxLetters] = {};
    int64_t value_[kMaxLetters] = {};
};

constexpr int64_t divide_up(int64_t a, int64_t b) {
    return (a + b - 1) / b;
}

}  // namespace moelens
