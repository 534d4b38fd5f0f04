// Starts linear.
#include "linear.cuh"

#include "starting.h"

namespace moelens {

namespace {

template <class Shape, class Out>
void start(const LinearArgs& args, cudaStream_t stream) {
    const LinearRows<Out> rows{
        {static_cast<const Bf16*>(args.x), args.x_stride, static_cast<int>(round_up(args.inner, 8))},
        static_cast<const unsigned char*>(args.weight),
        static_cast<const Bf16*>(args.bias),
        static_cast<const Out*>(args.residual),
        static_cast<Out*>(args.out),
        static_cast<int>(args.rows),
        static_cast<int>(args.columns),
        static_cast<int>(args.inner),
        args.scale};
    const int64_t column_tiles = divide_rounding_up(args.columns, kPanelColumns * kTilePanels);
    const dim3 blocks(static_cast<unsigned>(divide_rounding_up(args.rows, Shape::kRows) * column_tiles));
    const auto kernel = linear_kernel<Shape, Out>;
    MOELENS_LAUNCH(kernel, blocks, dim3(Shape::kThreads), Shape::kSharedBytes, stream, rows);
}

}  // namespace

void linear(const LinearArgs& args, Stream stream) {
    with_tile_shape(args.rows, [&](auto shape) {
        using Shape = decltype(shape);
        static_assert(Shape::kSharedBytes <= 48 * 1024, "more needs an attribute of the kernel");
        args.out_element == Element::kBFloat16 ? start<Shape, Bf16>(args, stream_of(stream))
                                               : start<Shape, float>(args, stream_of(stream));
    });
    check_launch("linear");
}

}  // namespace moelens
