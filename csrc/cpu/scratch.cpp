// Scratch memory: huge pages are asked for when a block is large enough to fill them.
#include "scratch.h"

#include <sys/mman.h>

#include <cstdlib>
#include <new>
#include <utility>

namespace moelens {

namespace {

constexpr size_t kLine = 64;
constexpr size_t kHugePage = size_t{2} << 20;

size_t round_up(size_t bytes, size_t unit) {
    return (bytes + unit - 1) / unit * unit;
}

}  // namespace

Buffer::~Buffer() {
    release();
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

void Buffer::release() {
    std::free(data_);
    data_ = nullptr;
    bytes_ = 0;
}

void* Buffer::reserve(size_t bytes) {
    if (bytes <= bytes_) return data_;
    release();
    const bool huge = bytes >= kHugePage;
    const size_t rounded = round_up(bytes, kLine);
    data_ = std::aligned_alloc(huge ? kHugePage : kLine, round_up(rounded, huge ? kHugePage : kLine));
    if (data_ == nullptr) throw std::bad_alloc();
    if (huge) madvise(data_, rounded / kHugePage * kHugePage, MADV_HUGEPAGE);  // a hint: failing costs speed only
    bytes_ = rounded;
    return data_;
}

}  // namespace moelens
