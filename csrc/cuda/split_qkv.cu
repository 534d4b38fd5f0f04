// Starts split_qkv.
#include "split_qkv.cuh"

#include "starting.h"

namespace moelens {

namespace {

template <class T>
HeadNorm<T> norm_of(const NormWeight& norm) {
    return {static_cast<const T*>(norm.data), static_cast<int>(norm.width)};
}

template <class X, class T>
void start(const SplitQkvArgs& args, cudaStream_t stream) {
    const SplitRows<X, T> rows{static_cast<const X*>(args.joined),
                               args.positions,
                               args.inverse_frequencies,
                               norm_of<T>(args.q_norm),
                               norm_of<T>(args.k_norm),
                               static_cast<T*>(args.q),
                               static_cast<T*>(args.k),
                               static_cast<T*>(args.v),
                               static_cast<int>(args.query_heads),
                               static_cast<int>(args.kv_heads),
                               static_cast<int>(args.head_dim),
                               static_cast<int>(args.pairs),
                               args.magnitude,
                               args.eps,
                               args.limit};
    const int shared_bytes = rows.shared_floats() * static_cast<int>(sizeof(float));
    const auto kernel = split_qkv_kernel<X, T>;
    check("split_qkv", cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                            cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
    MOELENS_LAUNCH(kernel, dim3(static_cast<unsigned>(args.rows)), dim3(kSplitThreads),
                   static_cast<size_t>(shared_bytes), stream, rows);
}

}  // namespace

void split_qkv(const SplitQkvArgs& args, Stream stream) {
    if (args.element == Element::kFloat32) {
        start<float, float>(args, stream_of(stream));
    } else if (args.joined_element == Element::kFloat32) {
        start<float, Bf16>(args, stream_of(stream));
    } else {
        start<Bf16, Bf16>(args, stream_of(stream));
    }
    check_launch("split_qkv");
}

}  // namespace moelens
