// What devices there are.
#include "starting.h"

namespace moelens {

int count_devices(const char** reason) {
    int count = 0;
    const cudaError_t error = cudaGetDeviceCount(&count);
    *reason = cudaGetErrorString(error);
    return error == cudaSuccess ? count : 0;
}

}  // namespace moelens
