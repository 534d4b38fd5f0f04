// The checks behind checks.h; texts are made only when something is wrong.
#include "checks.h"

#include <cassert>
#include <cstring>

namespace py = pybind11;

namespace moelens {

int Arguments::find(const char* letter) const {
    for (int i = 0; i < letters_; ++i) {
        if (std::strcmp(letter_[i], letter) == 0) return i;
    }
    return -1;
}

std::vector<py::object> Arguments::tensors() const {
    std::vector<py::object> all;
    for (int i = 0; i < tensors_; ++i) all.push_back(py::reinterpret_borrow<py::object>(tensor_[i]));
    return all;
}

void Arguments::set(const char* letter, int64_t value) {
    assert(letters_ < kMaxLetters && find(letter) < 0);
    letter_[letters_] = letter;
    value_[letters_++] = value;
}

int64_t Arguments::operator[](const char* letter) const {
    const int i = find(letter);
    assert(i >= 0);
    return value_[i];
}

void Arguments::reject(const std::string& message) const {
    throw py::value_error(std::string(op_) + ": " + message);
}

std::string Arguments::describe(Shape shape) const {
    std::string letters = "[", numbers = "[";
    bool known = true;
    for (const Dim& dim : shape) {
        const char* separator = &dim == shape.begin() ? "" : ", ";
        const int i = dim.letter ? find(dim.letter) : -1;
        const int64_t value = dim.letter ? (i >= 0 ? value_[i] : -1) : dim.value;
        letters += separator + (dim.letter ? std::string(dim.letter) : std::to_string(dim.value));
        numbers += separator + (value >= 0 ? std::to_string(value) : std::string(dim.letter));
        known = known && dim.letter == nullptr;
    }
    return known ? numbers + "]" : letters + "] = " + numbers + "]";
}

void Arguments::match(const char* name, const TensorView& tensor, Shape shape) {
    bool equal = tensor.rank == static_cast<int>(shape.size());
    const int64_t* size = tensor.shape;
    const int letters_before = letters_;
    for (const Dim& dim : shape) {
        if (!equal) break;
        const int i = dim.letter ? find(dim.letter) : -1;
        if (dim.letter && i < 0) {
            set(dim.letter, *size);
        } else {
            equal = *size == (dim.letter ? value_[i] : dim.value);
        }
        ++size;
    }
    if (equal) return;
    letters_ = letters_before;  // the message shows what was known before this tensor
    reject(std::string(name) + " must be " + describe(shape) + ", found " + describe_shape(tensor.shape, tensor.rank));
}

TensorView Arguments::view(const char* name, py::handle object, DTypes dtypes) {
    const TensorView tensor = view_tensor(op_, name, object);
    bool known = false;
    for (DType dtype : dtypes) known = known || tensor.dtype == dtype;
    if (!known) {
        std::string expected;
        for (DType dtype : dtypes) expected += (expected.empty() ? "" : " or ") + describe_dtype(dtype);
        const std::string found = py::str(object.attr("dtype"));
        throw py::type_error(std::string(op_) + ": " + name + " must be " + expected + ", found " + found);
    }
    assert(tensors_ < kMaxTensors);
    tensor_[tensors_++] = object;
    activation_bytes_ += tensor.count() * bytes_of(tensor.dtype);
    return tensor;
}

void Arguments::check_contiguous(const char* name, const TensorView& tensor) const {
    if (!tensor.is_contiguous()) {
        reject(std::string(name) + " must be contiguous, found strides " + describe_shape(tensor.strides, tensor.rank) +
               "; pass .contiguous()");
    }
}

TensorView Arguments::tensor(const char* name, py::handle object, Shape shape, DTypes dtypes) {
    const TensorView tensor = view(name, object, dtypes);
    match(name, tensor, shape);
    check_contiguous(name, tensor);
    return tensor;
}

TensorView Arguments::any_shape(const char* name, py::handle object, DTypes dtypes) {
    const TensorView tensor = view(name, object, dtypes);
    check_contiguous(name, tensor);
    return tensor;
}

TensorView Arguments::like(const char* name, py::handle object, const TensorView& other) {
    const TensorView tensor = any_shape(name, object, {other.dtype});
    bool equal = tensor.rank == other.rank;
    for (int i = 0; equal && i < other.rank; ++i) equal = tensor.shape[i] == other.shape[i];
    if (!equal) {
        reject(std::string(name) + " must be " + describe_shape(other.shape, other.rank) + ", found " +
               describe_shape(tensor.shape, tensor.rank));
    }
    return tensor;
}

TensorView Arguments::optional(const char* name, py::handle object, Shape shape, DTypes dtypes) {
    return object.is_none() ? TensorView() : tensor(name, object, shape, dtypes);
}

TensorView Arguments::weight(const char* name, py::handle object, Shape shape, DTypes dtypes) {
    const int64_t activation_bytes = activation_bytes_;
    const TensorView tensor = this->tensor(name, object, shape, dtypes);
    activation_bytes_ = activation_bytes;
    return tensor;
}

TensorView Arguments::storage(const char* name, py::handle object, Shape shape, DTypes dtypes) {
    const TensorView tensor = weight(name, object, shape, dtypes);
    const auto offset = reinterpret_cast<uintptr_t>(tensor.data) % 64;
    if (offset != 0) {
        reject(std::string(name) + " must start at a multiple of 64 bytes, found it " + std::to_string(offset) +
               " bytes past one");
    }
    return tensor;
}

TensorView Arguments::matrix(const char* name, py::handle object, Shape shape, DTypes dtypes) {
    const TensorView tensor = view(name, object, dtypes);
    match(name, tensor, shape);
    const bool rows = tensor.strides[1] == 1 || tensor.shape[1] <= 1;
    const bool columns = tensor.strides[0] == 1 || tensor.shape[0] <= 1;
    if (!rows && !columns) {
        reject(std::string(name) + " must have contiguous rows or columns, found strides " +
               describe_shape(tensor.strides, tensor.rank) + "; pass .contiguous()");
    }
    return tensor;
}

void Arguments::check_indices(const char* name, const TensorView& indices, int64_t count) const {
    const int64_t elements = indices.count();
    const auto* values = static_cast<const int32_t*>(indices.data);
    for (int64_t i = 0; i < elements; ++i) {
        if (values[i] < 0 || values[i] >= count) {
            reject(std::string(name) + " must be in [0, " + std::to_string(count) + "), found " +
                   std::to_string(values[i]));
        }
    }
}

}  // namespace moelens
