// Detects instruction sets: CPUID says what the processor has, XGETBV which registers the operating system saves.
#include "isa.h"

#include <stdexcept>

#include "variants/variants.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(MOELENS_HAS_AMX)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace moelens {

namespace {

struct Features {
    bool avx2 = false;         // with FMA and F16C
    bool avx512 = false;       // F, BW, VL, DQ
    bool avx512_bf16 = false;  // and VNNI
    bool amx_bf16 = false;     // and AMX of 8-bit whole numbers, and AVX-512 as above
};

#if defined(__x86_64__)

bool bit(unsigned word, int index) {
    return (word >> index) & 1;
}

uint64_t enabled_state() {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return static_cast<uint64_t>(high) << 32 | low;
}

Features detect() {
    Features found;
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return found;
    const bool osxsave = bit(c, 27), fma = bit(c, 12), avx = bit(c, 28), f16c = bit(c, 29);
    if (!osxsave || !avx) return found;
    const uint64_t state = enabled_state();
    constexpr uint64_t kYmm = 0x6, kZmm = 0xe6;  // XMM and YMM; and the mask registers and both halves of ZMM
    if ((state & kYmm) != kYmm || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
    found.avx2 = bit(b, 5) && fma && f16c;
    const bool vnni = bit(c, 11), amx_bf16 = bit(d, 22) && bit(d, 24) && bit(d, 25);
    const bool avx512 = bit(b, 16) && bit(b, 17) && bit(b, 30) && bit(b, 31);
    found.avx512 = found.avx2 && avx512 && (state & kZmm) == kZmm;
    if (found.avx512 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) found.avx512_bf16 = vnni && bit(a, 5);
    constexpr uint64_t kTiles = 0x60000;  // their shapes and their data
    found.amx_bf16 = found.avx512_bf16 && amx_bf16 && (state & kTiles) == kTiles;
    return found;
}

#if defined(MOELENS_HAS_AMX)
// Linux gives a process tile registers when it asks for them.
bool may_use_tiles() {
    constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

bool detect_zen5() {
    unsigned a, b, c, d;
    if (!__get_cpuid(0, &a, &b, &c, &d)) return false;
    const bool amd = b == signature_AMD_ebx && c == signature_AMD_ecx && d == signature_AMD_edx;
    if (!amd || !__get_cpuid(1, &a, &b, &c, &d)) return false;
    constexpr unsigned kZen5Family = 0x1a;
    return ((a >> 8) & 0xf) + ((a >> 20) & 0xff) >= kZen5Family;
}

#else

Features detect() {
    return {};
}

bool detect_zen5() {
    return false;
}

#endif

std::vector<const KernelTable*> list_variants() {
    [[maybe_unused]] const Features features = detect();
    std::vector<const KernelTable*> variants;
#if defined(MOELENS_HAS_AMX)
    if (features.amx_bf16 && may_use_tiles()) variants.push_back(&amx_bf16_table);
#endif
#if defined(MOELENS_HAS_AVX512_BF16)
    if (features.avx512_bf16) variants.push_back(&avx512_bf16_table);
#endif
#if defined(MOELENS_HAS_AVX512)
    if (features.avx512) variants.push_back(&avx512_table);
#endif
#if defined(MOELENS_HAS_AVX2)
    if (features.avx2) variants.push_back(&avx2_table);
#endif
    variants.push_back(&scalar_table);
#if defined(MOELENS_EMULATE_TILES)
    variants.push_back(&amx_bf16_table);  // the slowest by far
#endif
    return variants;
}

}  // namespace

const std::vector<const KernelTable*>& available_variants() {
    static const std::vector<const KernelTable*> variants = list_variants();
    return variants;
}

bool prefetches_to_first_cache() {
    static const bool is_better = detect_zen5();
    return is_better;
}

const KernelTable& find_variant(const std::string& isa) {
    std::string names;
    for (const KernelTable* table : available_variants()) {
        if (isa == table->isa) return *table;
        names += (names.empty() ? "" : ", ") + std::string(table->isa);
    }
    throw std::invalid_argument("isa '" + isa + "' is not one that this machine can run; it can run: " + names);
}

}  // namespace moelens
