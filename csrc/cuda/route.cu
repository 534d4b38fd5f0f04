// Starts route.
#include "route.cuh"

#include "starting.h"

namespace moelens {

namespace {

template <int PerLane>
void start(const RouteArgs& args, cudaStream_t stream) {
    const dim3 blocks(static_cast<unsigned>(divide_rounding_up(args.rows, kRouteThreads / 32)));
    MOELENS_LAUNCH(route_kernel<PerLane>, blocks, dim3(kRouteThreads), 0, stream, args);
}

}  // namespace

void route(const RouteArgs& args, Stream stream) {
    static_assert(kMaxExperts == 32 * 16 && kMaxActive == 32, "experts that a warp holds");
    if (args.experts <= 64) {
        start<2>(args, stream_of(stream));
    } else if (args.experts <= 128) {
        start<4>(args, stream_of(stream));
    } else {
        start<16>(args, stream_of(stream));
    }
    check_launch("route");
}

}  // namespace moelens
