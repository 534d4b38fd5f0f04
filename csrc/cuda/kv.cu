// Starts write_kv and read_kv.
#include "kv.cuh"

#include "starting.h"

namespace moelens {

namespace {

KvRows rows_of(const KvArgs& args) {
    return {static_cast<Bf16*>(args.k),
            static_cast<Bf16*>(args.v),
            static_cast<Bf16*>(args.keys),
            static_cast<Bf16*>(args.values),
            args.slots,
            static_cast<int>(args.tokens),
            static_cast<int>(args.kv_heads),
            static_cast<int>(args.head_dim),
            static_cast<int>(args.block_tokens)};
}

dim3 blocks_of(const KvArgs& args) {
    return dim3(static_cast<unsigned>(divide_rounding_up(args.tokens, kTileTokens)),
                static_cast<unsigned>(args.kv_heads));
}

}  // namespace

void write_kv(const KvArgs& args, Stream stream) {
    MOELENS_LAUNCH(write_kv_kernel, blocks_of(args), dim3(kKvThreads), 0, stream_of(stream), rows_of(args));
    check_launch("write_kv");
}

void read_kv(const KvArgs& args, Stream stream) {
    MOELENS_LAUNCH(read_kv_kernel, blocks_of(args), dim3(kKvThreads), 0, stream_of(stream), rows_of(args));
    check_launch("read_kv");
}

}  // namespace moelens
