// What a thread does between two looks at a word that another thread will change.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace moelens {

inline void pause_briefly() {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

}  // namespace moelens
