// One spelling for CUDA and for its emulation on the host: launches, shared memory, bfloat16, and all PTX that there
// is.
//
// Kernels are written once and compiled twice: by nvcc, and by the host's compiler with MOELENS_CUDA_EMULATION for
// tests that run where no GPU is (see emu/emulation.h). What only a GPU executes is the second half of this file.
#pragma once

#include <cstdint>

#ifdef MOELENS_CUDA_EMULATION
#include "emu/warp.h"
#else
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#define MOELENS_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
    kernel<<<grid, block, shared_bytes, stream>>>(__VA_ARGS__)
#define MOELENS_SHARED(type, name, count) __shared__ type name[count]
#define MOELENS_DYNAMIC_SHARED(type, name)                               \
    extern __shared__ __align__(128) unsigned char moelens_shared_all[]; \
    type* const name = reinterpret_cast<type*>(moelens_shared_all)

namespace moelens {

// The nearest bfloat16 of a, ties to even, in the lower half of the word.
__device__ __forceinline__ uint16_t narrow_bits(float a) {
    return __bfloat16_as_ushort(__float2bfloat16_rn(a));
}

// d [16, 8] += a [16, 16] b [16, 8]; bfloat16 operands, float32 sums. Fragments as PTX lays them out (m16n8k16).
__device__ __forceinline__ void multiply_fragments(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 × 8 matrices of 16-bit elements; lane 8 m + i names the address of row i of matrix m.
__device__ __forceinline__ void load_fragments(uint32_t (&r)[4], const void* shared) {
    const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

// The vector at p, which must lie at a multiple of its size.
template <class Vector, class T>
__device__ __forceinline__ Vector* as_vector(T* p) {
    return reinterpret_cast<Vector*>(p);
}

// Starts copying 16 bytes to shared memory, or zeros if not `valid`; `global` is not read then.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool valid) {
    const auto address = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    const int source_bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(address), "l"(global), "r"(source_bytes)
                 : "memory");
}

// Ends a group of this thread's copies.
__device__ __forceinline__ void commit_copies() {
    asm volatile("cp.async.commit_group;\n" ::: "memory");
}

// Waits until at most the latest `Pending` groups of this thread's copies are under way.
template <int Pending>
__device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(Pending) : "memory");
}

}  // namespace moelens
#endif
