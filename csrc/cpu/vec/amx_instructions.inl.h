// The instructions of AMX. Not the compiler's intrinsics: GCC's don't say what memory they read or write.

#define MOELENS_TILE_SHAPE(shapes) __asm__ volatile("ldtilecfg %0" : : "m"(shapes))
#define MOELENS_TILE_RELEASE() __asm__ volatile("tilerelease")
// `stride`: bytes from a row to the next.
#define MOELENS_TILE_LOAD(tile, data, stride)           \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile \
                     :                                  \
                     : "r"(data), "r"(static_cast<int64_t>(stride)), "m"(*reinterpret_cast<const char (*)[]>(data)))
#define MOELENS_TILE_STORE(tile, data, stride)                   \
    __asm__ volatile("tilestored %%tmm" #tile ", (%1,%2,1)"      \
                     : "+m"(*reinterpret_cast<char (*)[]>(data)) \
                     : "r"(data), "r"(static_cast<int64_t>(stride)))
#define MOELENS_TILE_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile : :)
// sums += a * b, of pairs of bfloat16, or of quads of 8-bit whole numbers: a's are signed, b's are not.
#define MOELENS_TILE_DOT_PAIRS(sums, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #sums : :)
#define MOELENS_TILE_DOT_QUADS(sums, a, b) __asm__ volatile("tdpbsud %%tmm" #b ", %%tmm" #a ", %%tmm" #sums : :)
