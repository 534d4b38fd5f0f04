// A torch tensor as kernels see it, read through Python attributes (no torch headers).
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

namespace moelens {

enum class DType : uint8_t { kFloat32, kBFloat16, kInt32, kInt8, kOther };

constexpr int kMaxRank = 8;

struct TensorView {
    void* data = nullptr;
    DType dtype = DType::kOther;
    int rank = 0;
    int64_t shape[kMaxRank] = {};
    int64_t strides[kMaxRank] = {};  // in elements

    bool is_contiguous() const;
    int64_t count() const;
};

// Where a module's tensors must lie.
enum class Device : uint8_t { kCpu, kCuda };

// Must run once, when the module is imported.
void import_torch(Device device = Device::kCpu);

// Throws a Python TypeError or ValueError that names `op` and `argument` unless `object` is a dense tensor on the
// module's device.
TensorView view_tensor(const char* op, const char* argument, pybind11::handle object);

int64_t bytes_of(DType dtype);  // of one element
std::string describe_dtype(DType dtype);
std::string describe_shape(const int64_t* shape, int rank);

}  // namespace moelens
