// Memory that kernels work in, kept from call to call.
#pragma once

#include <cstddef>
#include <vector>

namespace moelens {

// A block of memory that only grows, aligned to 64 bytes; its content is undefined.
class Buffer {
  public:
    Buffer() = default;
    ~Buffer();
    Buffer(Buffer&& other) noexcept;
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    void* reserve(size_t bytes);
    void* data() const { return data_; }

  private:
    void release();

    void* data_ = nullptr;
    size_t bytes_ = 0;
};

// One block that all threads see and one for each thread. Reserve before the threads start.
struct Scratch {
    explicit Scratch(int threads) : local(static_cast<size_t>(threads)) {}

    Buffer shared;
    std::vector<Buffer> local;
};

}  // namespace moelens
