// Starts rotary.
#include "rotary.cuh"

#include "starting.h"

namespace moelens {

namespace {

template <class T>
void start(const RotaryArgs& args, cudaStream_t stream) {
    const RotaryRows<T> rows{static_cast<const T*>(args.x),
                             args.positions,
                             args.inverse_frequencies,
                             static_cast<T*>(args.out),
                             static_cast<int>(args.heads),
                             static_cast<int>(args.head_dim),
                             static_cast<int>(args.pairs),
                             args.magnitude};
    const size_t shared_bytes = 2 * static_cast<size_t>(args.pairs) * sizeof(float);
    MOELENS_LAUNCH(rotary_kernel<T>, dim3(static_cast<unsigned>(args.rows)), dim3(kRotaryThreads), shared_bytes, stream,
                   rows);
}

}  // namespace

void rotary(const RotaryArgs& args, Stream stream) {
    args.element == Element::kBFloat16 ? start<Bf16>(args, stream_of(stream)) : start<float>(args, stream_of(stream));
    check_launch("rotary");
}

}  // namespace moelens
