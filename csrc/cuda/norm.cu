// Starts rms_norm and layer_norm.
#include "norm.cuh"

#include "starting.h"

namespace moelens {

namespace {

template <bool Centred, class X, class T>
void start(const NormArgs& args, cudaStream_t stream) {
    const NormRows<X, T> rows{static_cast<const X*>(args.x), static_cast<const T*>(args.weight),
                              static_cast<T*>(args.out),     args.rows,
                              static_cast<int>(args.width),  args.eps};
    const auto blocks = [&](int threads) {
        return dim3(static_cast<unsigned>(divide_rounding_up(args.rows, kNormThreads / threads)));
    };
    if (args.width <= kWarpWidth) {
        const auto kernel = norm_kernel<WarpOfRow, Centred, X, T>;
        MOELENS_LAUNCH(kernel, blocks(WarpOfRow::kThreads), dim3(kNormThreads), 0, stream, rows);
    } else {
        const auto kernel = norm_kernel<BlockOfRow, Centred, X, T>;
        MOELENS_LAUNCH(kernel, blocks(BlockOfRow::kThreads), dim3(kNormThreads), 0, stream, rows);
    }
}

template <bool Centred>
void start_for_elements(const NormArgs& args, cudaStream_t stream) {
    if (args.element == Element::kFloat32) {
        start<Centred, float, float>(args, stream);
    } else if (args.x_element == Element::kFloat32) {
        start<Centred, float, Bf16>(args, stream);
    } else {
        start<Centred, Bf16, Bf16>(args, stream);
    }
}

}  // namespace

void rms_norm(const NormArgs& args, Stream stream) {
    start_for_elements<false>(args, stream_of(stream));
    check_launch("rms_norm");
}

void layer_norm(const NormArgs& args, Stream stream) {
    start_for_elements<true>(args, stream_of(stream));
    check_launch("layer_norm");
}

}  // namespace moelens
