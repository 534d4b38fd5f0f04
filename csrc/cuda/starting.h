// What every launcher does after a launch: turn CUDA's error into an exception that names the op.
#pragma once

#include <stdexcept>
#include <string>

#include "device.h"
#include "launch.h"

namespace moelens {

inline void check(const char* op, cudaError_t error) {
    if (error != cudaSuccess) throw std::runtime_error(std::string(op) + ": " + cudaGetErrorString(error));
}

inline void check_launch(const char* op) {
    check(op, cudaGetLastError());
}

inline cudaStream_t stream_of(Stream stream) {
    return reinterpret_cast<cudaStream_t>(stream);
}

}  // namespace moelens
